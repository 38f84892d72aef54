"""Mixed bits: a weight on a uniform grid, whose step comes from the error that it may make.

The width of a code follows from the data; what it costs in the end is the entropy of the codes.
One step serves the whole weight: a step for each channel costs more bytes than it saves at equal
accuracy, on depthwise layers, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away
from ptq_core.errors import NumericError
from ptq_core.weights.quantized import QuantizedWeight, container
from ptq_core.weights.rounding import Piece, channel_rows, grid_codes, pieces

_UNIFORM = math.sqrt(12.0)  # a step, by the standard deviation of what rounding to it leaves
_TOLERANCE = 0.01  # relative, of the error that is asked for; seed-semantics section 8.1
_EVALUATIONS = 24  # of the error; two or three are usual, data on a grid may take all
_SAMPLE = 1 << 16  # elements from which the step is searched
_FEW = 32  # weights of a channel, at most, for the channels' own errors to count: depthwise layers
_LEAST_SPREAD = 0.01  # of a channel, by that of the largest: dead channels ask for no precision
_LARGEST_CODE = 32765  # two less than int16 takes, for the offset's rounding and for sums
_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def step_for(weight: NDArray[Any], relative_error: float, axes: Sequence[int] = ()) -> float:
    """The step at which rounding makes this relative error, within a hundredth of it.

    The error is ``sqrt(sum (w - w')^2 / sum (w - mean)^2)``: relative to the weight about its mean,
    which the grid keeps. Where a channel has few weights (a depthwise layer), it is the mean over
    the channels of their own: there sizes differ by orders of magnitude, and a channel that gets
    lost is not made up for by others.

    Closed form first, which is exact for small errors; then a few steps of regula falsi. Data on a
    grid can skip the error that is asked for: then the largest step found that makes less.

    Args:
        weight: any shape, finite.
        relative_error: above 0.
        axes: of the output channels; empty where there are none.

    Errors   NumericError if a value is not finite.
    Source   seed-semantics section 8.1 (MindSpore Lite), its search replaced.
    """
    if relative_error <= 0.0:
        raise NumericError(f"a relative error has to be above 0, found {relative_error:g}")
    _check_finite(weight)
    groups = _groups(weight, axes)
    mean = _mean(groups)
    spread = _spread(groups)
    if spread is None:
        return abs(mean) or 1.0  # constant: exact at any step of which it is a multiple
    sample = _sample(groups)
    sampled = _spread(sample) if sample is not groups else spread
    start = relative_error * _UNIFORM / float((1.0 / spread).mean())
    if sampled is None:  # everything but a few outliers is constant
        return _search(groups, mean, spread, relative_error, start)
    step = _search(sample, mean, sampled, relative_error, start)
    if sample is groups:
        return step
    return _search(groups, mean, spread, relative_error, step)


def quantize_step(
    weight: NDArray[Any], step: float, keep_sums: Sequence[int] = ()
) -> QuantizedWeight:
    """The weight as multiples of a step, counted from the multiple that is nearest to its mean.

    Zeros stay exactly zero. Codes are as wide as they need to be; where they would need more than
    16 bits, the step is raised, which :func:`raised` tells.

    Args:
        weight: any shape, finite.
        step: above 0.
        keep_sums: axes of the output channels. Where given, the few weights of a channel that lie
            nearest to the middle of two codes are rounded to the other side, until the sum of the
            channel is off by no more than half a step. Inputs that are not negative, as behind a
            Relu, would carry that sum on; this costs no byte (Guo et al. 2022, SQuant).

    Errors   NumericError if a value or the step is not finite, or the step is not above 0.
    """
    if not (math.isfinite(step) and step > 0.0):
        raise NumericError(f"a step has to be finite and above 0, found {step:g}")
    _check_finite(weight)
    scale = np.float32(min(max(step, finest_step(weight)), _HUGE))
    middle = float(round_half_away(_mean(weight) / float(scale)))
    # in float32, as a runtime multiplies: the code -middle gives zero back exactly
    offset = np.float32(middle) * scale
    codes = grid_codes(weight, float(scale), float(offset), keep_sums)
    bits = _width(codes)
    ones = (1,) * weight.ndim
    inside = -(2 ** (bits - 1)) <= -middle < 2 ** (bits - 1)
    return QuantizedWeight(
        codes=codes.astype(container(bits)),
        bits=bits,
        shape=weight.shape,
        scale=np.full(ones, scale, np.float32),
        offset=np.full(ones, offset, np.float32),
        zero_point=np.full(ones, -int(middle) if inside else 0, np.int64),
        variance=np.ones(ones),
        mean=np.zeros(ones),
    )


def finest_step(weight: NDArray[Any]) -> float:
    """The least step at which codes fit into 16 bits."""
    mean = _mean(weight)
    reach = max((abs(float(end) - mean) for end in _ends(weight)), default=0.0)
    reach += abs(mean) * float(np.finfo(np.float32).eps)  # the offset's own rounding
    return max(reach / _LARGEST_CODE, _TINY)


def raised(quantized: QuantizedWeight, step: float) -> bool:
    """Whether the step had to be raised for the codes to fit into 16 bits."""
    return float(quantized.scale.reshape(-1)[0]) > step * (1.0 + 1e-6)  # float32 rounds the step


def relative_error(weight: NDArray[Any], values: NDArray[Any], axes: Sequence[int] = ()) -> float:
    """The error of :func:`step_for` that these values make; 0 for a constant weight."""
    groups, found = _groups(weight, axes), _groups(values, axes)
    spread = _spread(groups)
    return 0.0 if spread is None else _error(groups, lambda piece: found[piece], spread)


# ----------------------------------------------------------------------------------- the search


def _search(
    groups: NDArray[Any], mean: float, spread: NDArray[np.float64], target: float, start: float
) -> float:
    """The step near ``start`` that makes the error; the largest found that makes less, if none."""

    def error(step: float) -> float:
        scale = np.float32(min(max(step, _TINY), _HUGE))
        offset = np.float32(round_half_away(mean / float(scale))) * scale

        def values(piece: Piece) -> NDArray[Any]:
            exact = np.subtract(groups[piece], float(offset), dtype=np.float64)
            reals = round_half_away(exact / float(scale)).astype(np.float32)
            reals *= scale
            reals += offset
            return reals

        return _error(groups, values, spread)

    limit = 2.0 * max(abs(float(end) - mean) for end in _ends(groups))  # there all codes are 0
    below, above = (0.0, 0.0), (math.inf, math.inf)  # step and its error
    step = start
    for _ in range(_EVALUATIONS):
        found = error(step)
        if abs(found - target) <= _TOLERANCE / 2 * target:  # the whole weight may differ a little
            return step
        if found < target:
            below = (step, found)
        else:
            above = (step, found)
        step = min(_between(below, above, target), limit)
        if step in (below[0], above[0]) or step < _TINY:
            break
    return below[0] or start


def _between(below: tuple[float, float], above: tuple[float, float], target: float) -> float:
    """The next step to try: on the line through both ends, well inside of them."""
    if math.isinf(above[0]):
        ratio = target / below[1] if below[1] > 0.0 else 2.0
        return below[0] * min(max(ratio, 1.02), 2.0)
    if below[0] == 0.0:
        return above[0] * min(max(target / above[1], 0.5), 0.98)
    width, rise = above[0] - below[0], above[1] - below[1]
    share = (target - below[1]) / rise if rise > 0.0 else 0.5
    return below[0] + width * min(max(share, 0.1), 0.9)


def _error(
    groups: NDArray[Any], values: Callable[[Piece], NDArray[Any]], spread: NDArray[np.float64]
) -> float:
    """Mean over the groups of the relative error of each."""
    return float((_deviation(groups, values) / spread).mean())


def _deviation(
    groups: NDArray[Any], values: Callable[[Piece], NDArray[Any]]
) -> NDArray[np.float64]:
    """Root mean square of the difference, of every group."""
    squares = np.zeros(len(groups))
    for piece in pieces(groups.shape):
        difference = np.subtract(groups[piece], values(piece), dtype=np.float64)
        squares[piece[0]] += np.square(difference, out=difference).sum(axis=1)
    return np.asarray(np.sqrt(squares / groups.shape[1]))


def _groups(weight: NDArray[Any], axes: Sequence[int]) -> NDArray[Any]:
    """[groups, weights]: the channels where they are small, all in one otherwise."""
    rows = channel_rows(weight, axes)
    return rows if axes and rows.shape[1] <= _FEW else weight.reshape(1, -1)


def _spread(groups: NDArray[Any]) -> NDArray[np.float64] | None:
    """Standard deviation of every group, not less than a part of the largest; None if all are 0."""
    if groups.size == 0:
        return None
    means = np.asarray(np.mean(groups, axis=1, dtype=np.float64))[:, None]
    spread = _deviation(groups, lambda piece: means[piece[0]])
    largest = float(spread.max())
    # what summation leaves of a constant's deviations is no spread
    if largest <= np.finfo(np.float64).eps * float(np.abs(groups).max()) * 16:
        return None
    return np.asarray(np.maximum(spread, _LEAST_SPREAD * largest), np.float64)


def _sample(groups: NDArray[Any]) -> NDArray[Any]:
    """Elements of a large weight, always the same; a small one as it is."""
    if groups.size <= _SAMPLE or len(groups) > 1:
        return groups
    return groups[:, np.random.default_rng(0).integers(0, groups.size, _SAMPLE)]


def _width(codes: NDArray[np.int16]) -> int:
    low, high = (int(end) for end in _ends(codes)) if codes.size else (0, 0)
    return max(
        1, (-low - 1).bit_length() + 1 if low < 0 else 1, high.bit_length() + 1 if high else 1
    )


def _ends(array: NDArray[Any]) -> tuple[Any, ...]:
    return (array.min(), array.max()) if array.size else ()


def _mean(array: NDArray[Any]) -> float:
    return float(np.mean(array, dtype=np.float64)) if array.size else 0.0


def _check_finite(weight: NDArray[Any]) -> None:
    finite = np.isfinite(weight)
    if not finite.all():
        raise NumericError(f"has {int(weight.size - finite.sum())} values that are NaN or infinite")
