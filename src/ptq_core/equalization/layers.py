"""Where factors act: the layers, and the constants that are added to activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.equalization.patterns import Pattern
from ptq_core.graph import operators as ops


@dataclass(kw_only=True)
class Layer:
    """A layer with weights of its own.

    Attributes:
        node: it.
        weight: its initializer.
        bias: the bias's, None where there is none.
        source: name of the activation that it reads.
        axis: of that activation's channels.
        groups: of a convolution.
        ins: variable of each input channel.
        outs: variable of each output channel.
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    source: str
    axis: int
    groups: int
    ins: NDArray[np.int64]
    outs: NDArray[np.int64]


@dataclass(kw_only=True)
class Clip:
    """A tensor that a Clip makes."""

    name: str
    axis: int
    bounds: tuple[float, float]
    variables: NDArray[np.int64]


@dataclass(kw_only=True)
class Shift:
    """A constant that is added to an activation."""

    value: ir.Value
    pattern: Pattern


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a layer's weights say of its channels, and of the rank of its input if they do."""

    weight: ir.Value
    rank: int | None
    groups: int
    inputs: int
    outputs: int


def shape_of(node: ir.Node) -> Shape | None:
    """The channels of a linear operator, None where its weights cannot be changed in place.

    That is where they are no constant, read by others too, or not float32. Weights that several
    nodes share would have to be copied: the file would grow.
    """
    weight = node.inputs[ops.LINEAR[node.op_type].weight]
    array = ops.constant(weight)
    if weight is None or array is None or array.dtype != np.float32 or not is_own(weight):
        return None
    if ops.attribute(node, "transA", 0) or (node.op_type == "MatMul" and array.ndim != 2):
        return None
    groups = int(ops.attribute(node, "group", 1))
    first, second = array.shape[:2]
    match node.op_type:
        case "ConvTranspose":
            inputs, outputs = first, second * groups
        case "Gemm" if ops.attribute(node, "transB", 0):
            inputs, outputs = second, first
        case "Gemm" | "MatMul":
            inputs, outputs = first, second
        case _:
            inputs, outputs = second * groups, first
    rank = None if node.op_type == "MatMul" else array.ndim
    return Shape(weight=weight, rank=rank, groups=groups, inputs=inputs, outputs=outputs)


def is_own(value: ir.Value | None) -> bool:
    """Whether the constant has one reader, so that it can be changed in place."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def is_per_channel(bias: ir.Value, channels: int) -> bool:
    """Whether the bias is a constant that can be divided channel by channel, in place."""
    array = ops.constant(bias)
    if array is None or array.dtype != np.float32 or not is_own(bias):
        return False
    return array.ndim > 0 and array.shape[-1] == channels


def is_addable(value: ir.Value | None, pattern: Pattern) -> bool:
    """Whether the operand is such a constant, shaped so that it can follow the pattern."""
    array = ops.constant(value)
    if array is None or array.ndim > pattern.ndim or not is_own(value):
        return False
    shape = (1,) * (pattern.ndim - array.ndim) + array.shape
    fits = all(n in (1, m) for n, m in zip(pattern.shape, shape, strict=True))
    return fits and array.dtype == np.float32 and bool(np.isfinite(array).all())


def is_finite(layer: Layer) -> bool:
    """Whether weights and bias are finite; reads them."""
    arrays = [ops.constant(layer.weight), ops.constant(layer.bias)]
    return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)
