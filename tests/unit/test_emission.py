from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from ptq_core.arithmetic import Correction, QParams, cosine
from ptq_core.emission import emit
from ptq_core.graph.model import serialize, with_outputs
from ptq_core.graph.operators import LINEAR
from ptq_core.graph.prepare import prepare
from ptq_core.jobs import tensor_parameters
from ptq_core.planning import Plan, make_plan
from ptq_core.plugins import discover
from ptq_core.target_types import OperatorRule, TargetSpec
from ptq_core.types import Range
from tests import tiny_models as tiny
from tests.tiny_models import Arrays, node, normal

SAMPLES = 6


@dataclass
class Result:
    """A quantized model with what it was made from."""

    floats: onnx.ModelProto
    content: bytes
    plan: Plan
    parameters: dict[str, QParams]
    given: list[Arrays]

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.content)

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [one for one in self.proto.graph.node if one.op_type == op_type]

    def constant(self, name: str) -> np.ndarray:
        found = {one.name: one for one in self.proto.graph.initializer}
        return numpy_helper.to_array(found[name])

    def decision(self, name: str) -> str:
        return next(one.decision for one in self.plan.nodes if one.name == name)


@pytest.fixture(scope="module")
def cpu() -> TargetSpec:
    return discover().target("CPU").entry.spec


def _range(arrays: list[np.ndarray]) -> Range:
    return Range(
        low=float(min(array.min() for array in arrays)),
        high=float(max(array.max() for array in arrays)),
    )


def quantized(
    made: onnx.ModelProto,
    spec: TargetSpec,
    *,
    skip: tuple[str, ...] = (),
    per_channel: bool = True,
    samples: list[Arrays] | None = None,
    stretch: float = 1.0,
    corrections: Mapping[str, Correction] | None = None,
) -> Result:
    """Quantize with ranges from a few random samples, times ``stretch``."""
    given = samples or [tiny.feeds(made, seed) for seed in range(SAMPLES)]
    given = [
        {name: array.astype(np.float32) if array.dtype == np.float16 else array
         for name, array in one.items()}
        for one in given
    ]  # fmt: skip
    prepared = prepare(ir.from_proto(made), spec.minimum_opset)
    floats = onnx.load_from_string(serialize(prepared.model))
    plan = make_plan(prepared, spec, skip=skip, per_channel=per_channel)
    inner = [name for name in plan.watched() if name not in given[0]]
    seen: dict[str, list[np.ndarray]] = {name: [one[name] for one in given if name in one]
                                         for name in plan.watched()}  # fmt: skip
    if inner:
        watching = serialize(with_outputs(prepared.model, inner))
        for one in given:
            for name, array in tiny.run(watching, one).items():
                seen[name].append(array)
    found = {name: _range(arrays) for name, arrays in seen.items()}
    ranges = {name: Range(low=one.low * stretch, high=one.high * stretch)
              for name, one in found.items()}  # fmt: skip
    parameters = tensor_parameters(plan, ranges)
    content = serialize(emit(prepared, plan, parameters, spec, corrections))
    onnx.checker.check_model(content, full_check=True)
    return Result(floats, content, plan, parameters, given)


def executed(content: bytes, tmp_path: Any) -> Counter[str]:
    """Operators of the graph after onnxruntime's optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    return Counter(one.op_type for one in graph.node)


def spread(result: Result) -> dict[str, float]:
    """One step of each output: its own scale where it has one, else an 8-bit step of its range."""
    steps = {}
    for value in result.proto.graph.output:
        tensor = result.plan.tensors.get(value.name)
        if tensor is not None:
            steps[value.name] = float(result.parameters[tensor.source].scale)
        else:
            arrays = [tiny.run(result.floats, one)[value.name] for one in result.given]
            steps[value.name] = float(np.ptp(np.concatenate([a.ravel() for a in arrays]))) / 255
    return steps


def assert_optimized_alike(result: Result, steps: float = 1.0) -> None:
    """onnxruntime's integer kernels give what the graph says, up to these output steps."""
    step = spread(result)
    for one in result.given:
        plain = tiny.run(result.content, one)
        fast = tiny.run(result.content, one, optimized=True)
        for name, array in plain.items():
            assert np.abs(fast[name] - array).max() <= steps * step[name] * 1.001, name


def assert_close(result: Result, least: float = 0.995) -> None:
    """The integer model computes nearly the float model's outputs."""
    for name in (value.name for value in result.floats.graph.output):
        wanted = np.stack([tiny.run(result.floats, one)[name] for one in result.given])
        found = np.stack([tiny.run(result.content, one)[name] for one in result.given])
        assert found.shape == wanted.shape
        assert cosine(wanted, found) >= least, name


# ------------------------------------------------------------------------------ every tiny model

# Two layers deep, one step of an inner tensor may be two of the output.
DEEP = 3.0


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_result_is_valid_close_and_runs_in_integers(
    name: str, per_channel: bool, cpu: TargetSpec
) -> None:
    result = quantized(tiny.MODELS[name](), cpu, per_channel=per_channel)
    assert [one.name for one in result.proto.graph.output] == [
        one.name for one in result.floats.graph.output
    ]
    assert_close(result)
    assert_optimized_alike(result, DEEP)


def test_inner_tensors_have_no_shapes_and_the_ends_keep_theirs(cpu: TargetSpec) -> None:
    made = tiny.residual()
    graph = onnx.load_from_string(quantized(made, cpu).content).graph
    inner = {name for node in graph.node for name in node.output}
    assert not inner & {value.name for value in graph.value_info}
    for before, after in (
        *zip(made.graph.input, graph.input, strict=True),
        *zip(made.graph.output, graph.output, strict=True),
    ):
        assert (before.name, before.type.tensor_type.shape) == (
            after.name,
            after.type.tensor_type.shape,
        )


@pytest.mark.parametrize("name", tiny.MODELS)
def test_parameters_of_a_tensor_have_rank_0_and_of_channels_rank_1(
    name: str, cpu: TargetSpec
) -> None:
    result = quantized(tiny.MODELS[name](), cpu)
    found = {one.name: one for one in result.proto.graph.initializer}
    for one in (*result.nodes("QuantizeLinear"), *result.nodes("DequantizeLinear")):
        scale, zero_point = (found[name] for name in one.input[1:])
        assert scale.dims == zero_point.dims
        per_axis = any(attribute.name == "axis" for attribute in one.attribute)
        assert len(scale.dims) == int(per_axis)
        assert (numpy_helper.to_array(scale) > 0).all()


@pytest.mark.parametrize("name", tiny.MODELS)
def test_no_float_weights_are_left_beside_integer_ones(name: str, cpu: TargetSpec) -> None:
    result = quantized(tiny.MODELS[name](), cpu)
    used = {name for one in result.proto.graph.node for name in one.input}
    for one in result.proto.graph.node:
        for attribute in one.attribute:
            for inner in attribute.g.node:
                used.update(inner.input)
    assert {one.name for one in result.proto.graph.initializer} <= used


@pytest.mark.parametrize("name", ["conv_bn_relu", "transformer", "shared_weights", "two_outputs"])
def test_the_same_model_gives_the_same_bytes(name: str, cpu: TargetSpec) -> None:
    first, second = (quantized(tiny.MODELS[name](), cpu).content for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", tiny.MODELS)
def test_no_planned_layer_runs_in_float(name: str, cpu: TargetSpec, tmp_path: Any) -> None:
    result = quantized(tiny.MODELS[name](), cpu)
    counts = executed(result.content, tmp_path)
    integer = Counter(one.op_type for one in result.plan.nodes if one.decision == "integer")
    planned = Counter(one.op_type for one in result.plan.nodes)
    for op_type in ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool"):
        left = counts[op_type] + counts[f"Fused{op_type}"]
        inlined = int((name, op_type) == ("functions", "Mul"))
        assert left <= planned[op_type] - integer[op_type] + inlined, (op_type, counts)


# ------------------------------------------------------------------------ an independent oracle


def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int) -> np.ndarray:
    """A 3x3 convolution with padding 1, in double, as a sum over the kernel."""
    size = x.shape[2] // stride
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(w), size, size)) + b[:, None, None]
    for i in range(3):
        for j in range(3):
            window = padded[:, :, i : i + size * stride : stride, j : j + size * stride : stride]
            out += np.einsum("nchw,oc->nohw", window, w[:, :, i, j].astype(np.float64))
    return out


def fake(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """What 8-bit unsigned codes of the values stand for; runtimes round half to even."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    zero = round(-low / float(scale))
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * float(scale)


def fake_weights(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8-bit weights with one scale per row, and the scales."""
    scale = np.abs(w.reshape(len(w), -1)).max(axis=1).astype(np.float64) / 127
    shaped = scale.reshape(-1, *[1] * (w.ndim - 1))
    return np.round(w / shaped) * shaped, scale


def test_the_numbers_are_those_of_an_independent_simulation(cpu: TargetSpec) -> None:
    made = tiny.conv_bn_relu()
    result = quantized(made, cpu)
    arrays = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}

    def folded(w: str, b: np.ndarray, bn: str) -> tuple[np.ndarray, np.ndarray]:
        gamma, beta, mean, var = (
            arrays[f"{bn}_{part}"].astype(np.float64) for part in ("gamma", "beta", "mean", "var")
        )
        factor = gamma / np.sqrt(var + 1e-5)
        return arrays[w] * factor[:, None, None, None], (b - mean) * factor + beta

    w1, b1 = folded("w1", np.zeros(8), "bn1")
    w2, b2 = folded("w2", arrays["b2"], "bn2")
    w3, b3 = arrays["w3"], arrays["b3"]

    def network(x: np.ndarray, ranges: list[tuple[float, float]] | None) -> list[np.ndarray]:
        """All activations; with ranges every tensor is rounded to its codes."""
        seen: list[np.ndarray] = []

        def tensor(values: np.ndarray) -> np.ndarray:
            found = values if ranges is None else fake(values, *ranges[len(seen)])
            seen.append(found)
            return found

        def weights(w: np.ndarray) -> np.ndarray:
            return w if ranges is None else fake_weights(w)[0]

        def bias(b: np.ndarray, w: np.ndarray, level: int) -> np.ndarray:
            if ranges is None:
                return b
            low, high = ranges[level]
            step = fake_weights(w)[1] * (max(high, 0) - min(low, 0)) / 255
            return np.round(b / step) * step

        a = tensor(x)
        a = tensor(np.maximum(convolve(a, weights(w1), bias(b1, w1, 0), 1), 0))
        a = tensor(np.maximum(convolve(a, weights(w2), bias(b2, w2, 1), 2), 0))
        a = tensor(a.mean(axis=(2, 3)))
        seen.append(a @ weights(w3).T + bias(b3, w3, 3))
        return seen

    plain = [network(one["x"], None) for one in result.given]
    ranges = [
        (min(one[i].min() for one in plain), max(one[i].max() for one in plain)) for i in range(4)
    ]
    for one in result.given:
        wanted = network(one["x"], ranges)[-1]
        found = tiny.run(result.content, one)["y"]
        # A code may fall to the other side of a half by the rounding of float sums; one such step
        # of the pooled tensor times a weight is the most that is allowed.
        step = float(result.parameters["p"].scale) * np.abs(w3).max()
        np.testing.assert_allclose(found, wanted, atol=1.01 * step)
        assert np.abs(found - wanted).mean() < 0.2 * step


# ---------------------------------------------------------------------------------------- guards


def unbalanced(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """One channel a thousand times larger than the others: one scale for all ruins the rest."""
    grown = np.array(array)
    np.moveaxis(grown, axis, 0)[0] *= 1000.0
    return grown


def sandwich(op_type: str) -> onnx.ModelProto:
    """A layer with unbalanced channels between two integer layers.

    The bias and the Relu silence the large channel, so that it does not set the output's scale.
    """
    b2 = normal(6, seed=3)
    b2[[0, 3] if op_type == "ConvTranspose" else [0]] = -1e5
    middle: dict[str, Any] = {
        "Conv": node("Conv", "r1 w2 b2", "c2", "middle", pads=[1, 1, 1, 1]),
        "Grouped": node("Conv", "r1 w2 b2", "c2", "middle", group=2),
        "ConvTranspose": node("ConvTranspose", "r1 w2 b2", "c2", "middle", group=2),
        "Gemm": node("Gemm", "r1 w2 b2", "c2", "middle"),
        "GemmT": node("Gemm", "r1 w2 b2", "c2", "middle", transB=1),
    }
    if op_type.startswith("Gemm"):
        w2 = unbalanced(normal(6, 6, seed=1), 0 if op_type == "GemmT" else 1)
        return tiny.model(
            [
                node("Conv", "x w1", "c1", "first"),
                node("Relu", "c1", "r0", "relu1"),
                node("GlobalAveragePool", "r0", "p", "pool"),
                node("Flatten", "p", "r1", "flatten"),
                middle[op_type],
                node("Relu", "c2", "r2", "relu2"),
                node("Gemm", "r2 w3", "y", "last"),
            ],
            {"x": ["N", 3, 4, 4]},
            {"y": ["N", 4]},
            {"w1": normal(6, 3, 1, 1), "w2": w2, "b2": b2, "w3": normal(6, 4, seed=2)},
        )
    w2 = {
        "Conv": unbalanced(normal(6, 6, 3, 3, seed=1)),
        "Grouped": unbalanced(normal(6, 3, 1, 1, seed=1)),
        "ConvTranspose": unbalanced(normal(6, 3, 1, 1, seed=1), 1),
    }[op_type]
    return tiny.model(
        [
            node("Conv", "x w1", "c1", "first"),
            node("Relu", "c1", "r1", "relu1"),
            middle[op_type],
            node("Relu", "c2", "r2", "relu2"),
            node("Conv", "r2 w3", "y", "last"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 4, 4, 4]},
        {"w1": normal(6, 3, 1, 1), "w2": w2, "b2": b2, "w3": normal(4, 6, 1, 1, seed=2)},
    )


def without_guards(content: bytes) -> bytes:
    """The same model, the guarded layer fed from an ordinary DequantizeLinear."""
    proto = onnx.load_from_string(content)
    constants = {one.name: one for one in proto.graph.initializer}
    guards = [one for one in proto.graph.node if "_for_" in one.name]
    assert len(guards) == 1
    for name in guards[0].input[1:]:
        first = numpy_helper.to_array(constants[name])[0]
        constants[name].CopyFrom(numpy_helper.from_array(np.asarray(first), name))
    del guards[0].attribute[:]
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize("op_type", ["Conv", "Grouped", "ConvTranspose", "Gemm", "GemmT"])
def test_a_skipped_layer_stays_float_exact(op_type: str, cpu: TargetSpec) -> None:
    result = quantized(sandwich(op_type), cpu, skip=("middle",))
    assert result.decision("middle") == "guarded"
    bare = without_guards(result.content)
    step, guarded, unguarded = spread(result)["y"], 0.0, 0.0
    for given in result.given:
        plain = tiny.run(result.content, given)["y"]
        np.testing.assert_array_equal(tiny.run(bare, given)["y"], plain)
        kept = tiny.run(result.content, given, optimized=True)["y"]
        lost = tiny.run(bare, given, optimized=True)["y"]
        guarded = max(guarded, float(np.abs(kept - plain).max()) / step)
        unguarded = max(unguarded, float(np.abs(lost - plain).max()) / step)
    assert guarded <= 1.001
    assert unguarded > 5, "without the guard the runtime quantizes the layer"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "Gemm"])
def test_a_skipped_layer_with_one_input_channel_stays_float(
    op_type: str, bias: bool, cpu: TargetSpec
) -> None:
    """A vector of one scale is one scale to the runtime; an int32 bias keeps the layer."""
    spread_out = np.array([1, 1, 1, 1, 1, 100], np.float32)  # one scale is too coarse for five
    dense = op_type == "Gemm"
    tail = () if dense else (1, 1)
    weights = {
        "w1": normal(*((3, 1) if dense else (1, 3, 1, 1))),
        "w2": (normal(1, 6, seed=1) * spread_out).reshape(
            (6, 1, 1, 1) if op_type == "Conv" else (1, 6, *tail)
        ),
        "w3": (normal(6, 2, seed=2) / spread_out[:, None]).reshape((6, 2))
        if dense
        else (normal(2, 6, 1, 1, seed=2) / spread_out[:, None, None]),
        "b2": normal(6, seed=3) * spread_out,
    }
    middle = "r1 w2 b2" if bias else "r1 w2"
    outer = "Gemm" if dense else "Conv"
    made = tiny.model(
        [
            node(outer, "x w1", "c1", "first"),
            node("Relu", "c1", "r1", "relu1"),
            node(op_type, middle, "c2", "middle"),
            node("Relu", "c2", "r2", "relu2"),
            node(outer, "r2 w3", "y", "last"),
        ],
        {"x": ["N", 3] if dense else ["N", 3, 4, 4]},
        {"y": ["N", 2] if dense else ["N", 2, 4, 4]},
        weights,
    )
    result = quantized(made, cpu, skip=("middle",))
    assert result.decision("middle") == "guarded"
    step = spread(result)["y"]
    for given in result.given:
        plain = tiny.run(result.content, given)["y"]
        kept = tiny.run(result.content, given, optimized=True)["y"]
        assert float(np.abs(kept - plain).max()) / step <= 1.001


@pytest.mark.parametrize("largest", [0.0, 1e-37, 1e-30])
def test_the_step_of_a_guarding_bias_is_a_normal_number(largest: float, cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Conv", "x w1", "c1", "first"),
            node("Conv", "c1 w2 b2", "c2", "middle"),
            node("Conv", "c2 w3", "y", "last"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4]},
        {
            "w1": normal(1, 3, 1, 1),
            "w2": normal(6, 1, 1, 1),
            "b2": np.full(6, largest, np.float32),
            "w3": normal(2, 6, 1, 1),
        },
    )
    result = quantized(made, cpu, skip=("middle",))
    assert result.decision("middle") == "guarded"
    assert result.constant("b2_guard_scale") >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("mover", ["MaxPool", "Reshape", "Transpose"])
def test_a_skipped_layer_behind_movers_stays_float(
    mover: str, cpu: TargetSpec, tmp_path: Any
) -> None:
    """Runtimes see through operators that only move data."""
    moved = {
        "MaxPool": node("MaxPool", "r1", "p", "mover", kernel_shape=[1, 1]),
        "Reshape": node("Reshape", "r1 shape", "p", "mover"),
        "Transpose": node("Transpose", "r1", "p", "mover", perm=[0, 1, 3, 2]),
    }[mover]
    made = sandwich("Conv")
    made.graph.node.insert(2, moved)
    middle = made.graph.node[3]
    assert middle.name == "middle"
    middle.input[0] = "p"
    made.graph.initializer.append(numpy_helper.from_array(np.array([-1, 6, 4, 4]), "shape"))
    result = quantized(made, cpu, skip=("middle",))
    assert result.decision("middle") == "guarded"
    assert_optimized_alike(result)
    assert executed(result.content, tmp_path)["QLinearConv"] == 2


def test_a_mover_in_front_of_a_skipped_first_layer_leaves_the_input_alone(cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Transpose", "x", "t", "transpose", perm=[0, 3, 1, 2]),
            node("Conv", "t w", "c", "first"),
            node("Relu", "c", "r", "relu"),
            node("Conv", "r v", "y", "second"),
        ],
        {"x": ["N", 4, 4, 3]},
        {"y": ["N", 2, 4, 4]},
        {"w": normal(4, 3, 1, 1), "v": normal(2, 4, 1, 1, seed=1)},
    )
    result = quantized(made, cpu, skip=("first",))
    assert set(result.plan.tensors) == {"r", "y"}
    assert result.decision("first") == "float"


def test_a_guard_fits_a_gemm_whose_input_is_transposed(cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("Reshape", "r shape", "s", "reshape"),
            node("Gemm", "s w2 b2", "y", "turned", transA=1),
        ],
        {"x": [1, 3, 5, 3]},
        {"y": [12, 6]},
        {
            "w": normal(4, 3, 1, 1),
            "w2": normal(5, 6),
            "b2": normal(6),
            "shape": np.array([5, 12]),
        },
    )
    result = quantized(made, cpu)
    assert result.decision("turned") == "guarded"
    assert_close(result)
    assert_optimized_alike(result)


def test_a_layer_without_constant_weights_still_runs(cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("Conv", "r k", "d", "dynamic"),
            node("Conv", "r w2", "e", "static"),
            node("Add", "d e", "y", "add"),
        ],
        {"x": ["N", 3, 4, 4], "k": [2, 4, 1, 1]},
        {"y": ["N", 2, 4, 4]},
        {"w": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1, seed=1)},
    )
    result = quantized(made, cpu)
    assert_close(result)
    assert_optimized_alike(result)


# -------------------------------------------------------------------------------- large biases


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_that_overflows_int32_is_kept(kind: str, per_channel: bool, cpu: TargetSpec) -> None:
    """Channel 0 has weights near nothing beside its bias; channel 1 is ordinary."""
    w = normal(2, 4, seed=1)
    w[0] *= 1e-9
    if not per_channel:
        w *= 1e-9
    b = np.array([3.0, -0.5], np.float32)
    if kind == "Conv":
        made = tiny.model(
            [node("Conv", "x w b", "c", "layer"), node("Conv", "c v", "y", "next")],
            {"x": ["N", 4, 3, 3]},
            {"y": ["N", 2, 3, 3]},
            {"w": w[:, :, None, None], "b": b, "v": np.eye(2, dtype=np.float32)[..., None, None]},
        )
    elif kind == "Gemm":
        made = tiny.model(
            [node("Gemm", "x w b", "y", "layer", transB=1)],
            {"x": ["N", 4]}, {"y": ["N", 2]}, {"w": w, "b": b},
        )  # fmt: skip
    else:
        made = tiny.model(
            [node("MatMul", "x w", "m", "layer"), node("Add", "m b", "y", "bias")],
            {"x": ["N", 4]}, {"y": ["N", 2]}, {"w": np.ascontiguousarray(w.T), "b": b},
        )  # fmt: skip
    result = quantized(made, cpu, per_channel=per_channel)
    step = spread(result)["y"]
    for one in result.given:
        wanted = tiny.run(result.floats, one)["y"]
        for optimized in (False, True):
            found = tiny.run(result.content, one, optimized=optimized)["y"]
            np.testing.assert_allclose(found, wanted, atol=2 * step)


# -------------------------------------------------------------------------------- shared things


def test_shared_weights_are_stored_once(cpu: TargetSpec) -> None:
    made = tiny.model(
        [node("Conv", "x w", "c1", "first"), node("Conv", "c1 w", "y", "second")],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 3, 4, 4]},
        {"w": normal(3, 3, 1, 1)},
    )
    result = quantized(made, cpu)
    codes = [one for one in result.proto.graph.initializer if list(one.dims) == [3, 3, 1, 1]]
    assert [one.data_type for one in codes] == [onnx.TensorProto.INT8]
    assert_close(result)


def test_weights_that_a_float_node_reads_too_stay_in_float_for_it(cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("MatMul", "x w", "m", "fc"),
            node("MatMul", "w m2", "k", "other"),
            node("Add", "m k", "y", "add"),
        ],
        {"x": [3, 3], "m2": [3, 3]},
        {"y": [3, 3]},
        {"w": normal(3, 3)},
    )
    result = quantized(made, cpu)
    assert_close(result)
    types = {one.data_type for one in result.proto.graph.initializer if list(one.dims) == [3, 3]}
    assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8}


def test_one_bias_for_two_layers_of_different_scales(cpu: TargetSpec) -> None:
    made = tiny.model(
        [node("Conv", "x w b", "c1", "first"), node("Conv", "c1 v b", "y", "second")],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 3, 4, 4]},
        {
            "w": normal(3, 3, 1, 1, scale=5.0),
            "v": normal(3, 3, 1, 1, scale=0.1, seed=1),
            "b": normal(3),
        },
    )
    result = quantized(made, cpu)
    assert_close(result)
    assert_optimized_alike(result)


def test_one_weight_widened_for_one_bias_only(cpu: TargetSpec) -> None:
    """Two layers share weights; the bias of one needs larger scales. Another is called w_1."""
    w = normal(3, 3, 1, 1) * np.float32(1e-9)
    made = tiny.model(
        [
            node("Conv", "x w", "c1", "first"),
            node("Conv", "x w b", "c2", "second"),
            node("Conv", "x w_1", "c3", "third"),
            node("Conv", "x w_1_quantized", "c4", "fourth"),
            node("Concat", "c1 c2 c3 c4", "k", "concat", axis=1),
            node("Conv", "k v", "y", "last"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4]},
        {
            "w": w,
            "b": normal(3, scale=3.0),
            "w_1": normal(3, 3, 1, 1, seed=4),
            "w_1_quantized": normal(3, 3, 1, 1, seed=5),
            "v": normal(2, 12, 1, 1, seed=6),
        },
    )
    assert_close(quantized(made, cpu))


@pytest.mark.parametrize(
    "name",
    ["c_scale", "c_zero_point", "c_quantized", "c_dequantized", "c_float", "w_dequantized",
     "w_scale", "b_quantized", "y_float", "c_quantize"],
)  # fmt: skip
def test_names_that_the_model_uses_already(name: str, cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Conv", "x w b", "c", "conv"),
            node("Tanh", "c", name, name),
            node("Add", f"c {name}", "a", "add"),
            node("Conv", "a v", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"c": ["N", 3, 4, 4], "y": ["N", 2, 4, 4]},
        {"w": normal(3, 3, 1, 1), "b": normal(3), "v": normal(2, 3, 1, 1, seed=1)},
    )
    result = quantized(made, cpu)
    names = [out for one in result.proto.graph.node for out in one.output]
    names += [one.name for one in result.proto.graph.initializer]
    assert len(names) == len(set(names))
    assert_close(result)


# --------------------------------------------------------------------------------------- outputs


def test_an_output_that_is_read_inside_keeps_its_name_and_shape(cpu: TargetSpec) -> None:
    result = quantized(tiny.two_outputs(), cpu)
    assert result.decision("conv2") == "integer"
    shapes = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in result.proto.graph.output
    }
    assert shapes == {"features": ["N", 4, 4, 4], "logits": ["N", 3]}
    # the output is what the next layer reads: every value is a multiple of the scale
    features = tiny.run(result.content, result.given[0])["features"]
    codes = features / result.parameters["features"].scale
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


def test_a_float_output_that_integers_read_too(cpu: TargetSpec) -> None:
    """A Gemm's result is an output and feeds another Gemm."""
    made = tiny.model(
        [node("Gemm", "x w b", "h", "first"), node("Gemm", "h v c", "y", "second")],
        {"x": ["N", 4]},
        {"h": ["N", 5], "y": ["N", 3]},
        {"w": normal(4, 5), "b": normal(5), "v": normal(5, 3, seed=1), "c": normal(3)},
    )
    result = quantized(made, cpu)
    assert_close(result)
    assert_optimized_alike(result)


def test_an_input_that_is_an_output(cpu: TargetSpec) -> None:
    made = tiny.model(
        [node("Conv", "x w", "y", "conv"), node("Identity", "x", "z", "copy")],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4], "z": ["N", 3, 4, 4]},
        {"w": normal(2, 3, 1, 1)},
    )
    result = quantized(made, cpu)
    given = result.given[0]
    np.testing.assert_array_equal(tiny.run(result.content, given)["z"], given["x"])


def test_one_tensor_twice_among_the_operands(cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Add", "c c", "a", "add"),
            node("Conv", "a v", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4]},
        {"w": normal(4, 3, 1, 1), "v": normal(2, 4, 1, 1, seed=1)},
    )
    result = quantized(made, cpu)
    assert_close(result)
    assert_optimized_alike(result, DEEP)


def test_a_body_reads_the_dequantized_value(cpu: TargetSpec) -> None:
    result = quantized(tiny.control_flow(), cpu, samples=[
        tiny.feeds(tiny.control_flow(), seed) for seed in range(4)
    ])  # fmt: skip
    if_node = result.nodes("If")[0]
    read = {
        name for attribute in if_node.attribute for one in attribute.g.node for name in one.input
    }
    assert "r_dequantized" in read


# ------------------------------------------------------------------------- degenerate activations


def test_a_tensor_that_is_always_zero(cpu: TargetSpec) -> None:
    made = tiny.residual()
    for one in made.graph.initializer:
        if one.name == "b1":
            one.CopyFrom(numpy_helper.from_array(np.full(4, -1000, np.float32), "b1"))
    result = quantized(made, cpu)
    assert float(result.parameters["r1"].scale) == pytest.approx(1 / 255)
    assert_close(result)
    assert_optimized_alike(result, DEEP)


# ----------------------------------------------------------------------------------- corrections


def layers(result: Result) -> dict[str, int]:
    """Output channels of every layer with weights, by its key."""
    types = {one.output[0]: one.op_type for one in result.floats.graph.node}
    keys = [one.node for one in result.plan.weights if types[one.node] in LINEAR]
    content = serialize(with_outputs(ir.from_proto(result.floats), keys))
    arrays = tiny.run(content, result.given[0])
    return {key: arrays[key].shape[1 if types[key].startswith("Conv") else -1] for key in keys}


def drawn(result: Result, seed: int = 0, *, gains: bool = True) -> dict[str, Correction]:
    """A correction for every layer: gains of 0.8 to 1.25 (one for all of a scale) and offsets."""
    draw = tiny.rng(seed)
    axis = {one.node: one.axis for one in result.plan.weights}
    found = {}
    for key, channels in layers(result).items():
        gain = draw.uniform(0.8, 1.25, channels) if axis[key] is not None else draw.uniform(0.8, 1)
        found[key] = Correction(
            gain=np.broadcast_to(gain if gains else 1.0, channels).astype(np.float64),
            offset=draw.normal(0, 0.2, channels),
        )
    return found


def float_results(spec: TargetSpec) -> TargetSpec:
    """A device whose layers, transposed ones among them, take any attributes and give floats."""
    conv = replace(spec.operators["Conv"], output="as_needed", attributes={})
    gemm = replace(spec.operators["Gemm"], attributes={})
    transposed = OperatorRule(quantize="always", output="as_needed", per_channel=True)
    rules = {"Conv": conv, "Gemm": gemm, "ConvTranspose": transposed}
    return replace(spec, operators={**spec.operators, **rules})


def layer(kind: str) -> onnx.ModelProto:
    """One layer whose result is the output."""
    picture, row = {"x": ["N", 4, 3, 3]}, {"x": [3, 4]}
    bias = {"b": normal(6, seed=1)}
    match kind.split():
        case ["Conv", *rest]:
            operands = "x w b" if "bias" in rest else "x w"
            nodes, ends = [node("Conv", operands, "y", "layer")], (picture, ["N", 6, 3, 3])
            constants = {"w": normal(6, 4, 1, 1)}
        case ["ConvTranspose", *rest]:
            groups = 2 if "groups" in rest else 1
            operands = "x w b" if "bias" in rest else "x w"
            nodes = [node("ConvTranspose", operands, "y", "layer", group=groups)]
            ends = (picture, ["N", 6, 4, 4])
            constants = {"w": normal(4, 6 // groups, 2, 2)}
        case ["Gemm", *rest]:
            operands = "x w b" if "bias" in rest else "x w"
            beta = {"beta": 0.5} if "beta" in rest else {}
            nodes, ends = [node("Gemm", operands, "y", "layer", **beta)], (row, [3, 6])
            constants = {"w": normal(4, 6)}
            if "row" in rest:
                bias = {"b": normal(3, 1, seed=1)}
            if "scalar" in rest:
                bias = {"b": np.array(0.3, np.float32)}
        case ["MatMul", *rest]:
            nodes = [node("MatMul", "x w", "m" if "bias" in rest else "y", "layer")]
            nodes += [node("Add", "m b", "y", "bias")] if "bias" in rest else []
            ends = ({"x": ["N", 5, 4]}, ["N", 5, 6]) if "3d" in rest else (row, [3, 6])
            constants = {"w": normal(4, 6)}
    has_bias = any("b" in one.input for one in nodes)
    return tiny.model(nodes, ends[0], {"y": ends[1]}, {**constants, **(bias if has_bias else {})})


LAYERS = [
    "Conv", "Conv bias", "ConvTranspose", "ConvTranspose bias", "ConvTranspose groups bias",
    "Gemm", "Gemm bias", "Gemm bias row", "Gemm bias scalar", "Gemm bias beta", "MatMul",
    "MatMul 3d", "MatMul bias", "MatMul bias 3d",
]  # fmt: skip


@pytest.mark.parametrize("bias", ["int32", "float"])
@pytest.mark.parametrize(
    ("kind", "per_channel"),
    # per channel, one scale would stand for a channel of every group
    [(kind, per) for kind in LAYERS for per in (True, False) if not (per and "groups" in kind)],
)
def test_a_corrected_layer_gives_gain_times_its_result_plus_offset(
    kind: str, per_channel: bool, bias: str, cpu: TargetSpec
) -> None:
    made, spec = layer(kind), replace(float_results(cpu), bias=bias)
    plain = quantized(made, spec, per_channel=per_channel)
    (key,) = layers(plain)
    corrections = drawn(plain)
    corrected = quantized(made, spec, per_channel=per_channel, corrections=corrections)
    shape = (-1, 1, 1) if made.graph.node[0].op_type.startswith("Conv") else (-1,)
    gain, offset = (one.reshape(shape) for one in (corrections[key].gain, corrections[key].offset))
    added = plain.constant("b") if kind.startswith("MatMul bias") and bias == "float" else 0.0
    if kind.startswith("MatMul bias") and bias == "int32":
        added = plain.constant("b_quantized") * plain.constant("b_scale")
    # biases are rounded to a step of s_x * s_w, by half a step before and after
    step = float(plain.parameters["x"].scale) * plain.constant("w_scale").max() * 1.25
    for one in plain.given:
        before, after = (tiny.run(model.content, one)["y"] for model in (plain, corrected))
        wanted = (before - added) * gain + offset + added
        np.testing.assert_allclose(after, wanted, atol=step * 1.01 + 1e-6)
        assert np.abs(after - before).max() > 3 * step
    (output,), (shown,) = corrected.proto.graph.output, plain.proto.graph.output
    assert output == shown, "the output keeps its name, type and shape"


@pytest.mark.parametrize("name", tiny.MODELS)
def test_corrections_that_change_nothing_change_nothing(name: str, cpu: TargetSpec) -> None:
    plain = quantized(tiny.MODELS[name](), cpu)
    ones = {
        key: Correction(gain=np.ones(channels), offset=np.zeros(channels))
        for key, channels in layers(plain).items()
    }
    corrected = quantized(tiny.MODELS[name](), cpu, corrections=ones)
    for one in plain.given[:2]:
        after = tiny.run(corrected.content, one)
        for output, array in tiny.run(plain.content, one).items():
            np.testing.assert_array_equal(after[output], array)
    if all(one.bias is not None for one in plain.plan.weights):
        assert corrected.content == plain.content


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_corrected_model_is_as_sound_as_another(
    name: str, cpu: TargetSpec, tmp_path: Any
) -> None:
    made = tiny.MODELS[name]()
    plain = quantized(made, cpu)
    result = quantized(made, cpu, corrections=drawn(plain))
    before, after = plain.proto.graph, result.proto.graph
    assert list(after.output) == list(before.output)
    names = [out for one in after.node for out in one.output]
    names += [one.name for one in after.initializer]
    assert len(names) == len(set(names))
    assert executed(result.content, tmp_path) == executed(plain.content, tmp_path)
    assert_optimized_alike(result, DEEP)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("Conv", "QLinearConv"),
        ("Gemm", "QGemm"),
        ("MatMul", "QGemm"),
        ("MatMul 3d", "MatMulIntegerToFloat"),
    ],
)
def test_a_layer_that_gets_a_bias_still_runs_in_integers(
    kind: str, kernel: str, cpu: TargetSpec, tmp_path: Any
) -> None:
    """With a float bias, onnxruntime makes a float Gemm of a MatMul and the Add behind it."""
    made = layer(kind)
    plain = quantized(made, cpu)
    result = quantized(made, cpu, corrections=drawn(plain))
    counts = executed(result.content, tmp_path)
    assert counts[kernel] == 1
    assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(counts)
    assert counts["Add"] == (kind == "MatMul 3d")
    assert_optimized_alike(result)


def test_a_product_without_bias_is_corrected_in_front_of_its_activation(cpu: TargetSpec) -> None:
    made = tiny.model(
        [
            node("MatMul", "x w", "m", "fc1"),
            node("Relu", "m", "r", "relu"),
            node("MatMul", "r v", "y", "fc2"),
            node("Shape", "y", "size", "shape"),
        ],
        {"x": ["N", 4]},
        [tiny.info("y", ["N", 3]), tiny.info("size", [2], onnx.TensorProto.INT64)],
        {"w": normal(4, 6), "v": normal(6, 3, seed=1)},
    )
    plain = quantized(made, cpu)
    offsets = drawn(plain, gains=False)
    offsets["m"] = replace(offsets["m"], offset=np.full(6, -100.0))  # nothing passes the Relu
    result = quantized(made, cpu, corrections=offsets)
    for one in plain.given:
        found = tiny.run(result.content, one)
        wanted = np.broadcast_to(offsets["y"].offset, found["y"].shape)
        step = float(plain.parameters["r"].scale) * plain.constant("v_scale").max()
        np.testing.assert_allclose(found["y"], wanted, atol=step)
        assert list(found["size"]) == list(wanted.shape)


def test_shared_codes_with_a_scale_for_each_layer(cpu: TargetSpec) -> None:
    made = tiny.model(
        [node("Conv", "x w", "c1", "first"), node("Conv", "c1 w", "y", "second")],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 3, 4, 4]},
        {"w": normal(3, 3, 1, 1)},
    )
    plain = quantized(made, cpu)
    corrections = drawn(plain)
    result = quantized(made, cpu, corrections=corrections)
    codes = [one.name for one in result.proto.graph.initializer if list(one.dims) == [3, 3, 1, 1]]
    assert len(codes) == 1
    np.testing.assert_array_equal(result.constant(codes[0]), plain.constant("w_quantized"))
    own = [one for one in result.nodes("DequantizeLinear") if one.input[0] == codes[0]]
    scales = {result.constant(one.input[1]).tobytes() for one in own}
    base = plain.constant("w_scale").astype(np.float64)
    corrected = [(base * one.gain).astype(np.float32) for one in corrections.values()]
    assert scales == {one.tobytes() for one in corrected}
    assert_optimized_alike(result)


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_large_bias_still_fits_with_the_smallest_gain(gain: float, cpu: TargetSpec) -> None:
    """The bias is stored in units of the corrected scale, half as large at worst."""
    made = layer("Conv bias")
    for one in made.graph.initializer:
        if one.name == "w":
            one.CopyFrom(numpy_helper.from_array(normal(6, 4, 1, 1) * np.float32(1e-12), "w"))
    plain = quantized(made, cpu)
    given = {key: Correction(gain=np.full(count, gain), offset=np.zeros(count))
             for key, count in layers(plain).items()}  # fmt: skip
    result = quantized(made, cpu, corrections=given)
    assert np.abs(result.constant("b_quantized").astype(np.float64)).max() <= 2**30
    stored = result.constant("b_quantized") * result.constant("b_scale").astype(np.float64)
    np.testing.assert_allclose(stored, normal(6, seed=1) * gain, rtol=1e-6)


def test_names_of_what_corrections_add(cpu: TargetSpec) -> None:
    """The model's own tensors are called as the new bias, its codes and the Add would be."""
    made = tiny.model(
        [
            node("MatMul", "x w", "m", "fc"),
            node("Tanh", "m", "fc_bias", "fc_correct"),
            node("Sigmoid", "m", "m_corrected", "sigmoid"),
            node("Add", "fc_bias m_corrected", "a", "add"),
            node("Gemm", "a v", "g", "head"),
            node("Tanh", "g", "head_bias_quantized", "tanh"),
            node("Add", "g head_bias_quantized", "y", "sum"),
        ],
        {"x": ["N", 4]},
        {"y": ["N", 3]},
        {"w": normal(4, 6), "v": normal(6, 3, seed=1)},
    )
    plain = quantized(made, cpu)
    result = quantized(made, cpu, corrections=drawn(plain))
    names = [out for one in result.proto.graph.node for out in one.output]
    names += [one.name for one in result.proto.graph.initializer]
    assert len(names) == len(set(names))
    assert_optimized_alike(result, DEEP)
