"""A layer's constants, and its exact sums of products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.emulation.products import (
    Window,
    convolution,
    exact_type,
    product,
    transposed_convolution,
)
from ptq_core.emulation.steps import Layer, Quantized
from ptq_core.graph import operators as ops


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weights:
    """A layer's second operand as its sums need it.

    Attributes:
        centered: codes minus zero points, shaped for ``products``, in a float type that is exact.
        scale: float32, [channels] or [1].
        bias: for each channel: int64 where it is part of the sums, float32 where it is added to
            their real values, None where there is none.
    """

    centered: NDArray[Any]
    scale: NDArray[np.float32]
    bias: NDArray[np.int64] | NDArray[np.float32] | None


def constant_weights(layer: Layer, codes: NDArray[Any]) -> Weights:
    """Weights that no sample changes; to be made once."""
    node, form = layer.node, layer.right
    shaped = form.centered(codes)
    groups = int(ops.attribute(node, "group", 1))
    if node.op_type in ops.CONVOLUTIONS:  # [M, C / groups, *kernel] or [C, M / groups, *kernel]
        shaped = shaped.reshape(groups, -1, *shaped.shape[1:])
        ends = (-3, -1, -2) if node.op_type == "Conv" else (-3, -2, -1)
        shaped = np.moveaxis(shaped, (0, 1, 2), ends)
        terms = (*range(shaped.ndim - 3), shaped.ndim - 2)
    else:
        shaped = shaped.T if ops.attribute(node, "transB", 0) else shaped
        terms = (0,)
    kind = exact_type(shaped, terms, _largest(layer.left))
    scale = form.scale.reshape(-1)
    if form.axis is not None and ops.shares_channels(node):
        scale = np.tile(scale, groups)
    return Weights(
        centered=np.ascontiguousarray(shaped, kind), scale=scale, bias=_bias(layer, scale)
    )


def activation_weights(layer: Layer, codes: NDArray[Any]) -> Weights:
    """Another activation in the place of weights."""
    form = layer.right
    scale = form.scale.reshape(1)
    return Weights(
        centered=form.centered(codes).astype(np.float64), scale=scale, bias=_bias(layer, scale)
    )


def _largest(form: Quantized) -> int:
    """Magnitude that a code minus the zero point can have."""
    low, high = form.limits
    return max(high - int(form.zero_point), int(form.zero_point) - low)


def _bias(
    layer: Layer, weight_scale: NDArray[np.float32]
) -> NDArray[np.int64] | NDArray[np.float32] | None:
    """The bias in units of the sums where it comes as integers, else in float32."""
    if layer.bias is None:
        return None
    if not layer.exact_bias:
        return layer.bias.astype(np.float32)
    units = float(layer.left.scale) * weight_scale.astype(np.float64)
    return np.asarray(np.rint(layer.bias / units), np.int64)


def sums_of(node: ir.Node, left: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.int64]:
    """Sums of products with channels last.

    Args:
        node: the operator.
        left: centered codes as ONNX has them.
        weights: as :class:`Weights` has them.
    """
    if node.op_type not in ops.CONVOLUTIONS:
        return product(left.astype(weights.dtype), weights)
    groups = int(ops.attribute(node, "group", 1))
    window = _window(node, left.shape[2:], weights.shape[:-3])
    convolve = convolution if node.op_type == "Conv" else transposed_convolution
    return convolve(left, weights, window, groups)


def as_written(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    """A layer's result with its channels where ONNX has them."""
    if node.op_type in ops.CONVOLUTIONS:
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array


def _window(node: ir.Node, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    ones, rank = (1,) * len(kernel), len(kernel)
    strides = tuple(ops.attribute(node, "strides", ones))
    dilations = tuple(ops.attribute(node, "dilations", ones))
    pads = tuple(ops.attribute(node, "pads", (0,) * (2 * rank)))
    begins, ends = pads[:rank], pads[rank:]
    auto = str(ops.attribute(node, "auto_pad", "NOTSET"))
    if auto == "VALID":
        begins = ends = (0,) * rank
    elif auto.startswith("SAME"):
        totals = [
            max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size)
            for size, stride, dilation, width in zip(
                spatial, strides, dilations, kernel, strict=True
            )
        ]
        less = tuple(total // 2 for total in totals)
        more = tuple(total - half for total, half in zip(totals, less, strict=True))
        begins, ends = (less, more) if auto == "SAME_UPPER" else (more, less)
    return Window(
        strides=strides,
        dilations=dilations,
        begins=begins,
        ends=ends,
        output_padding=tuple(ops.attribute(node, "output_padding", ())),
    )
