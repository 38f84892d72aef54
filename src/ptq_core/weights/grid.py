"""From a float weight to codes: where the grid of each channel lies, and its corrections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away
from ptq_core.errors import NumericError
from ptq_core.weights.groups import Block, channel_blocks, group_shape, pieces
from ptq_core.weights.least_squares import TINY, search, two_values
from ptq_core.weights.quantized import QuantizedWeight, container

Doubles = NDArray[np.float64]
Strategy = Literal["MAX_MIN", "MSE"]

_LARGEST = float(np.finfo(np.float32).max) * (1.0 - 2.0**-20)  # scale and offset are rounded yet
_NO_SPREAD = 2.2e-16  # a standard deviation up to this is none; seed-semantics section 6.1
_MAXIMUM_VARIANCE = 10.0  # of CorrectionVar, exclusive; the same
_NO_OFFSET = 2.0**-24  # of a step: what rounding leaves where weights are symmetric
_VARIANCE_FROM = 3  # bits; seed-semantics section 15 item 17
_SAMPLE = 1 << 18  # elements of a channel that the search looks at; the last fit sees all


def quantize_weight(
    weight: NDArray[Any],
    bits: int,
    axes: tuple[int, ...],
    *,
    strategy: Strategy,
    correct: bool,
    groups: int | None = None,
) -> QuantizedWeight:
    """Codes of a float32 weight, and the scale and offset that give it back.

    A channel whose weights are all equal is exact: code 0, and its value as the offset.

    Args:
        weight: any shape.
        bits: 1 to 16.
        axes: those that keep a scale each, such as (0,) for Conv, (1,) for MatMul, (0, 1) for
            LSTM; () for one scale.
        strategy: ``MAX_MIN``: the whole range, with zero on the grid, halves rounded away from
            zero (seed-semantics section 5); ``MSE``: the scale and offset of the least squared
            error that a search finds (at 1 bit: the least there is).
        correct: give the weights their mean and variance back (seed-semantics section 6.1).
            ``MSE`` keeps the mean anyway; at 1 and 2 bits it keeps no more.
        groups: so many consecutive weights along the inputs share a scale; a channel does where
            :func:`~ptq_core.weights.groups.group_shape` is None.

    Raises:
        NumericError: where weights are NaN or infinite.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"a code has 1 to 16 bits, found {bits}")
    _check_finite(weight)
    split = None if groups is None else group_shape(weight.shape, axes, groups)
    shape, kept = split or (weight.shape, tuple(sorted(axes)))
    channels = tuple(shape[axis] for axis in kept)
    inputs = math.prod(size for axis, size in enumerate(shape) if axis not in kept)
    codes = np.zeros(shape, container(bits))
    grid = _Grid.blank(channels)
    front = tuple(range(len(kept)))
    read, write = np.moveaxis(weight.reshape(shape), kept, front), np.moveaxis(codes, kept, front)
    fit = {"MAX_MIN": _fit_max_min, "MSE": _fit_mse}[strategy]
    for block in channel_blocks(channels, inputs) if weight.size else ():
        rows = np.ascontiguousarray(read[block].reshape(-1, inputs))
        own = np.empty(rows.shape, codes.dtype)
        grid.put(block, fit(rows, bits, own, correct=correct))
        write[block] = own.reshape(read[block].shape)
    spread = tuple(size if axis in kept else 1 for axis, size in enumerate(shape))
    return QuantizedWeight(
        codes=codes,
        bits=bits,
        shape=weight.shape,
        scale=grid.scale.astype(np.float32).reshape(spread),
        offset=grid.offset.astype(np.float32).reshape(spread),
        zero_point=grid.zero_point.astype(np.int64).reshape(spread),
        variance=grid.variance.reshape(spread),
        mean=grid.mean.reshape(spread),
    )


def max_min_parameters(low: Doubles, high: Doubles, bits: int) -> tuple[Doubles, Doubles]:
    """Scale (a float32 number) and zero point that cover the range [low, high] of each channel.

    Seed-semantics section 5 at any width. Its widening of ranges below 1e-10 is left out: it
    serves constants, which are exact here, and would lose channels that are merely small.
    """
    steps = 2.0**bits - 1.0
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    step = np.maximum((high - low) / steps, TINY)
    below_zero = round_half_away(-low / step)
    step = step * _shrink(step, (2.0 ** (bits - 1) - below_zero) * step, bits)
    encoded_low = (-below_zero * step).astype(np.float32).astype(np.float64)
    encoded_high = ((steps - below_zero) * step).astype(np.float32).astype(np.float64)
    scale = ((encoded_high - encoded_low) / steps).astype(np.float32)
    wide = np.maximum(scale.astype(np.float64), TINY)
    return wide, round_half_away(-(2.0 ** (bits - 1)) - encoded_low / wide)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The fields of a QuantizedWeight, for many channels, in double."""

    scale: Doubles
    offset: Doubles
    zero_point: Doubles
    variance: Doubles
    mean: Doubles

    @classmethod
    def blank(cls, shape: tuple[int, ...]) -> Self:
        one, zero = np.ones(shape), np.zeros(shape)
        return cls(one, zero, zero.copy(), one.copy(), zero.copy())

    def put(self, block: Block, other: _Grid) -> None:
        for name in self.__slots__:
            whole = getattr(self, name)
            whole[block] = getattr(other, name).reshape(whole[block].shape)


def _fit_max_min(rows: NDArray[Any], bits: int, codes: NDArray[Any], *, correct: bool) -> _Grid:
    low, high = _extremes(rows)
    scale, zero_point = max_min_parameters(low, high, bits)
    moments = _encode(rows, scale, zero_point, bits, codes)
    variance, mean = np.ones_like(scale), np.zeros_like(scale)
    if correct:
        variance = _variance(moments, scale)
        mean = moments.mean - (moments.mean_code - zero_point) * scale * variance
    scale = scale * variance
    return _finish(
        _Grid(scale, mean - zero_point * scale, zero_point, variance, mean), low, high, codes, bits
    )


def _fit_mse(rows: NDArray[Any], bits: int, codes: NDArray[Any], *, correct: bool) -> _Grid:
    low, high = _extremes(rows)
    middle, half = (low + high) / 2.0, (high - low) / 2.0
    half = np.where(half > 0.0, half, 1.0)
    sample = rows[:, :: -(-rows.shape[1] // _SAMPLE)]
    unit = ((sample - middle[:, None]) / half[:, None]).astype(np.float32)
    if bits == 1:
        scale, offset = two_values(unit)
    else:
        first, zero_point = max_min_parameters(low, high, bits)
        scale, offset = search(unit, bits, first / half, (-zero_point * first - middle) / half)
    scale = np.maximum(scale * half, TINY)
    offset = offset * half + middle
    moments = _encode(rows, scale, -offset / scale, bits, codes)
    fitted = np.divide(moments.both, moments.codes, out=scale.copy(), where=moments.codes > 0.0)
    scale = np.where(fitted >= TINY, fitted, scale)
    variance = np.ones_like(scale)
    if correct and bits >= _VARIANCE_FROM:
        variance = _variance(moments, scale)
    mean = moments.mean * (1.0 - variance)  # least squares alone keep the mean
    scale = scale * variance
    offset = moments.mean - scale * moments.mean_code
    grid = _Grid(scale, offset, np.zeros_like(scale), variance, mean)
    return _finish(grid, low, high, codes, bits)


def _variance(moments: _Moments, scale: Doubles) -> Doubles:
    """CorrectionVar: what gives the decoded weights their standard deviation back."""
    wanted, found = np.sqrt(moments.weights), np.sqrt(moments.codes) * scale
    ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > _NO_SPREAD)
    usable = (wanted > _NO_SPREAD) & (ratio > 0.0) & (ratio < _MAXIMUM_VARIANCE)
    return np.where(usable, ratio, 1.0)


def _finish(grid: _Grid, low: Doubles, high: Doubles, codes: NDArray[Any], bits: int) -> _Grid:
    """The grid, finite in float32, and with channels of one value exact."""
    same = low == high
    codes[same] = 0
    value = low + 0.0  # no negative zero
    shrink = _shrink(grid.scale, grid.offset, bits)
    centred = np.abs(grid.offset) < _NO_OFFSET * grid.scale
    offset = np.where(centred, 0.0, grid.offset)
    return _Grid(
        np.where(same, 1.0, grid.scale * shrink),
        np.where(same, value, offset * shrink),
        np.where(same, 0.0, grid.zero_point),
        np.where(same, 1.0, grid.variance * shrink),
        np.where(same, value, grid.mean * shrink),
    )


def _shrink(scale: Doubles, offset: Doubles, bits: int) -> Doubles:
    """What a grid near the limits of float32 is multiplied by, so that decoding cannot overflow."""
    lowest = -(2.0 ** (bits - 1)) * scale
    highest = (2.0 ** (bits - 1) - 1.0) * scale
    largest = np.maximum.reduce(
        [-lowest, np.abs(offset), np.abs(lowest + offset), np.abs(highest + offset)]
    )
    return np.asarray(np.minimum(1.0, _LARGEST / np.maximum(largest, 1.0)), np.float64)


def _check_finite(weight: NDArray[Any]) -> None:
    if weight.size == 0 or (np.isfinite(weight.min()) and np.isfinite(weight.max())):
        return
    rows = weight.reshape(weight.shape[0], -1) if weight.ndim else weight.reshape(1, 1)
    wrong = sum(row.size - int(np.count_nonzero(np.isfinite(row))) for row in rows)
    raise NumericError(
        f"{wrong} of {weight.size} weights are NaN or infinite; weights have to be finite",
        hint="training or export went wrong there; skip_quant_node leaves the node as it is",
    )


def _extremes(rows: NDArray[Any]) -> tuple[Doubles, Doubles]:
    return rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)


# ------------------------------------------------------------------------------------ codes


@dataclass(frozen=True, slots=True)
class _Moments:
    """Means, variances and covariance of each channel's weights and codes."""

    mean: Doubles
    mean_code: Doubles
    weights: Doubles
    codes: Doubles
    both: Doubles


def _encode(
    rows: NDArray[Any], scale: Doubles, shift: Doubles, bits: int, codes: NDArray[Any]
) -> _Moments:
    """Write the codes ``round(row / scale + shift)`` and give the moments of both."""
    lowest, highest = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0
    mean = rows.mean(axis=1, dtype=np.float64)
    sums = np.zeros((4, len(rows)))
    for piece in pieces(*rows.shape):
        reals = rows[:, piece].astype(np.float64)
        own = reals / scale[:, None]
        own += shift[:, None]
        np.clip(round_half_away(own), lowest, highest, out=own)
        codes[:, piece] = own
        reals -= mean[:, None]
        sums[0] += own.sum(axis=1)
        for row, (a, b) in enumerate(((reals, reals), (own, own), (reals, own)), start=1):
            sums[row] += np.einsum("ij,ij->i", a, b)
    mean_code, weights, squares, both = sums / rows.shape[1]
    # the sum of the centred weights is zero, so their products with the codes need no mean
    return _Moments(mean, mean_code, weights, np.maximum(squares - mean_code**2, 0.0), both)
