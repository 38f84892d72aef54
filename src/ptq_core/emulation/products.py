"""Exact sums of products of integers, as the linear operators of ONNX form them.

Matrix products run in BLAS, in float32 or float64, whichever holds every sum exactly. Convolutions
are one product for each position of the kernel, so that memory stays that of input and result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT32_INTEGERS = 2**24  # up to here every integer is a float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """How a kernel moves over the input; a number for each spatial axis.

    Attributes:
        strides: of the kernel.
        dilations: between its elements.
        begins: padding in front of each axis.
        ends: padding behind it; for a transposed convolution both are cut off.
        output_padding: what a transposed convolution adds behind each axis.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    output_padding: tuple[int, ...] = ()


def exact_type(weights: NDArray[Any], terms: tuple[int, ...], largest: int) -> Any:
    """The float type in which no sum of products is rounded.

    Args:
        weights: integers.
        terms: the axes over which products are summed.
        largest: magnitude of the other factor.
    """
    sums = np.abs(weights.astype(np.int64)).sum(axis=terms).max(initial=0)
    return np.float32 if int(sums) * largest < _FLOAT32_INTEGERS else np.float64


def product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int64]:
    """Matrix product of integers in a float type that holds all sums; batches as in NumPy."""
    return np.asarray(np.matmul(left, right), np.int64)


def convolution(
    data: NDArray[Any], weights: NDArray[Any], window: Window, groups: int
) -> NDArray[np.int64]:
    """Sums of products of a convolution.

    Args:
        data: [N, C, *spatial] integers; zero stands for zero.
        weights: [*kernel, groups, C / groups, M / groups], in a type of :func:`exact_type`.
        window: how the kernel moves.
        groups: of channels.

    Returns:
        [N, *output, M].
    """
    kernel, spatial = weights.shape[:-3], data.shape[2:]
    pads = [(0, 0), *zip(window.begins, window.ends, strict=True), (0, 0)]
    padded = np.pad(np.moveaxis(data, 1, -1).astype(weights.dtype), pads)
    sizes = [
        (size + begin + end - dilation * (width - 1) - 1) // stride + 1
        for size, begin, end, dilation, width, stride in zip(
            spatial, window.begins, window.ends, window.dilations, kernel, window.strides,
            strict=True,
        )
    ]  # fmt: skip
    rows = len(data) * int(np.prod(sizes))
    total = np.zeros((groups, rows, weights.shape[-1]), weights.dtype)
    for offset in np.ndindex(*kernel):
        part = padded[_every(offset, window, sizes)]
        total += _grouped(part.reshape(rows, groups, -1), weights[offset])
    return _channels_last(total).reshape(len(data), *sizes, -1).astype(np.int64)


def transposed_convolution(
    data: NDArray[Any], weights: NDArray[Any], window: Window, groups: int
) -> NDArray[np.int64]:
    """Sums of products of a transposed convolution; shapes as in :func:`convolution`."""
    kernel, spatial = weights.shape[:-3], data.shape[2:]
    sizes = [
        (size - 1) * stride + dilation * (width - 1) + 1
        for size, stride, dilation, width in zip(
            spatial, window.strides, window.dilations, kernel, strict=True
        )
    ]
    channels = groups * weights.shape[-1]
    total = np.zeros((len(data), *sizes, channels), weights.dtype)
    rows = len(data) * int(np.prod(spatial))
    parts = np.moveaxis(data, 1, -1).astype(weights.dtype).reshape(rows, groups, -1)
    for offset in np.ndindex(*kernel):
        made = _channels_last(_grouped(parts, weights[offset]))
        total[_every(offset, window, spatial)] += made.reshape(len(data), *spatial, channels)
    added = window.output_padding or (0,) * len(spatial)
    total = np.pad(total, [(0, 0), *((0, one) for one in added), (0, 0)])
    kept = tuple(
        slice(begin, size + one - end)
        for begin, size, one, end in zip(window.begins, sizes, added, window.ends, strict=True)
    )
    return total[(slice(None), *kept)].astype(np.int64)


def _every(offset: Sequence[int], window: Window, sizes: Sequence[int]) -> tuple[slice, ...]:
    """Where an element of the kernel meets a [N, *spatial, C] array, for all its positions."""
    return (
        slice(None),
        *(
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, dilation, size, stride in zip(
                offset, window.dilations, sizes, window.strides, strict=True
            )
        ),
    )


def _grouped(parts: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """[rows, groups, in] by [groups, in, out] is [groups, rows, out]."""
    if parts.shape[-1] == 1:  # depthwise
        return np.asarray(parts.transpose(1, 0, 2) * weights)
    return np.asarray(np.matmul(parts.transpose(1, 0, 2), weights))


def _channels_last(total: NDArray[Any]) -> NDArray[Any]:
    """[groups, rows, out] as [rows, groups * out]."""
    return np.ascontiguousarray(total.transpose(1, 0, 2)).reshape(total.shape[1], -1)
