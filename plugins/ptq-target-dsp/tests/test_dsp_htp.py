"""Qualcomm's HTP library runs all of what is quantized by these rules, and gives the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptq_core import quantize
from ptq_core.jobs import Report
from ptq_target_dsp import ptq_targets
from ptq_target_dsp.conditions import rounds_alike
from ptq_target_dsp.findings import find
from tests import htp

pytestmark = pytest.mark.skipif(bool(htp.missing()), reason=htp.missing())

(ENTRY,) = ptq_targets()
SHAPE = [1, 8, 6, 6]
SAMPLES = 4

# A code is rounded to the other neighbour at times, once or twice on the way.
STEPS = {"LogSoftmax": 2, "Reciprocal": 2, "Resize linear": 2, "Resize cubic": 2}
# Of 65536 steps: as good as 11 bits, some results as 9 or 7.
FINE_STEPS = 40
COARSE = {"Sqrt": 80, "Pow half": 80, "MatMul two": 320, "Softplus": 400}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(normal(*shape)) + np.float32(0.3)


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    ins = ["" if one == "_" else one for one in inputs.split()]
    return helper.make_node(op_type, ins, outputs.split(), f"{op_type}_{outputs}", **attributes)


K = {
    "k": normal(8, 1, 1), "two": np.float32(2), "half": np.float32(0.5), "eight": np.float32(8),
    "slopes": positive(8, 1, 1), "zero": np.float32(0), "one": np.float32(1),
    "low": np.float32(0.1),
    "shape": np.array([1, 8, 36]), "axis": np.array([1]), "first": np.array([0]),
    "starts": np.array([1]), "ends": np.array([5]), "rows": np.array([0, 2, 1, 3]),
    "expand": np.array([2, 8, 6, 6]), "tile": np.array([1, 1, 2, 1]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "sizes": np.array([1, 1, 2, 2], np.float32),
    "gamma": positive(6), "beta": normal(6), "square": normal(6, 5), "mask": normal(*SHAPE) > 0,
    "flat": np.array([1, 288]), "dense": normal(288, 4) / 9, "turned": normal(4, 288) / 9,
    "where": np.zeros((1, 8, 6, 2), np.int64), "corner": np.zeros((1, 2), np.int64),
    "conv": normal(8, 8, 3, 3) / 5, "depth": normal(8, 1, 3, 3) / 3, "up": normal(8, 4, 2, 2) / 5,
    "bias": normal(4),
}  # fmt: skip

# Operator (and what is special): nodes from x (or p, which is positive) to y.
CASES: dict[str, list[onnx.NodeProto]] = {
    "Conv Relu": [node("Conv", "x conv", "c"), node("Relu", "c")],
    "Conv depthwise": [node("Conv", "x depth", group=8)],
    "ConvTranspose": [node("ConvTranspose", "x up", strides=[2, 2])],
    "ConvTranspose groups": [node("ConvTranspose", "x up", strides=[2, 2], group=2)],
    "Gemm": [node("Reshape", "x flat", "f"), node("Gemm", "f dense bias")],
    "Gemm transposed": [node("Reshape", "x flat", "f"), node("Gemm", "f turned", transB=1)],
    "MatMul weights": [node("MatMul", "x square")],
    "MatMul two": [node("MatMul", "x q")],
    "Add": [node("Add", "x p")],
    "Add constant": [node("Add", "x k")],
    "Sub": [node("Sub", "x p")],
    "Sub from": [node("Sub", "one x")],
    "Mul": [node("Mul", "x p")],
    "Div": [node("Div", "x p")],
    "Div constant": [node("Div", "x eight")],
    "Min": [node("Min", "x p")],
    "Max": [node("Max", "x q")],
    "Sum": [node("Sum", "x p q")],
    "Mean": [node("Mean", "x p q")],
    "Pow": [node("Pow", "x two")],
    "Pow half": [node("Pow", "p half")],
    "PRelu": [node("PRelu", "x slopes")],
    "Where": [node("Where", "mask x p")],
    "Where constant": [node("Where", "mask x eight")],
    "Relu": [node("Relu", "x")],
    "Clip": [node("Clip", "x zero one")],
    "Clip without zero": [node("Clip", "p low one")],
    "LeakyRelu": [node("LeakyRelu", "x", alpha=0.1)],
    "Elu": [node("Elu", "x")],
    "Gelu": [node("Gelu", "x")],
    "Gelu tanh": [node("Gelu", "x", approximate="tanh")],
    "HardSwish": [node("HardSwish", "x")],
    "HardSigmoid": [node("HardSigmoid", "x")],
    "Softplus": [node("Softplus", "x")],
    "Exp": [node("Exp", "x")],
    "Log": [node("Log", "p")],
    "Sqrt": [node("Sqrt", "p")],
    "Reciprocal": [node("Reciprocal", "p")],
    "Neg": [node("Neg", "x")],
    "Abs": [node("Abs", "x")],
    "Sign": [node("Sign", "x")],
    "Sin": [node("Sin", "x")],
    "Cos": [node("Cos", "x")],
    "Ceil": [node("Ceil", "x")],
    "Floor": [node("Floor", "x")],
    "Round": [node("Round", "x")],
    "Sigmoid": [node("Sigmoid", "x")],
    "Tanh": [node("Tanh", "x")],
    "Softmax": [node("Softmax", "x")],
    "LogSoftmax": [node("LogSoftmax", "x")],
    "LayerNormalization": [node("LayerNormalization", "x gamma beta")],
    "LpNormalization": [node("LpNormalization", "x", axis=-1)],
    "ReduceMean": [node("ReduceMean", "x axis")],
    "ReduceSum": [node("ReduceSum", "x axis", keepdims=0)],
    "ReduceMax": [node("ReduceMax", "x axis")],
    "ReduceMin": [node("ReduceMin", "x axis")],
    "ReduceL2": [node("ReduceL2", "x axis")],
    "GlobalAveragePool": [node("GlobalAveragePool", "x")],
    "AveragePool": [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
    "AveragePool counted": [
        node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    ],
    "MaxPool": [node("MaxPool", "x", kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1)],
    "GlobalMaxPool": [node("GlobalMaxPool", "x")],
    "Reshape": [node("Reshape", "x shape")],
    "Transpose": [node("Transpose", "x", perm=[0, 2, 3, 1])],
    "Flatten": [node("Flatten", "x")],
    "Squeeze": [node("Squeeze", "x first")],
    "Unsqueeze": [node("Unsqueeze", "x first")],
    "Slice": [node("Slice", "x starts ends axis")],
    "Split": [node("Split", "x", "s y", axis=1, num_outputs=2)],
    "Gather": [node("Gather", "x rows", axis=1)],
    "Gather table": [node("Gather", "square i")],
    "GatherElements": [node("GatherElements", "x where", axis=3)],
    "GatherND": [node("GatherND", "x corner")],
    "Expand": [node("Expand", "x expand")],
    "Tile": [node("Tile", "x tile")],
    "DepthToSpace": [node("DepthToSpace", "x", blocksize=2)],
    "SpaceToDepth": [node("SpaceToDepth", "x", blocksize=2)],
    "Pad": [node("Pad", "p pads")],
    "Concat": [node("Concat", "x p", axis=1)],
    "Concat constant": [node("Concat", "x mean", axis=1)],
    "Resize nearest": [node("Resize", "x _ sizes", mode="nearest")],
    "Resize linear": [node("Resize", "x _ sizes", mode="linear")],
    "Resize cubic": [node("Resize", "x _ sizes", mode="cubic")],
    "Cast": [node("Cast", "i", "f", to=1), node("Mul", "f two")],
}
K["mean"] = normal(*SHAPE, seed=5)


def test_every_operator_has_a_case() -> None:
    wanted = {name for name, rule in ENTRY.spec.operators.items() if rule.quantize != "never"}
    assert wanted <= {name.split()[0] for name in CASES}


def quantized(
    folder: Path, nodes: list[onnx.NodeProto], bits: int = 8, *, ends: bool = False
) -> tuple[Path, list[dict[str, np.ndarray]], Report]:
    """A model of these nodes beside a convolution, without which there is nothing to quantize."""
    nodes = [*nodes, node("Conv", "x depth", "beside", group=8)]
    read = {name for one in nodes for name in one.input}
    draw = np.random.default_rng(3)

    def sample() -> dict[str, np.ndarray]:
        every = {
            "x": draw.standard_normal(SHAPE).astype(np.float32),
            "p": np.abs(draw.standard_normal(SHAPE)).astype(np.float32) + np.float32(0.3),
            "q": draw.standard_normal(SHAPE).astype(np.float32),
            "i": draw.integers(0, 6, (1, 7)),
        }
        return {name: value for name, value in every.items() if name in read}

    samples = [sample() for _ in range(SAMPLES)]
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, kinds[array.dtype.kind], array.shape)
            for name, array in samples[0].items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "beside")],
        [numpy_helper.from_array(np.asarray(K[one]), one) for one in sorted(read & set(K))],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    path = folder / "float.onnx"
    onnx.save(made, path)
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {
            "activation_quant_method": "MAX_MIN",
            "target_device": "DSP",
            "bias_correction": False,
        },
        "target.DSP": {"activation_bits": bits, "integer_inputs_outputs": ends},
    }
    report = quantize(path, folder / "int8.onnx", config=config, data=samples)
    return folder / "int8.onnx", samples, report


def output_scale(path: Path, name: str) -> float:
    graph = onnx.load(path).graph
    constants = {one.name: one for one in graph.initializer}
    made = {out: one for one in graph.node for out in one.output}
    return float(numpy_helper.to_array(constants[made[name].input[1]]))


def steps(path: Path, samples: list[dict[str, np.ndarray]]) -> float:
    """How many steps of the result the HTP is from what the file says.

    Nothing but the conversions at inputs and outputs is left to the CPU: on the HTP they round in
    their own way, which is not what is looked at here.
    """
    session, reference = htp.open_htp(path, strict=False), htp.open_reference(path)
    floats = sum(array.dtype == np.float32 for array in samples[0].values())
    outputs = len(session.get_outputs())
    assert htp.on_cpu(session) == {"QuantizeLinear": floats, "DequantizeLinear": outputs}
    scale = output_scale(path, "y")
    return max(
        float(np.abs(session.run(["y"], one)[0] - reference.run(["y"], one)[0]).max()) / scale
        for one in samples
    )


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str, tmp_path: Path) -> None:
    path, samples, report = quantized(tmp_path, CASES[name])
    left = {one.op_type for one in report.plan.nodes if one.decision == "float"}
    assert left <= {"Cast"}
    assert steps(path, samples) <= STEPS.get(name, 1) + 0.01


WIDE = (
    "Conv Relu", "Conv depthwise", "ConvTranspose groups", "Gemm", "MatMul weights", "MatMul two",
    "Add", "Mul", "Div", "Where", "PRelu", "Gelu", "HardSigmoid", "Sigmoid", "Tanh", "Exp", "Sqrt",
    "Softplus", "Softmax", "LayerNormalization", "ReduceMean", "AveragePool", "Concat",
    "Gather table", "Resize linear",
)  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_operators_of_16_bits(name: str, tmp_path: Path) -> None:
    path, samples, _ = quantized(tmp_path, CASES[name], bits=16)
    assert steps(path, samples) <= COARSE.get(name, FINE_STEPS) + 0.01


def test_a_logarithm_of_16_bits_stays_float(tmp_path: Path) -> None:
    path, samples, report = quantized(tmp_path, CASES["Log"], bits=16)
    (decided,) = (one for one in report.plan.nodes if one.op_type == "Log")
    assert decided.reason == "the HTP's Log of 16-bit integers is wrong"
    session, reference = htp.open_htp(path, strict=False), htp.open_reference(path)
    for one in samples:
        found, wanted = (each.run(["y"], one)[0] for each in (session, reference))
        np.testing.assert_allclose(found, wanted, atol=1e-3)


# ------------------------------------------------------------------------- several nodes together


GELU = [
    node("Div", "x root", "d"),
    node("Erf", "d", "e"),
    node("Add", "e one", "a"),
    node("Mul", "x a", "m"),
    node("Mul", "m half"),
]
NORMALIZED = [
    node("ReduceMean", "x last", "m"),
    node("Sub", "x m", "d"),
    node("Pow", "d two", "s"),
    node("ReduceMean", "s last", "v"),
    node("Add", "v tiny", "w"),
    node("Sqrt", "w", "r"),
    node("Div", "d r", "n"),
    node("Mul", "n gamma", "g"),
    node("Add", "g beta"),
]
LENGTH = [
    node("Reshape", "x flat", "f"),
    node("ReduceL2", "f axis", "n"),
    node("Clip", "n tiny", "c"),
    node("Div", "f c"),
]
K |= {
    "root": np.float32(np.sqrt(2)), "last": np.array([-1]), "tiny": np.float32(1e-12),
}  # fmt: skip


@pytest.mark.parametrize("nodes", [GELU, NORMALIZED, LENGTH], ids=["Gelu", "normalized", "length"])
def test_what_exporters_write_as_several_operators(
    nodes: list[onnx.NodeProto], tmp_path: Path
) -> None:
    path, samples, report = quantized(tmp_path, nodes)
    assert any("put together" in one for one in report.notes)
    assert steps(path, samples) <= 1.01


MASKS = {
    "added": [
        node("Less", "three u", "m"),
        node("Cast", "m", "seen", to=TensorProto.FLOAT),
        node("Sub", "one seen", "hidden"),
        node("Mul", "hidden minus", "added"),
        node("Add", "t added", "s"),
    ],
    "chosen, then added": [
        node("Less", "u three", "m"),
        node("Where", "m minus zero", "added"),
        node("Add", "t added", "s"),
    ],
    "chosen": [node("Less", "u three", "m"), node("Where", "m minus t", "s")],
    "constant": [node("Add", "t causal", "s")],
}
K |= {
    "start": np.array([0]), "six": np.array([6]),
    "three": np.array(3), "minus": np.float32(np.finfo(np.float32).min),
    "causal": np.triu(np.full((6, 6), -np.inf, np.float32), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str, tmp_path: Path) -> None:
    """Minus infinity, however it is written, leaves codes for the rest, on the HTP, too."""
    before = [node("MatMul", "x q", "t"), node("Slice", "i start six axis", "u")]
    behind = [node("Softmax", "s", "share"), node("MatMul", "share x")]
    path, samples, _ = quantized(tmp_path, [*before, *MASKS[name], *behind])
    session, floats = htp.open_htp(path, strict=False), htp.open_reference(tmp_path / "float.onnx")
    left = htp.on_cpu(session)
    assert set(left) <= {"QuantizeLinear", "DequantizeLinear"}
    for one in samples:
        wanted, found = (each.run(["y"], one)[0] for each in (floats, session))
        assert np.abs(found - wanted).max() < 0.04 * np.ptp(wanted)


def test_integer_inputs_and_outputs(tmp_path: Path) -> None:
    path = quantized(tmp_path, CASES["Conv Relu"], ends=True)[0]
    session, reference = htp.open_htp(path), htp.open_reference(path)
    (given,) = session.get_inputs()
    assert given.type == "tensor(uint8)"
    assert {one.type for one in session.get_outputs()} == {"tensor(uint8)"}
    assert not htp.on_cpu(session)
    codes = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    found, wanted = (each.run(None, {"x": codes}) for each in (session, reference))
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


# ---------------------------------------------------------------------- what is taken for nearest


@pytest.mark.parametrize("scale", [2.0, 1.5])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("form", ["half_pixel", "align_corners", "asymmetric"])
def test_the_nearest_element(form: str, rounding: str, scale: float) -> None:
    """What is said to round alike gives the same numbers, in float as well."""
    attributes = {"coordinate_transformation_mode": form, "nearest_mode": rounding}
    resize = node("Resize", "x _ scales", mode="nearest", **attributes)
    scales = numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", SHAPE), ("y", None))
    ]
    graph = helper.make_graph([resize], "tiny", ends[:1], ends[1:], [scales])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    alike = rounds_alike(attributes, 6, int(6 * scale))
    codes = [one.code for one in find(made.SerializeToString())]
    assert codes == ([] if alike else ["DSP-RESIZE-NEAREST"])
    if not alike:
        return
    given = {"x": normal(*SHAPE)}
    try:
        session = htp.open_htp(made.SerializeToString(), strict=False)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no base of their own
        pytest.skip(f"the library does not compile it: {str(error)[:80]}")
    reference = htp.open_reference(made.SerializeToString())
    np.testing.assert_array_equal(*(one.run(None, given)[0] for one in (session, reference)))
