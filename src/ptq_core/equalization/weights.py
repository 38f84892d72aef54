"""The weights of a layer as blocks: one matrix for each group, whatever the operator's layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.equalization.layers import Layer, Shift
from ptq_core.graph import operators as ops

Array = NDArray[np.float64]


@dataclass(kw_only=True)
class Blocks:
    """A layer's weights, reduced over the kernel; arrays are [groups, outputs, inputs].

    Attributes:
        largest: magnitude.
        energy: sum of squares.
        ins: variable of each input channel, [groups, inputs].
        outs: variable of each output channel, [groups, outputs].
    """

    layer: Layer
    largest: Array
    energy: Array
    ins: NDArray[np.int64]
    outs: NDArray[np.int64]


def blocks_of(layer: Layer) -> Blocks:
    """Reduce a layer's weights over the kernel."""
    array = ops.constant(layer.weight)
    if array is None:
        raise AssertionError(f"the weights of '{ops.label(layer.node)}' are not constant")
    kernels = _blocks(layer, array)
    return Blocks(
        layer=layer,
        largest=np.abs(kernels).max(-1, initial=0.0).astype(np.float64),
        energy=np.square(kernels, dtype=np.float64).sum(-1),
        ins=layer.ins.reshape(layer.groups, -1),
        outs=layer.outs.reshape(layer.groups, -1),
    )


def _blocks(layer: Layer, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A view, [groups, outputs, inputs, kernel]."""
    groups, node = layer.groups, layer.node
    if node.op_type == "ConvTranspose":
        split = array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
        return split.transpose(0, 2, 1, 3)
    if node.op_type == "Conv":
        return array.reshape(groups, array.shape[0] // groups, array.shape[1], -1)
    rows = array if ops.attribute(node, "transB", 0) else array.T
    return rows[None, :, :, None]


def rescale_layer(layer: Layer, factors: Array) -> bool:
    """Multiply the weights by their inputs' factors, divide them and the bias by their outputs'.

    In place; False, and nothing is read or copied, where all factors are 1.
    """
    before, after = factors[layer.ins], factors[layer.outs]
    if (before == 1.0).all() and (after == 1.0).all():
        return False
    old = ops.constant(layer.weight)
    if old is None:
        raise AssertionError(f"the weights of '{ops.label(layer.node)}' are not constant")
    new = np.array(old, np.float32)
    view = _blocks(layer, new)
    by_input = before.reshape(layer.groups, 1, -1, 1)
    by_output = after.reshape(layer.groups, -1, 1, 1)
    np.multiply(view, by_input / by_output, out=view, casting="same_kind")
    _store(layer.weight, new)
    if layer.bias is not None:
        bias = ops.constant(layer.bias)
        if bias is None:
            raise AssertionError(f"the bias of '{ops.label(layer.node)}' is not constant")
        _store(layer.bias, bias / after)
    return True


def rescale_shift(shift: Shift, factors: Array) -> None:
    """Divide an added constant by the factors of the channels it is added to; in place."""
    array, by = ops.constant(shift.value), factors[shift.pattern]
    if array is None:
        raise AssertionError(f"'{shift.value.name}' is not constant")
    if (by != 1.0).any():
        aligned = array.reshape((1,) * (by.ndim - array.ndim) + array.shape)
        _store(shift.value, (aligned / by).reshape(array.shape))


def _store(value: ir.Value, array: NDArray[np.floating]) -> None:
    value.const_value = ir.tensor(np.asarray(array, np.float32), name=value.name)
