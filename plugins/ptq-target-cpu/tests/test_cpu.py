"""The runtime really executes integer kernels by these rules, and they give the numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptq_core import quantize
from ptq_core.api import QScheme
from ptq_target_cpu import ptq_targets

(ENTRY,) = ptq_targets()

# onnxruntime computes with integers where the graph has floats between Q/DQ pairs: a code may be
# rounded to the other neighbour. Through two layers that is up to three steps of an output.
STEPS = 3.0
SAMPLES = 8


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    ins = ["" if one == "_" else one for one in inputs.split()]
    return helper.make_node(op_type, ins, outputs.split(), f"{op_type}_{outputs}", **attributes)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    shape: list[Any],
    constants: dict[str, np.ndarray],
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> Path:
    def info(name: str, dims: list[Any] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [info("x", shape)],
        [info(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    onnx.checker.check_model(made, full_check=True)
    path.write_bytes(made.SerializeToString())
    return path


def session(path: Path, *, optimized: bool, saved: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Case:
    """A model, quantized; what is executed, and how far the numbers are apart."""

    def __init__(
        self,
        folder: Path,
        nodes: list[onnx.NodeProto],
        shape: list[Any],
        constants: dict[str, np.ndarray],
        skip: tuple[str, ...] = (),
        **given: Any,
    ) -> None:
        path = save(folder / "float.onnx", nodes, shape, constants, **given)
        draw = np.random.default_rng(1)
        dims = [dim if isinstance(dim, int) else 1 for dim in shape]
        data = [draw.standard_normal(dims).astype(np.float32) for _ in range(SAMPLES)]
        self.report = quantize(path, folder / "int8.onnx", data=data, target="CPU", skip=skip)
        fast = session(folder / "int8.onnx", optimized=True, saved=folder / "executed.onnx")
        executed = onnx.load(folder / "executed.onnx").graph
        self.executed = Counter(one.op_type for one in executed.node)
        plain = session(folder / "int8.onnx", optimized=False)
        floats = session(path, optimized=False)
        self.steps, self.cosine = 0.0, 1.0
        results = [
            [one.run(None, {"x": sample}) for one in (floats, plain, fast)] for sample in data
        ]
        for i in range(len(results[0][0])):
            wanted, simulated, found = (
                np.stack([row[kind][i] for row in results]).astype(np.float64) for kind in range(3)
            )
            step = max(float(np.ptp(wanted)), 1e-9) / 255
            self.steps = max(self.steps, float(np.abs(simulated - found).max()) / step)
            norms = np.linalg.norm(wanted) * np.linalg.norm(found)
            self.cosine = min(self.cosine, float((wanted * found).sum() / norms))

    def decision(self, op_type: str) -> set[str]:
        return {one.decision for one in self.report.plan.nodes if one.op_type == op_type}

    def assert_integer(self, kernel: str, *floats: str) -> None:
        """The kernel is executed, none of the float operators is, and the numbers are right."""
        assert self.executed[kernel] >= 1, self.executed
        left = {one for one in floats if self.executed[one] or self.executed[f"Fused{one}"]}
        assert not left, self.executed
        assert self.executed["Conv"] == self.executed["FusedConv"] == 0, self.executed
        self.assert_close()
        assert not [one for one in self.report.warnings if "run in float" in one]

    def assert_close(self) -> None:
        assert self.steps <= STEPS
        assert self.cosine >= 0.995


def test_the_entry() -> None:
    assert ENTRY.name == "CPU"
    assert ENTRY.spec.activation == QScheme(dtype="uint8")
    assert ENTRY.spec.weight == QScheme(dtype="int8", symmetric=True, narrow_range=True)
    assert ENTRY.spec.bias == "int32"
    assert ENTRY.spec.skip_guard == "per_axis_dequantize"


@pytest.mark.parametrize("op_type", sorted(ENTRY.spec.operators))
def test_rules_are_about_operators_of_onnx_and_their_attributes(op_type: str) -> None:
    schema = onnx.defs.get_schema(op_type, 17, "")
    rule = ENTRY.spec.operators[op_type]
    assert set(rule.attributes) <= set(schema.attributes)
    assert set(rule.fuse) <= {"Relu", "Clip"}
    assert rule.quantize != "never" or rule.reason


# ------------------------------------------------------------------------- layers with weights

CONVOLUTIONS = {
    "plain": ([1, 4, 6, 6], (8, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ([1, 4, 6, 6], (8, 4, 3, 3), {"strides": [2, 2]}),
    "dilated": ([1, 4, 6, 6], (8, 4, 3, 3), {"dilations": [2, 2]}),
    "same": ([1, 4, 6, 6], (8, 4, 3, 3), {"auto_pad": "SAME_UPPER"}),
    "pointwise": ([1, 4, 6, 6], (8, 4, 1, 1), {}),
    "depthwise": ([1, 4, 6, 6], (4, 1, 3, 3), {"group": 4}),
    "depthwise x2": ([1, 4, 6, 6], (8, 1, 3, 3), {"group": 4}),
    "grouped": ([1, 4, 6, 6], (8, 2, 3, 3), {"group": 2}),
    "one dimension": ([1, 4, 12], (8, 4, 3), {}),
    "three dimensions": ([1, 4, 4, 4, 4], (8, 4, 2, 2, 2), {}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["", "Relu"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, activation: str, bias: bool, tmp_path: Path) -> None:
    shape, kernel, attributes = CONVOLUTIONS[name]
    constants = {"w": weights(*kernel), "b": weights(kernel[0], seed=1)}
    inputs = "x w b" if bias else "x w"
    nodes = [node("Conv", inputs, "c" if activation else "y", **attributes)]
    if activation:
        nodes.append(node(activation, "c", "y"))
    case = Case(tmp_path, nodes, shape, constants)
    case.assert_integer("QLinearConv", "Relu")


BOUNDS = {"low": np.array(-1, np.float32), "zero": np.array(0, np.float32),
          "six": np.array(6, np.float32), "tenth": np.array(0.1, np.float32)}  # fmt: skip


@pytest.mark.parametrize("bounds", ["zero six", "low six", "zero", "_ six", "low tenth"])
def test_clips_are_dropped(bounds: str, tmp_path: Path) -> None:
    constants = {"w": weights(8, 4, 1, 1) * 5, "b": weights(8), "v": weights(4, 8, 1, 1), **BOUNDS}
    nodes = [
        node("Conv", "x w b", "c"),
        node("Clip", f"c {bounds}", "r"),
        node("Conv", "r v", "y"),
    ]
    case = Case(tmp_path, nodes, [1, 4, 6, 6], constants)
    case.assert_integer("QLinearConv", "Clip")
    assert case.executed["QLinearConv"] == 2


def test_clips_with_attributes_are_dropped(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Clip", "c", "r", min=0.0, max=6.0),
        node("Conv", "r v", "y"),
    ]
    constants = {"w": weights(8, 4, 1, 1) * 5, "v": weights(4, 8, 1, 1)}
    case = Case(tmp_path, nodes, [1, 4, 6, 6], constants, opset=9)
    case.assert_integer("QLinearConv", "Clip")


def test_clips_whose_bounds_exclude_zero_stay(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Clip", "c tenth six", "r"),
        node("Conv", "r v", "y"),
    ]
    constants = {"w": weights(8, 4, 1, 1) * 5, "v": weights(4, 8, 1, 1), **BOUNDS}
    case = Case(tmp_path, nodes, [1, 4, 6, 6], constants)
    case.assert_close()
    assert case.executed["QLinearConv"] == 2


GEMMS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None, bool]] = {
    # attributes, shape of C, whether it becomes integer
    "plain": ({}, (6,), True),
    "transB": ({"transB": 1}, (6,), True),
    "no C": ({}, None, True),
    "scalar C": ({}, (), True),
    "one C": ({}, (1,), True),
    "row C": ({}, (1, 6), True),
    "column C": ({}, (4, 1), True),
    "square column C": ({}, (6, 1), True),
    "matrix C": ({}, (4, 6), True),
    "beta": ({"beta": 0.5}, (6,), False),
    "alpha": ({"alpha": 2.0}, (6,), False),
}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", GEMMS)
def test_gemms(name: str, last: bool, tmp_path: Path) -> None:
    attributes, bias, integer = GEMMS[name]
    rows = 6 if name == "square column C" else 4
    constants = {"w": weights(5, 6), "k": weights(6, 3, seed=2), "d": weights(3, seed=3)}
    if attributes.get("transB"):
        constants["w"] = np.ascontiguousarray(constants["w"].T)
    if bias is not None:
        constants["b"] = weights(*bias, seed=1)
    last = last and integer  # else there is nothing to quantize
    nodes = [node("Gemm", "x w" if bias is None else "x w b", "y" if last else "g", **attributes)]
    if not last:
        nodes += [node("Relu", "g", "r"), node("Gemm", "r k d", "y")]
    case = Case(tmp_path, nodes, [rows, 5], constants)
    case.assert_close()
    assert case.decision("Gemm") == ({"integer"} if integer else {"integer", "float"})
    if integer and (bias is None or bias in ((6,), (1, 6), (), (1,))):
        case.assert_integer("QGemm", "Gemm", "MatMul")


@pytest.mark.parametrize("shape", [[4, 5], ["N", 5], [2, 3, 5], ["N", "S", 5]])
@pytest.mark.parametrize("bias", ["", "m b", "b m"])
@pytest.mark.parametrize("activation", ["", "Relu"])
@pytest.mark.parametrize("last", [True, False])
def test_matmuls(shape: list[Any], bias: str, activation: str, last: bool, tmp_path: Path) -> None:
    """No float product is left; the weights are not dequantized on every run."""
    constants = {"w": weights(5, 6), "b": weights(6, seed=1), "k": weights(6, 3, seed=2)}
    nodes = [node("MatMul", "x w", "m")]
    if bias:
        nodes.append(node("Add", bias, "a"))
    if activation:
        nodes.append(node(activation, nodes[-1].output[0], "r"))
    if not last:
        nodes.append(node("MatMul", f"{nodes[-1].output[0]} k", "z"))
    nodes[-1].output[0] = "y"
    case = Case(tmp_path, nodes, shape, constants)
    kernel = next(
        (one for one in ("QGemm", "MatMulIntegerToFloat", "QLinearMatMul") if case.executed[one]),
        "an integer product",
    )
    case.assert_integer(kernel, "Gemm", "MatMul")
    assert case.executed["DequantizeLinear"] <= (1 if last else 2)  # biases: a few numbers


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_an_activation_between_a_layer_and_a_float_operator(
    kind: str, activation: str, tmp_path: Path
) -> None:
    constants = {"w": weights(5, 6), "b": weights(6, seed=1), **BOUNDS}
    nodes = [node("Gemm", "x w b", "a")]
    if kind == "MatMul":
        nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a")]
    bounds = " zero six" if activation == "Clip" else ""
    nodes += [node(activation, f"a{bounds}", "r"), node("Tanh", "r", "y")]
    case = Case(tmp_path, nodes, ["N", 5], constants)
    case.assert_integer("QGemm", "Gemm", "MatMul")


def test_transposed_convolutions_stay_float(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("ConvTranspose", "r u", "t", strides=[2, 2]),
        node("Relu", "t", "s"),
        node("Conv", "s v", "y"),
    ]
    constants = {"w": weights(8, 4, 1, 1), "u": weights(8, 6, 2, 2), "v": weights(4, 6, 1, 1)}
    case = Case(tmp_path, nodes, [1, 4, 6, 6], constants)
    case.assert_close()
    assert case.decision("ConvTranspose") == {"guarded"}
    assert case.executed["ConvTranspose"] == 1
    assert case.executed["QLinearConv"] == 2


# ------------------------------------------------------------------- between two convolutions

K = {"pads": np.array([0, 0, 0, 0]), "two": np.array([2]), "shape": np.array([1, 8, 36]),
     "axes": np.array([1]), "starts": np.array([1]), "ends": np.array([5]),
     "rows": np.array([0, 2, 1, 3]), "tile": np.array([1, 1, 2, 1]),
     "sizes": np.array([1, 1, 2, 2], np.float32), "k": weights(8, 1, 1, seed=9),
     "expand": np.array([2, 8, 6, 6])}  # fmt: skip

# what stands between two convolutions: nodes from c to m, the executed kernel, what must be gone
BETWEEN: dict[str, tuple[list[onnx.NodeProto], str, tuple[str, ...], int]] = {
    "Relu": ([node("Relu", "c", "m")], "QLinearConv", ("Relu",), 8),
    "Add": ([node("Add", "c c", "m")], "QLinearAdd", ("Add",), 8),
    "Add const": ([node("Relu", "c", "r"), node("Add", "r k", "m")], "QLinearAdd", ("Add",), 8),
    "const Add": ([node("Relu", "c", "r"), node("Add", "k r", "m")], "QLinearAdd", ("Add",), 8),
    "Add Relu": (
        [node("Relu", "c", "r"), node("Add", "c r", "a"), node("Relu", "a", "m")],
        "QLinearAdd", ("Add", "Relu"), 8,
    ),
    "Mul": ([node("Relu", "c", "r"), node("Mul", "r c", "m")], "QLinearMul", ("Mul",), 8),
    "Mul const": ([node("Relu", "c", "r"), node("Mul", "r k", "m")], "QLinearMul", ("Mul",), 8),
    "Sigmoid": ([node("Sigmoid", "c", "m")], "QLinearSigmoid", ("Sigmoid",), 8),
    "SiLU": (
        [node("Sigmoid", "c", "s"), node("Mul", "c s", "m")],
        "QLinearSigmoid", ("Sigmoid", "Mul"), 8,
    ),
    "LeakyRelu": (
        [node("LeakyRelu", "c", "m", alpha=0.1)], "QLinearLeakyRelu", ("LeakyRelu",), 8
    ),
    "Concat": (
        [node("Relu", "c", "r"), node("Concat", "c r", "m", axis=1)],
        "QLinearConcat", ("Concat", "Relu"), 16,
    ),
    "Concat Relu": (
        [node("Concat", "c c", "k2", axis=1), node("Relu", "k2", "m")],
        "QLinearConcat", ("Concat",), 16,
    ),
    "MaxPool": ([node("MaxPool", "c", "m", kernel_shape=[2, 2])], "NhwcMaxPool", ("MaxPool",), 8),
    "MaxPool ceil": (
        [node("MaxPool", "c", "m", kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1)],
        "NhwcMaxPool", ("MaxPool",), 8,
    ),
    "MaxPool Relu": (
        [node("MaxPool", "c", "p", kernel_shape=[2, 2]), node("Relu", "p", "m")],
        "QLinearConv", (), 8,
    ),
    "AveragePool": (
        [node("AveragePool", "c", "m", kernel_shape=[2, 2])],
        "QLinearAveragePool", ("AveragePool",), 8,
    ),
    "AveragePool padded": (
        [node("AveragePool", "c", "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        "QLinearAveragePool", ("AveragePool",), 8,
    ),
    "AveragePool padded, counted": (
        [node("AveragePool", "c", "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
              count_include_pad=1)],
        "QLinearAveragePool", ("AveragePool",), 8,
    ),
    "AveragePool ceil": (
        [node("AveragePool", "c", "m", kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1)],
        "QLinearAveragePool", ("AveragePool",), 8,
    ),
    "AveragePool ceil, padded, counted": (
        [node("AveragePool", "c", "m", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
              pads=[1, 1, 1, 1], count_include_pad=1)],
        "QLinearAveragePool", ("AveragePool",), 8,
    ),
    "AveragePool same": (
        [node("AveragePool", "c", "m", kernel_shape=[3, 3], strides=[2, 2],
              auto_pad="SAME_UPPER")],
        "QLinearAveragePool", ("AveragePool",), 8,
    ),
    "GlobalAveragePool": (
        [node("GlobalAveragePool", "c", "m")],
        "QLinearGlobalAveragePool", ("GlobalAveragePool",), 8,
    ),
    "squeeze and excite": (
        [node("GlobalAveragePool", "c", "g"), node("Conv", "g e", "h"), node("Sigmoid", "h", "s"),
         node("Mul", "c s", "m")],
        "QLinearMul", ("Mul", "Sigmoid"), 8,
    ),
    "Reshape": (
        [node("Reshape", "c shape", "f"), node("Transpose", "f", "t", perm=[0, 1, 2]),
         node("Reshape", "t back", "m")],
        "QLinearConv", (), 8,
    ),
    "channel shuffle": (
        [node("Reshape", "c groups", "f"), node("Transpose", "f", "t", perm=[0, 2, 1, 3, 4]),
         node("Reshape", "t back", "m")],
        "QLinearConv", (), 8,
    ),
    "Slice": ([node("Slice", "c starts ends axes", "m")], "QLinearConv", (), 4),
    "Split": (
        [node("Split", "c", "s1 s2", axis=1), node("Concat", "s2 s1", "m", axis=1)],
        "QLinearConv", (), 8,
    ),
    "Gather": ([node("Gather", "c rows", "m", axis=1)], "QLinearConv", (), 4),
    "Unsqueeze and Squeeze": (
        [node("Unsqueeze", "c axes", "u"), node("Squeeze", "u axes", "m")], "QLinearConv", (), 8
    ),
    "Tile": ([node("Tile", "c tile", "m")], "QLinearConv", (), 8),
    "Expand": ([node("Expand", "c expand", "m")], "QLinearConv", (), 8),
    "DepthToSpace": ([node("DepthToSpace", "c", "m", blocksize=2)], "QLinearConv", (), 2),
    "Resize nearest": (
        [node("Resize", "c _ sizes", "m", mode="nearest")], "QLinearConv", (), 8
    ),
    "Resize linear": ([node("Resize", "c _ sizes", "m", mode="linear")], "QLinearConv", (), 8),
    "Identity": ([node("Identity", "c", "m")], "QLinearConv", ("Identity",), 8),
    "Tanh": ([node("Tanh", "c", "m")], "QLinearConv", (), 8),
    "Sub": ([node("Relu", "c", "r"), node("Sub", "c r", "m")], "QLinearConv", (), 8),
}  # fmt: skip


def between(
    name: str, folder: Path, skip: tuple[str, ...] = (), outputs: tuple[str, ...] = ("y",)
) -> tuple[Case, str, tuple[str, ...]]:
    inner, kernel, gone, channels = BETWEEN[name]
    constants = {
        "w": weights(8, 4, 1, 1), "b": weights(8, seed=1), "v": weights(4, channels, 1, 1, seed=2),
        "e": weights(8, 8, 1, 1, seed=3), "back": np.array([1, 8, 6, 6]),
        "groups": np.array([1, 2, 4, 6, 6]), **K,
    }  # fmt: skip
    nodes = [node("Conv", "x w b", "c"), *inner, node("Conv", "m v", "y")]
    case = Case(folder, nodes, [1, 4, 6, 6], constants, skip=skip, outputs=outputs)
    return case, kernel, gone


WRONG = "AveragePool ceil, padded, counted"  # onnxruntime's integer kernel divides wrongly there


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.xfail(reason="a defect of onnxruntime 1.32", strict=False)
        )
        if name == WRONG
        else name
        for name in BETWEEN
    ],
)
def test_what_stands_between_two_convolutions(name: str, tmp_path: Path) -> None:
    case, kernel, gone = between(name, tmp_path)
    case.assert_integer(kernel, *gone)
    if name not in ("Tanh", "Sub", "Resize linear"):
        # Nothing but the model's ends is converted. A Relu that has no operator of its own to be
        # merged into is a change of scale.
        most = 1 + int(name in ("Add Relu", "Mul", "Concat", "MaxPool Relu"))
        assert case.executed["QuantizeLinear"] <= most, case.executed
        assert case.executed["DequantizeLinear"] <= most, case.executed


@pytest.mark.parametrize("name", ["Add", "MaxPool", "Concat", "GlobalAveragePool"])
def test_an_inner_tensor_may_be_an_output(name: str, tmp_path: Path) -> None:
    case, kernel, gone = between(name, tmp_path, outputs=("c", "m", "y"))
    case.assert_integer(kernel, *gone)


@pytest.mark.parametrize("name", ["Add", "Add Relu", "Sigmoid", "MaxPool", "AveragePool"])
def test_a_skipped_operator_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    """Whether the runtime merges it with the conversions around it makes no difference."""
    op_type = name.split()[0]
    case, _, _ = between(name, tmp_path, skip=(f"type:{op_type}",))
    assert case.decision(op_type) == {"float"}
    case.assert_close()
