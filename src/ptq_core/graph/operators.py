"""Facts about ONNX operators, stated once: weight and bias inputs, channel axes, bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearOperator:
    """Where an operator that multiplies by constant weights keeps them."""

    weight: int = 1
    bias: int | None = 2


LINEAR = {
    "Conv": LinearOperator(),
    "ConvTranspose": LinearOperator(),
    "Gemm": LinearOperator(),
    "MatMul": LinearOperator(bias=None),
}

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

# Activations with a known range, which runtimes merge into the operator before.
BOUNDED = frozenset({"Relu", "Clip"})

# Inputs that may be constant weights, of every operator that has such.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}

# A table's rows and a recurrent layer's gates are no output channels.
WITHOUT_CHANNELS = frozenset({"Gather", "LSTM", "GRU", "RNN"})

# Operators of a model that somebody quantized already.
QUANTIZED = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QLinearAdd",
        "QLinearMul",
        "QGemm",
        "QAttention",
        "MatMulNBits",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "AscendQuant",
        "AscendDequant",
    }
)

# They read a tensor's shape, not its values, so an integer form serves them as well.
SHAPE_READERS = frozenset({"Shape", "Size"})

# Their first input comes out with another shape or order, and the same values.
RESHAPERS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity"})

# Every operand may be an activation or a number to compute with, unlike an axis or a shape.
ALIKE_OPERANDS = frozenset({"Add", "Sub", "Mul", "Div", "Concat", "Max", "Min", "Sum", "Mean"})

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})


def is_standard(node: ir.Node) -> bool:
    """Whether the node is an operator of ONNX itself, not of a custom domain or a function."""
    return node.domain in DEFAULT_DOMAINS


def channel_axis(node: ir.Node, rank: int) -> int:
    """The axis of a linear operator's weights that holds the output channels.

    For a ConvTranspose with groups the output channels of one group only.
    """
    match node.op_type:
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if attribute(node, "transB", 0) else 1
        case "MatMul":
            return rank - 1
        case _:
            return 0


def weight_positions(node: ir.Node) -> tuple[int, ...]:
    """The inputs of the node that may be weights; those that are not there are left out."""
    known = WEIGHTS.get(node.op_type, ()) if is_standard(node) else ()
    return tuple(position for position in known if position < len(node.inputs))


def channel_axes(node: ir.Node, position: int, rank: int) -> tuple[int, ...]:
    """The axes of weights that keep a scale for each index: output channels, or a table's rows.

    Source: seed-semantics section 2.4; recurrent weights have one for each row of each gate.
    """
    match node.op_type:
        case "Gather":
            return (int(attribute(node, "axis", 0)) % max(rank, 1),)
        case "LSTM" | "GRU" | "RNN":
            return (0, 1)
        case "Gemm" if position == 0:
            return (1 if attribute(node, "transA", 0) else 0,)
        case "MatMul" if position == 0:
            return (max(rank - 2, 0),)
        case "ConvTranspose":
            weight = node.inputs[1]
            depthwise = int(attribute(node, "group", 1)) > 1 and static_shape(weight)[1:2] == (1,)
            return (0,) if depthwise else (1,)
        case _:
            return (channel_axis(node, rank),)


def shares_channels(node: ir.Node) -> bool:
    """Whether an index of the weights' channel axis is a channel of every group."""
    return node.op_type == "ConvTranspose" and int(attribute(node, "group", 1)) > 1


def static_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a constant."""
    tensor = None if value is None else value.const_value
    return () if tensor is None else tuple(int(dim) for dim in tensor.shape.numpy())


def stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer that nobody can override, of any graph; it is not read."""
    if not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or the default where it is not written."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    value = found.value
    return tuple(value) if isinstance(value, list) else value


def schema_default(node: ir.Node, name: str, opset: int) -> Any:
    """The default that ONNX itself gives an attribute, None where there is none."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    known = schema.attributes.get(name)
    if known is None or not known.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(known.default_value)
    return value.decode() if isinstance(value, bytes) else value


def has_subgraph(node: ir.Node) -> bool:
    """Whether the node carries a body: If, Loop, Scan."""
    return any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attr in node.attributes.values()
    )


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer that nobody can override, None for anything else."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return None if value.const_value is None else value.const_value.numpy()


def array_of(value: ir.Value) -> NDArray[Any]:
    """The array of what is known to be a constant, of any graph."""
    if value.const_value is None:
        raise AssertionError(f"'{value.name}' is no constant")
    return np.asarray(value.const_value.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def activation_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The interval into which a Relu or a Clip with constant bounds puts its output."""
    if not is_standard(node):
        return None
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for index, name in enumerate(("min", "max")):
        position = index + 1
        given = node.inputs[position] if position < len(node.inputs) else None
        if given is not None:
            number = scalar(given)
            if number is None:
                return None
            bounds[index] = number
        elif name in node.attributes:
            bounds[index] = float(attribute(node, name, bounds[index]))
    # Quantized ranges contain zero; bounds that do not cannot be met exactly.
    return (bounds[0], bounds[1]) if bounds[0] <= 0.0 <= bounds[1] else None


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is a float32 tensor (a type that inference left open counts as one)."""
    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, None where unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def dimensions(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """The shape: numbers, symbols' names, and None; None where even the rank is unknown."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def label(node: ir.Node) -> str:
    """How users address the node: its name, or its first output where it has none."""
    return node.name or key(node)


def key(node: ir.Node) -> str:
    """What identifies the node in a plan: the name of its first output (unique in a graph)."""
    return next((out.name for out in node.outputs if out.name), "")


def as_float64(array: NDArray[Any]) -> NDArray[np.float64]:
    """The array in double, for folding without loss."""
    return np.asarray(array, np.float64)
