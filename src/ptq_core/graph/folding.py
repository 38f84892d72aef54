"""Fold an affine map per channel into the linear layer before it, computed in double."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph.constants import new_constant
from ptq_core.graph.operators import LINEAR, as_float64, attribute, constant, rank

_Vector = NDArray[np.float64]


def affine_of(node: ir.Node, data: ir.Value) -> tuple[_Vector, _Vector] | None:
    """(factor, offset) per channel, or for all, if the node computes ``data * factor + offset``.

    Channels lie on axis 1, on the last axis where the rank is 2.
    """
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is data else node.inputs[0]
    vector = _per_channel(constant(other), rank(data))
    if vector is None:
        return None
    one, zero = np.ones(1), np.zeros(1)
    first = node.inputs[0] is data
    match node.op_type:
        case "Add":
            return one, vector
        case "Mul":
            return vector, zero
        case "Sub":
            return (one, -vector) if first else (-one, vector)
        case _:
            return (1.0 / vector, zero) if first and vector.all() else None


def _batch_norm(node: ir.Node) -> tuple[_Vector, _Vector] | None:
    if attribute(node, "training_mode", 0) or len(node.inputs) != 5:
        return None
    arrays = [constant(value) for value in node.inputs[1:]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (as_float64(a) for a in arrays if a is not None)
    factor = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
    return factor, beta - mean * factor


def _per_channel(array: NDArray[Any] | None, data_rank: int | None) -> _Vector | None:
    """A constant that varies along the channel axis only, as a vector (length 1: one for all)."""
    if array is None or data_rank is None or data_rank < 2 or array.ndim > data_rank:
        return None
    if array.dtype != np.float32:
        return None
    if array.size == 1:
        return as_float64(array).reshape(1)
    shape = (1,) * (data_rank - array.ndim) + array.shape
    if shape[1] != array.size:
        return None
    return as_float64(array).reshape(-1)


def fold(graph: ir.Graph, layer: ir.Node, factor: _Vector, offset: _Vector) -> bool:
    """Change the layer so that it gives ``output * factor + offset``; False where it cannot.

    Weights and bias that other nodes read too are copied first.
    """
    if layer.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    facts = LINEAR[layer.op_type]
    weight_value = layer.inputs[facts.weight]
    weight = constant(weight_value)
    bias_value = layer.inputs[2] if len(layer.inputs) > 2 else None
    bias = constant(bias_value) if bias_value is not None else np.zeros(1, np.float32)
    if weight is None or bias is None or weight.dtype != np.float32 or weight_value is None:
        return False
    beta = float(attribute(layer, "beta", 1.0)) if layer.op_type == "Gemm" else 1.0
    group = int(attribute(layer, "group", 1))
    by_channel, channels = _channel_first(layer, as_float64(weight), group)
    if factor.size not in (1, channels) or offset.size not in (1, channels):
        return False
    if bias.size not in (1, channels) or (bias.ndim and bias.shape[-1] != bias.size):
        return False  # a Gemm's bias may also differ by row
    scaled = by_channel * np.broadcast_to(factor, channels)[:, None]
    new_weight = _channel_back(layer, scaled, weight.shape, group)
    new_bias = np.broadcast_to(as_float64(bias).reshape(-1), channels) * beta * factor + offset
    weight_name = weight_value.name or "weight"
    bias_name = bias_value.name if bias_value is not None else f"{weight_name}_bias"
    layer.replace_input_with(1, _replacement(graph, weight_value, weight_name, new_weight))
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, _replacement(graph, bias_value, bias_name, new_bias))
    layer.attributes.pop("beta", None)
    return True


def _replacement(
    graph: ir.Graph, old: ir.Value | None, name: str | None, array: _Vector
) -> ir.Value:
    """The folded constant under the old one's name, or a new one's if others still read that."""
    single = np.asarray(array, np.float32)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = ir.tensor(single, name=old.name)
        old.shape = ir.Shape(single.shape)
        return old
    return new_constant(graph, f"{name}_folded" if old is not None else f"{name}", single)


def _channel_first(layer: ir.Node, weight: _Vector, group: int) -> tuple[_Vector, int]:
    """The weights as a matrix with one row per output channel."""
    if layer.op_type == "ConvTranspose":
        grouped = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        channels = group * weight.shape[1]
        return grouped.transpose(0, 2, 1, 3).reshape(channels, -1), channels
    if layer.op_type == "Gemm" and not attribute(layer, "transB", 0):
        return weight.T, weight.shape[1]
    return weight.reshape(weight.shape[0], -1), weight.shape[0]


def _channel_back(layer: ir.Node, rows: _Vector, shape: tuple[int, ...], group: int) -> _Vector:
    if layer.op_type == "ConvTranspose":
        grouped = rows.reshape(group, shape[1], shape[0] // group, -1)
        return grouped.transpose(0, 2, 1, 3).reshape(shape)
    if layer.op_type == "Gemm" and not attribute(layer, "transB", 0):
        return rows.T
    return rows.reshape(shape)
