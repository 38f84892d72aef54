"""Rounding to a grid, in pieces, and so that the sums of channels are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away

Piece = tuple[slice, slice]  # of a matrix

_PIECE = 1 << 18  # elements that are rounded at a time


def grid_codes(
    weight: NDArray[Any], scale: float, offset: float, keep_sums: Sequence[int]
) -> NDArray[np.int16]:
    """Nearest codes of ``code * scale + offset``, halves away from zero.

    Args:
        weight: any shape; its codes have to fit into int16, one more or less included.
        scale: above 0.
        offset: of the grid.
        keep_sums: axes of the channels whose sums are kept, to half a step; empty: none.
    """
    if not keep_sums:
        return _rounded(weight.reshape(1, -1), scale, offset, None).reshape(weight.shape)
    rows = channel_rows(weight, keep_sums)
    codes = _rounded(rows, scale, offset, keep_channel_sums)
    return from_rows(codes, weight.shape, keep_sums)


def _rounded(
    rows: NDArray[Any],
    scale: float,
    offset: float,
    adjust: Callable[[NDArray[np.float64], NDArray[np.float64]], None] | None,
) -> NDArray[np.int16]:
    codes = np.empty(rows.shape, np.int16)
    for piece in pieces(rows.shape):
        exact = np.subtract(rows[piece], offset, dtype=np.float64)
        exact /= scale
        nearest = round_half_away(exact)
        if adjust is not None:
            adjust(exact, nearest)
        codes[piece] = nearest
    return codes


def pieces(shape: tuple[int, ...]) -> Iterator[Piece]:
    """Of a matrix: some rows at a time, or parts of its only row."""
    count, length = shape
    if count == 1:
        for start in range(0, length, _PIECE):
            yield slice(None), slice(start, start + _PIECE)
        return
    height = max(1, _PIECE // max(1, length))
    for start in range(0, count, height):
        yield slice(start, start + height), slice(None)


def keep_channel_sums(exact: NDArray[np.float64], nearest: NDArray[np.float64]) -> None:
    """Move codes of a row by one, those next to a tie first, until its sum is kept."""
    excess = nearest - exact
    surplus = round_half_away(excess.sum(axis=1)).astype(np.int64)
    for sign in (1, -1):
        chosen = np.nonzero(surplus * sign > 0)[0]
        if len(chosen):
            count = surplus[chosen] * sign
            nearest[chosen] -= sign * _largest(excess[chosen] * sign, count)


def _largest(values: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks the ``count`` largest of each row; of equal ones the first."""
    length, most = values.shape[1], int(count.max())
    top = np.sort(np.partition(values, length - most, axis=1)[:, length - most :], axis=1)
    limit = top[np.arange(len(values)), most - count][:, None]
    above = values > limit
    left = count - above.sum(axis=1)
    equal = values == limit
    return np.asarray(above | (equal & (np.cumsum(equal, axis=1) <= left[:, None])))


def _order(rank: int, axes: Sequence[int]) -> list[int]:
    """These axes first, then the others."""
    front = [axis % rank for axis in axes]
    return front + [axis for axis in range(rank) if axis not in front]


def channel_rows(weight: NDArray[Any], axes: Sequence[int]) -> NDArray[Any]:
    """[channels, weights of a channel]."""
    count = math.prod(weight.shape[axis] for axis in axes)
    if weight.size == 0:
        return weight.reshape(0, 0)
    return weight.transpose(_order(weight.ndim, axes)).reshape(count, -1)


def from_rows(rows: NDArray[Any], shape: tuple[int, ...], axes: Sequence[int]) -> NDArray[Any]:
    """Back from :func:`channel_rows` to this shape."""
    order = _order(len(shape), axes)
    moved = rows.reshape([shape[axis] for axis in order])
    return np.ascontiguousarray(moved.transpose(np.argsort(order)))
