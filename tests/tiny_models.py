"""Tiny models, built in code: each has one thing that quantization has to get right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
Shape = Sequence[int | str | None]
Arrays = dict[str, NDArray[Any]]
TYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> NDArray[np.float32]:
    """Weights."""
    return (rng(seed).standard_normal(shape) * scale).astype(np.float32)


def node(op_type: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    """A node; names of tensors are separated by spaces, "_" leaves an input out."""
    ins = ["" if one == "_" else one for one in inputs.split()]
    return helper.make_node(op_type, ins, outputs.split(), name, **attributes)


def info(name: str, shape: Shape | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Shape] | Sequence[Any],
    outputs: Mapping[str, Shape] | Sequence[Any],
    constants: Mapping[str, NDArray[Any]] | None = None,
    opset: int = OPSET,
    ir_version: int = 8,
    **given: Any,
) -> onnx.ModelProto:
    """A checked model; inputs and outputs are float32 where only their shape is given."""
    ends = [
        [info(name, shape) for name, shape in side.items()] if isinstance(side, Mapping) else side
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", ends[0], ends[1], tensors)
    opsets = [helper.make_opsetid("", opset), *given.pop("opsets", ())]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **given)
    onnx.checker.check_model(made)
    return made


def batch_norm(name: str, channels: int, seed: int = 0) -> Arrays:
    """The four constants of a BatchNormalization, called ``name_gamma`` and so on."""
    draw = rng(seed + 100)
    values = {
        "gamma": draw.uniform(0.5, 1.5, channels),
        "beta": draw.normal(0, 0.3, channels),
        "mean": draw.normal(0, 0.3, channels),
        "var": draw.uniform(0.5, 2.0, channels),
    }
    return {f"{name}_{key}": value.astype(np.float32) for key, value in values.items()}


def bn(name: str, source: str, target: str) -> Any:
    constants = " ".join(f"{name}_{key}" for key in ("gamma", "beta", "mean", "var"))
    return node("BatchNormalization", f"{source} {constants}", target, name)


# ------------------------------------------------------------------------------------ networks


def conv_bn_relu() -> onnx.ModelProto:
    """Convolution, BatchNormalization, Relu, twice; pool, flatten and a classifier."""
    return model(
        [
            node("Conv", "x w1", "c1", "conv1", pads=[1, 1, 1, 1]),
            bn("bn1", "c1", "n1"),
            node("Relu", "n1", "r1", "relu1"),
            node("Conv", "r1 w2 b2", "c2", "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
            bn("bn2", "c2", "n2"),
            node("Relu", "n2", "r2", "relu2"),
            node("GlobalAveragePool", "r2", "p", "pool"),
            node("Flatten", "p", "f", "flatten"),
            node("Gemm", "f w3 b3", "y", "classifier", transB=1),
        ],
        {"x": ["N", 3, 8, 8]},
        {"y": ["N", 5]},
        {
            "w1": normal(8, 3, 3, 3),
            **batch_norm("bn1", 8),
            "w2": normal(12, 8, 3, 3, seed=1),
            "b2": normal(12, seed=2),
            **batch_norm("bn2", 12, 1),
            "w3": normal(5, 12, seed=3),
            "b3": normal(5, seed=4),
        },
    )


def depthwise_relu6() -> onnx.ModelProto:
    """An inverted residual block: expansion, depthwise, projection, each but the last clipped."""
    bounds = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return model(
        [
            node("Conv", "x w0 b0", "s", "stem", pads=[1, 1, 1, 1]),
            node("Conv", "s w1 b1", "c1", "expand"),
            node("Clip", "c1 zero six", "r1", "clip1"),
            node("Conv", "r1 w2 b2", "c2", "depthwise", group=12, pads=[1, 1, 1, 1]),
            node("Clip", "c2 zero six", "r2", "clip2"),
            node("Conv", "r2 w3 b3", "c3", "project"),
            node("Add", "s c3", "y", "add"),
        ],
        {"x": ["N", 3, 8, 8]},
        {"y": ["N", 4, 8, 8]},
        {
            "w0": normal(4, 3, 3, 3),
            "b0": normal(4),
            "w1": normal(12, 4, 1, 1, seed=1, scale=2.0),
            "b1": normal(12, seed=2),
            "w2": normal(12, 1, 3, 3, seed=3),
            "b2": normal(12, seed=4),
            "w3": normal(4, 12, 1, 1, seed=5),
            "b3": normal(4, seed=6),
            **bounds,
        },
    )


def conv_transpose(group: int = 2) -> onnx.ModelProto:
    """A ConvTranspose with groups and BatchNormalization between two convolutions."""
    return model(
        [
            node("Conv", "x w1", "c1", "conv1"),
            node("Relu", "c1", "r1", "relu1"),
            node("ConvTranspose", "r1 w2 b2", "t", "up", strides=[2, 2], group=group),
            bn("bn", "t", "n"),
            node("Relu", "n", "r2", "relu2"),
            node("Conv", "r2 w3", "y", "conv3"),
        ],
        {"x": ["N", 3, 5, 5]},
        {"y": ["N", 2, 10, 10]},
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(4, 6 // group, 2, 2, seed=1),
            "b2": normal(6, seed=2),
            **batch_norm("bn", 6),
            "w3": normal(2, 6, 1, 1, seed=3),
        },
    )


def gemm() -> onnx.ModelProto:
    """Two layers; the second one's bias is scaled by beta and has a shape of its own."""
    return model(
        [
            node("Gemm", "x w1 b1", "g", "hidden"),
            node("Relu", "g", "r", "relu"),
            node("Gemm", "r w2 b2", "y", "head", transB=1, beta=0.5),
        ],
        {"x": ["N", 6]},
        {"y": ["N", 4]},
        {
            "w1": normal(6, 8),
            "b1": normal(8, seed=1),
            "w2": normal(4, 8, seed=2),
            "b2": normal(1, 4, seed=3),
        },
    )


def matmul_bias_2d() -> onnx.ModelProto:
    return _matmul_bias(["N", 6], ["N", 4])


def matmul_bias_3d() -> onnx.ModelProto:
    return _matmul_bias(["N", 5, 6], ["N", 5, 4])


def _matmul_bias(source: Shape, target: Shape) -> onnx.ModelProto:
    return model(
        [
            node("MatMul", "x w1", "m1", "fc1"),
            node("Add", "m1 b1", "a1", "bias1"),
            node("Relu", "a1", "r", "relu"),
            node("MatMul", "r w2", "m2", "fc2"),
            node("Add", "b2 m2", "y", "bias2"),
        ],
        {"x": source},
        {"y": target},
        {
            "w1": normal(6, 8),
            "b1": normal(8, seed=1),
            "w2": normal(8, 4, seed=2),
            "b2": normal(4, seed=3),
        },
    )


def concat_unlike() -> onnx.ModelProto:
    """A Concat of two tensors whose ranges differ a hundredfold."""
    return model(
        [
            node("Conv", "x w1", "small", "conv_small"),
            node("Conv", "x w2", "large", "conv_large"),
            node("Concat", "small large", "both", "concat", axis=1),
            node("Conv", "both w3", "y", "conv_out"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4]},
        {
            "w1": normal(4, 3, 1, 1, scale=0.02),
            "w2": normal(4, 3, 1, 1, seed=1, scale=2.0),
            "w3": normal(2, 8, 1, 1, seed=2),
        },
    )


def residual() -> onnx.ModelProto:
    """Two convolutions with an identity shortcut, Relu behind the sum."""
    return model(
        [
            node("Conv", "x w0", "c0", "stem"),
            node("Relu", "c0", "r0", "relu0"),
            node("Conv", "r0 w1 b1", "c1", "conv1", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1", "relu1"),
            node("Conv", "r1 w2 b2", "c2", "conv2", pads=[1, 1, 1, 1]),
            node("Add", "r0 c2", "a", "add"),
            node("Relu", "a", "r2", "relu2"),
            node("Conv", "r2 w3", "y", "conv3"),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 2, 6, 6]},
        {
            "w0": normal(4, 3, 1, 1),
            "w1": normal(4, 4, 3, 3, seed=1),
            "b1": normal(4, seed=2),
            "w2": normal(4, 4, 3, 3, seed=3),
            "b2": normal(4, seed=4),
            "w3": normal(2, 4, 1, 1, seed=5),
        },
    )


def shared_weights() -> onnx.ModelProto:
    """Two convolutions that share weights and bias; only one has a BatchNormalization."""
    return model(
        [
            node("Conv", "x w b", "c1", "first"),
            bn("bn", "c1", "n1"),
            node("Relu", "n1", "r1", "relu"),
            node("Conv", "r1 w b", "y", "second"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 3, 4, 4]},
        {"w": normal(3, 3, 1, 1), "b": normal(3, seed=1), **batch_norm("bn", 3)},
    )


def several_inputs() -> onnx.ModelProto:
    """A picture and a vector that scales its channels."""
    return model(
        [
            node("Conv", "image w1", "c", "conv"),
            node("Gemm", "vector w2 b2", "g", "dense", transB=1),
            node("Sigmoid", "g", "s", "sigmoid"),
            node("Unsqueeze", "s axes", "u", "unsqueeze"),
            node("Mul", "c u", "m", "mul"),
            node("Conv", "m w3", "y", "out"),
        ],
        {"image": ["N", 3, 4, 4], "vector": ["N", 6]},
        {"y": ["N", 2, 4, 4]},
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(4, 6, seed=1),
            "b2": normal(4, seed=2),
            "axes": np.array([2, 3]),
            "w3": normal(2, 4, 1, 1, seed=3),
        },
    )


def control_flow() -> onnx.ModelProto:
    """An If whose branches read a tensor and weights of the main graph."""
    branches = [
        helper.make_graph(
            [node(op, f"r {weights}", out, f"in_{op}")], f"{op}_branch", [], [info(out, None)]
        )
        for op, weights, out in (("Conv", "w2", "then_out"), ("Mul", "k", "else_out"))
    ]
    return model(
        [
            node("Conv", "x w1", "c", "conv1"),
            node("Relu", "c", "r", "relu"),
            node("If", "flag", "i", "if", then_branch=branches[0], else_branch=branches[1]),
            node("Conv", "i w3", "y", "conv3"),
        ],
        [info("x", ["N", 4, 3, 3]), info("flag", [], TensorProto.BOOL)],
        {"y": ["N", 2, 3, 3]},
        {
            "w1": normal(4, 4, 1, 1),
            "w2": normal(4, 4, 1, 1, seed=1),
            "k": normal(4, 1, 1, seed=3),
            "w3": normal(2, 4, 1, 1, seed=2),
        },
    )


def functions() -> onnx.ModelProto:
    """A function of the model's own between two convolutions."""
    swish = helper.make_function(
        "tiny",
        "Swish",
        ["a"],
        ["b"],
        [node("Sigmoid", "a", "s"), node("Mul", "a s", "b")],
        [helper.make_opsetid("", OPSET)],
    )
    swish_node = node("Swish", "c1", "s1", "swish")
    swish_node.domain = "tiny"
    return model(
        [
            node("Conv", "x w1", "c1", "conv1"),
            swish_node,
            node("Conv", "s1 w2", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4]},
        {"w1": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1, seed=1)},
        functions=[swish],
        opsets=[helper.make_opsetid("tiny", 1)],
    )


def pad_channel_shortcut() -> onnx.ModelProto:
    """A ResNet shortcut of option A: every second pixel, and channels of zeros around."""
    return model(
        [
            node("Conv", "x w0", "c0", "stem"),
            node("Relu", "c0", "r0", "relu0"),
            node("Slice", "r0 start_h end axis_h step", "s1", "slice_h"),
            node("Slice", "s1 start_w end axis_w step", "s2", "slice_w"),
            node("Pad", "s2 pads", "p", "pad"),
            node("Conv", "r0 w1", "c1", "conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Add", "c1 p", "a", "add"),
            node("Relu", "a", "r1", "relu1"),
            node("Conv", "r1 w2", "y", "conv2"),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 2, 3, 3]},
        {
            "w0": normal(4, 3, 1, 1),
            "w1": normal(8, 4, 3, 3, seed=1),
            "w2": normal(2, 8, 1, 1, seed=2),
            "start_h": np.array([0]),
            "start_w": np.array([0]),
            "end": np.array([np.iinfo(np.int64).max]),
            "axis_h": np.array([2]),
            "axis_w": np.array([3]),
            "step": np.array([2]),
            "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
        },
    )


def reduce_mean_head() -> onnx.ModelProto:
    return model(
        [
            node("Conv", "x w1", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("ReduceMean", "r", "m", "mean", axes=[-2, -1], keepdims=0),
            node("Gemm", "m w2 b2", "y", "head", transB=1),
        ],
        {"x": ["N", 3, 5, 5]},
        {"y": ["N", 4]},
        {"w1": normal(6, 3, 3, 3), "w2": normal(4, 6, seed=1), "b2": normal(4, seed=2)},
    )


def unnamed() -> onnx.ModelProto:
    """conv_bn_relu without a single node name."""
    made = conv_bn_relu()
    for one in made.graph.node:
        one.name = ""
    return made


def half() -> onnx.ModelProto:
    """A float16 model with a Cast and a constant node."""
    two = numpy_helper.from_array(np.array(2, np.float16), "two")
    return model(
        [
            node("Conv", "x w1 b1", "c", "conv1"),
            node("Relu", "c", "r", "relu"),
            node("Constant", "", "k", "constant", value=two),
            node("Mul", "r k", "m", "mul"),
            node("Cast", "m", "wide", "to_float", to=TensorProto.FLOAT),
            node("Cast", "wide", "narrow", "to_half", to=TensorProto.FLOAT16),
            node("Conv", "narrow w2", "y", "conv2"),
        ],
        [info("x", ["N", 3, 4, 4], TensorProto.FLOAT16)],
        [info("y", ["N", 2, 4, 4], TensorProto.FLOAT16)],
        {
            "w1": normal(4, 3, 1, 1).astype(np.float16),
            "b1": normal(4, seed=1).astype(np.float16),
            "w2": normal(2, 4, 1, 1, seed=2).astype(np.float16),
        },
    )


def opset_9() -> onnx.ModelProto:
    """An old export: initializers are inputs, Clip, Pad, Dropout and Slice have attributes."""
    constants = {
        "w1": normal(4, 3, 3, 3),
        **batch_norm("bn", 4),
        "w2": normal(300, 4, 1, 1, seed=2),  # large enough to be kept from the converter
        "w3": normal(300, 3, seed=3),
        "b3": normal(3, seed=4),
    }
    inputs = {"x": [1, 3, 6, 6]} | {name: list(array.shape) for name, array in constants.items()}
    return model(
        [
            node("Pad", "x", "p", "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
            node("Conv", "p w1", "c1", "conv1"),
            bn("bn", "c1", "n1"),
            node("Clip", "n1", "r1", "clip", min=0.0, max=6.0),
            node("Conv", "r1 w2", "c2", "conv2"),
            node("Relu", "c2", "r2", "relu2"),
            node("Slice", "r2", "s", "slice", axes=[2], starts=[0], ends=[4]),
            node("GlobalAveragePool", "s", "g", "pool"),
            node("Dropout", "g", "d", "dropout", ratio=0.2),
            node("Flatten", "d", "f", "flatten"),
            node("Gemm", "f w3 b3", "y", "head"),
        ],
        inputs,
        {"y": [1, 3]},
        constants,
        opset=9,
        ir_version=4,
    )


def dynamic_shapes() -> onnx.ModelProto:
    """Nothing but the channels is fixed; a Reshape takes its shape from the data."""
    return model(
        [
            node("Conv", "x w1", "c", "conv1", pads=[1, 1, 1, 1]),
            node("Relu", "c", "r", "relu"),
            node("Shape", "r", "shape", "shape"),
            node("Gather", "shape zero", "batch", "gather"),
            node("Concat", "batch rest", "target", "concat", axis=0),
            node("GlobalAveragePool", "r", "g", "pool"),
            node("Reshape", "g target", "f", "reshape"),
            node("Gemm", "f w2 b2", "y", "head", transB=1),
        ],
        {"x": ["N", 3, "H", "W"]},
        {"y": ["N", 4]},
        {
            "w1": normal(6, 3, 3, 3),
            "zero": np.array([0]),
            "rest": np.array([-1]),
            "w2": normal(4, 6, seed=1),
            "b2": normal(4, seed=2),
        },
    )


def transformer() -> onnx.ModelProto:
    """One encoder layer with one head: four projections, attention, a feed-forward network."""
    width, hidden = 8, 16

    def dense(name: str, source: str, target: str) -> list[Any]:
        return [
            node("MatMul", f"{source} {name}_w", f"{name}_m", name),
            node("Add", f"{name}_m {name}_b", target, f"{name}_bias"),
        ]

    sizes = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    sizes |= {"up": (width, hidden), "down": (hidden, width)}
    constants = {
        key: value
        for seed, (name, (rows, columns)) in enumerate(sizes.items())
        for key, value in (
            (f"{name}_w", normal(rows, columns, seed=seed)),
            (f"{name}_b", normal(columns, seed=seed + 10)),
        )
    }
    return model(
        [
            *dense("q", "x", "q"),
            *dense("k", "x", "k"),
            *dense("v", "x", "v"),
            node("Transpose", "k", "kt", "transpose", perm=[0, 2, 1]),
            node("MatMul", "q kt", "scores", "scores"),
            node("Softmax", "scores", "weights", "softmax"),
            node("MatMul", "weights v", "context", "context"),
            *dense("o", "context", "attended"),
            node("Add", "x attended", "sum1", "residual1"),
            node("LayerNormalization", "sum1 gamma beta", "norm1", "norm1"),
            *dense("up", "norm1", "wide"),
            node("Div", "wide root2", "scaled", "div"),
            node("Erf", "scaled", "erf", "erf"),
            node("Add", "erf one", "shifted", "plus_one"),
            node("Mul", "wide shifted", "product", "product"),
            node("Mul", "product one_half", "gelu", "gelu"),
            *dense("down", "gelu", "narrow"),
            node("Add", "norm1 narrow", "sum2", "residual2"),
            node("LayerNormalization", "sum2 gamma beta", "y", "norm2"),
        ],
        {"x": ["N", "S", width]},
        {"y": ["N", "S", width]},
        {
            **constants,
            "gamma": np.ones(width, np.float32),
            "beta": np.zeros(width, np.float32),
            "root2": np.array(2**0.5, np.float32),
            "one": np.array(1, np.float32),
            "one_half": np.array(0.5, np.float32),
        },
    )


def two_outputs() -> onnx.ModelProto:
    """The first output is read inside as well; the second is a last layer."""
    return model(
        [
            node("Conv", "x w1", "c1", "conv1"),
            node("Relu", "c1", "features", "relu"),
            node("Conv", "features w2", "c2", "conv2"),
            node("GlobalAveragePool", "c2", "g", "pool"),
            node("Flatten", "g", "f", "flatten"),
            node("Gemm", "f w3 b3", "logits", "head"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"features": ["N", 4, 4, 4], "logits": ["N", 3]},
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(6, 4, 1, 1, seed=1),
            "w3": normal(6, 3, seed=2),
            "b3": normal(3, seed=3),
        },
    )


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    make.__name__: make
    for make in (
        conv_bn_relu,
        depthwise_relu6,
        conv_transpose,
        gemm,
        matmul_bias_2d,
        matmul_bias_3d,
        concat_unlike,
        residual,
        shared_weights,
        several_inputs,
        control_flow,
        functions,
        pad_channel_shortcut,
        reduce_mean_head,
        unnamed,
        half,
        opset_9,
        dynamic_shapes,
        transformer,
        two_outputs,
    )
}


# ------------------------------------------------------------------------------- running them


def feeds(made: onnx.ModelProto, seed: int = 0, batch: int = 2) -> Arrays:
    """Random inputs; open dimensions are ``batch`` on axis 0 and 5 elsewhere."""
    draw = rng(seed + 1000)
    constants = {tensor.name for tensor in made.graph.initializer}
    found: Arrays = {}
    for value in made.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        dims = [
            dim.dim_value if dim.HasField("dim_value") else (batch if i == 0 else 5)
            for i, dim in enumerate(kind.shape.dim)
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype == np.bool_:
            found[value.name] = np.array(seed % 2 == 0)
        elif dtype.kind in "iu":
            found[value.name] = draw.integers(0, 4, dims).astype(dtype)
        else:
            found[value.name] = draw.standard_normal(dims).astype(dtype)
    return found


def run(made: onnx.ModelProto | bytes, given: Arrays, *, optimized: bool = False) -> Arrays:
    """All outputs, computed by onnxruntime; the graph as it is unless ``optimized``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    content = made if isinstance(made, bytes) else made.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def save(made: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path
