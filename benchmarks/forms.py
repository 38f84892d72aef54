"""Ways to write a layer that quantizes its activations while it runs, in plain onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.judge import FLOAT, latencies_of, open_model
from benchmarks.measure import Row, ratio

Array = NDArray[Any]
_TOKENS = (1, 16, 64, 128)  # rows of the activation, M
_OPSET, _IR_VERSION = 17, 8
_MIDDLE = np.uint8(128)
_LAYERS: Mapping[str, tuple[int, tuple[int, ...]]] = {  # inputs, and outputs of each MatMul
    "384x1536": (384, (1536,)),
    "768x3072": (768, (3072,)),
    "q, k, v 384x384": (384, (384, 384, 384)),
}
_PICTURE, _FILTERS = (1, 16, 56, 56), (32, 16, 3, 3)
_PADS = [1, 1, 1, 1]


class Graph:
    """Nodes and constants that are being written down."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """A node; the names of its outputs."""
        names = [f"{operator}{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def constant(self, array: Any) -> str:
        """A constant; its name."""
        name = f"constant{len(self._constants)}"
        self._constants[name] = np.asarray(array)
        return name

    def model(self, rank: int, outputs: Sequence[str]) -> bytes:
        """The model with the input ``x``."""

        def value(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank)

        constants = [numpy_helper.from_array(each, name) for name, each in self._constants.items()]
        graph = helper.make_graph(
            self._nodes, "form", [value("x")], [value(one) for one in outputs], constants
        )
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        return model.SerializeToString()


Form = Callable[[Graph, Sequence[Array]], list[str]]  # layers of one activation, without bias


def forms(rounds: int) -> list[Row]:
    """Speed of each form to the float layer's, and its error at the largest M.

    All with one thread. ``error``: root mean square, to that of the float layer's result.
    """
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for layer, (inputs, outputs) in _LAYERS.items():
        weights = [random.standard_normal((inputs, one), np.float32) for one in outputs]
        wanted = {name: form for name, form in FORMS.items() if len(outputs) > 1 or name != SHARED}
        models = {name: model_of(form, weights) for name, form in wanted.items()}
        samples = {
            f"M = {tokens}": random.standard_normal((tokens, inputs), np.float32)
            for tokens in _TOKENS
        }
        rows += _measured(layer, models, samples, rounds)
    filters = random.standard_normal(_FILTERS, np.float32)
    models = {name: model_of(form, [filters], 4) for name, form in CONVOLUTIONS.items()}
    picture = random.standard_normal(_PICTURE, np.float32)
    return rows + _measured("Conv 3x3, 16 to 32", models, {"56x56": picture}, rounds)


def model_of(form: Form, weights: Sequence[Array], rank: int = 2) -> bytes:
    """The layers in this form."""
    graph = Graph()
    return graph.model(rank, form(graph, weights))


def _measured(
    layer: str, models: Mapping[str, bytes], samples: Mapping[str, Array], rounds: int
) -> list[Row]:
    sessions = {name: open_model(model, 1) for name, model in models.items()}
    rows = {name: {"layer": layer, "form": name} for name in models}
    last = [*samples.values()][-1]
    exact = np.concatenate([one.ravel() for one in sessions[FLOAT].run(None, {"x": last})])
    for name, session in sessions.items():
        found = np.concatenate([one.ravel() for one in session.run(None, {"x": last})])
        if name != FLOAT:
            error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
            rows[name]["error"] = f"{100 * error:.2f} %"
    for column, sample in samples.items():
        times = latencies_of(sessions, {"x": sample}, rounds)
        for name, each in times.items():
            rows[name][column] = ratio(times[FLOAT], each)
    return [*rows.values()]


# ------------------------------------------------------------------------------------- one scale


def _float(graph: Graph, weights: Sequence[Array]) -> list[str]:
    return [graph.add("MatMul", "x", graph.constant(one))[0] for one in weights]


def _own(graph: Graph, weights: Sequence[Array]) -> list[str]:
    """Every MatMul quantizes its activation, though onnxruntime merges equal nodes again."""
    return [_tensor(graph, one, _quantized(graph)) for one in weights]


def _shared(graph: Graph, weights: Sequence[Array]) -> list[str]:
    quantized = _quantized(graph)
    return [_tensor(graph, one, quantized) for one in weights]


def _unsigned(graph: Graph, weights: Sequence[Array]) -> list[str]:
    quantized = _quantized(graph)
    return [_tensor(graph, one, quantized, unsigned=True) for one in weights]


def _quantized(graph: Graph) -> list[str]:
    return graph.add("DynamicQuantizeLinear", "x", outputs=3)


def _tensor(
    graph: Graph, weight: Array, quantized: Sequence[str], *, unsigned: bool = False
) -> str:
    data, scale, zero_point = quantized
    codes, steps = _codes(weight, (0,))
    zeros: Array = np.zeros(steps.size, np.int8)
    if unsigned:
        codes, zeros = _unsigned_codes(codes), np.full(steps.size, _MIDDLE)
    names = [graph.constant(one) for one in (codes, zeros)]
    sums = graph.add("MatMulInteger", data, names[0], zero_point, names[1])
    reals = graph.add("Cast", *sums, to=onnx.TensorProto.FLOAT)
    factor = graph.add("Mul", scale, graph.constant(steps.ravel()))
    return graph.add("Mul", *reals, *factor)[0]


# ------------------------------------------------------------------------- a scale for each token


def _tokens_integer(graph: Graph, weights: Sequence[Array]) -> list[str]:
    """Rows divided by their magnitude, and MatMulInteger."""
    codes, magnitude, step, middle = _rows(graph)
    return [_product(graph, codes, middle, one, [step], [magnitude]) for one in weights]


def _tokens_dequantize(graph: Graph, weights: Sequence[Array]) -> list[str]:
    """The same, and MatMul of what DequantizeLinear gives; what ptq writes."""
    codes, magnitude, step, middle = _rows(graph)
    rows = graph.add("DequantizeLinear", codes, step, middle)[0]
    made = []
    for one in weights:
        integers, steps = _codes(one, (0,))
        zeros = np.zeros(steps.size, np.int8)
        inputs = [graph.constant(each) for each in (integers, steps.ravel(), zeros)]
        weight = graph.add("DequantizeLinear", *inputs, axis=1)[0]
        made.append(graph.add("Mul", graph.add("MatMul", rows, weight)[0], magnitude)[0])
    return made


def _tokens_scales(graph: Graph, weights: Sequence[Array]) -> list[str]:
    """QuantizeLinear with a scale for each row, which the model computes."""
    size = graph.add("Abs", "x")
    largest = graph.add("ReduceMax", *size, axes=[-1], keepdims=0)
    scale = graph.add("Mul", *largest, graph.constant(np.float32(1 / 127)))[0]
    rows = graph.add("Shape", scale)
    middle = graph.constant(_MIDDLE)
    zeros = graph.add("Expand", middle, *rows)
    codes = graph.add("QuantizeLinear", "x", scale, *zeros, axis=0)[0]
    column = graph.add("Unsqueeze", scale, graph.constant(np.array([1])))
    return [_product(graph, codes, middle, one, [], column) for one in weights]


def _product(
    graph: Graph,
    codes: str,
    middle: str,
    weight: Array,
    constants: Sequence[str],
    factors: Sequence[str],
) -> str:
    """MatMulInteger, the weights' scales times these constants, and each row by its factor."""
    integers, steps = _codes(weight, (0,))
    sums = graph.add("MatMulInteger", codes, graph.constant(integers), middle)
    reals = graph.add("Cast", *sums, to=onnx.TensorProto.FLOAT)
    scale = graph.constant(steps.ravel())
    for one in constants:
        scale = graph.add("Mul", one, scale)[0]
    reals = graph.add("Mul", *reals, scale)
    for one in factors:
        reals = graph.add("Mul", *reals, one)
    return reals[0]


def _rows(graph: Graph) -> tuple[str, str, str, str]:
    """Codes of rows that are divided by their largest magnitudes; those, scale and zero point."""
    step, middle = graph.constant(np.float32(1 / 127)), graph.constant(_MIDDLE)
    size = graph.add("Abs", "x")
    magnitude = graph.add("ReduceMax", *size, axes=[-1], keepdims=1)[0]
    unit = graph.add("Mul", "x", *graph.add("Reciprocal", magnitude))
    return graph.add("QuantizeLinear", *unit, step, middle)[0], magnitude, step, middle


# ---------------------------------------------------------------------------------- convolutions


def _float_conv(graph: Graph, weights: Sequence[Array]) -> list[str]:
    return [graph.add("Conv", "x", graph.constant(one), pads=_PADS)[0] for one in weights]


def _signed_conv(graph: Graph, weights: Sequence[Array]) -> list[str]:
    return [_conv(graph, one, unsigned=False) for one in weights]


def _unsigned_conv(graph: Graph, weights: Sequence[Array]) -> list[str]:
    return [_conv(graph, one, unsigned=True) for one in weights]


def _conv(graph: Graph, weight: Array, *, unsigned: bool) -> str:
    data, scale, zero_point = _quantized(graph)
    codes, steps = _codes(weight, (1, 2, 3))
    inputs = [data, graph.constant(codes), zero_point]
    if unsigned:
        inputs = [data, graph.constant(_unsigned_codes(codes)), zero_point, graph.constant(_MIDDLE)]
    sums = graph.add("ConvInteger", *inputs, pads=_PADS)
    reals = graph.add("Cast", *sums, to=onnx.TensorProto.FLOAT)
    factor = graph.add("Mul", scale, graph.constant(steps.reshape(1, -1, 1, 1)))
    return graph.add("Mul", *reals, *factor)[0]


def _codes(weight: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Symmetric codes and scales, one for each output channel."""
    steps = np.abs(weight).max(axis=axes, keepdims=True) / np.float32(127)
    return np.rint(weight / steps).astype(np.int8), steps


def _unsigned_codes(codes: Array) -> Array:
    return (codes.astype(np.int16) + _MIDDLE).astype(np.uint8)


SHARED = "one scale, quantized once"
FORMS: Mapping[str, Form] = {
    FLOAT: _float,
    "one scale, each quantizes": _own,
    SHARED: _shared,
    "one scale, uint8 weights": _unsigned,
    "tokens, MatMulInteger": _tokens_integer,
    "tokens, DequantizeLinear": _tokens_dequantize,
    "tokens, QuantizeLinear with their scales": _tokens_scales,
}
CONVOLUTIONS: Mapping[str, Form] = {
    FLOAT: _float_conv,
    "ConvInteger, int8 weights": _signed_conv,
    "ConvInteger, uint8 weights": _unsigned_conv,
}
