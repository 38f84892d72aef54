"""The scale and zero point with which quantizing a histogram costs the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptq_core.api import QScheme, Range

Doubles: TypeAlias = NDArray[np.float64]

_RATIO = 2.0**0.25  # of one scale to the next in the first search
_MOST = 120  # scales of that search: 30 octaves; it ends by itself long before
_HALVINGS = 5  # of that ratio afterwards, down to steps of 0.5 %
_ZERO_POINTS = 512  # tried at once; all of 8 bits, and 16 bits in two searches


def best_range(edges: NDArray[Any], counts: NDArray[Any], scheme: QScheme) -> Range:
    """The range whose codes represent the binned values with the least mean squared error.

    Codes are the points ``scale * (code - zero_point)`` with an integer zero point, so that zero is
    one of them. A value between the outermost points errs by its distance to the nearest point, a
    value outside by that to the outermost. Both are integrated over the bins, in which values are
    taken to be spread evenly. The widest range tried is the values' own; from there the scale
    shrinks until what is cut off costs more by itself than the best range does in all.

    Shapes   edges (n + 1), ascending; counts (n). A bin without width holds equal values.
    """
    values = _values(np.asarray(edges, np.float64), np.asarray(counts, np.float64))
    widest = _widest(values, scheme)
    if widest == 0.0:
        return Range(low=0.0, high=0.0)
    best = _at(widest, values, scheme)
    for power in range(1, _MOST):
        found = _at(widest / _RATIO**power, values, scheme)
        if found.outside > best.error:
            break
        best = min(best, found, key=_error)
    ratio = _RATIO
    for _ in range(_HALVINGS):
        ratio = ratio**0.5
        near = (best.scale / ratio, min(best.scale * ratio, widest))
        best = min(best, *(_at(scale, values, scheme) for scale in near), key=_error)
    if scheme.symmetric:
        half = best.scale * (scheme.qmax - scheme.qmin) / 2
        return Range(low=-half, high=half)
    return Range(
        low=best.scale * (scheme.qmin - best.zero_point),
        high=best.scale * (scheme.qmax - best.zero_point),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Values:
    """The histogram, with zero among its edges.

    Attributes:
        edges: ascending, from the lower end of what codes have to represent to the upper one.
        counts: of the bins between.
        densities: counts per width, 0 where a bin has no width.
        points: the bins without width.
        below: what cutting off the lowest values costs.
        above: what cutting off the highest values costs, by the negative of the place.
    """

    edges: Doubles
    counts: Doubles
    densities: Doubles
    points: NDArray[np.intp]
    below: _CutOff
    above: _CutOff


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """The best zero point of one scale.

    Attributes:
        scale: tried.
        zero_point: the best with it.
        error: the sum of all squared errors.
        outside: at least so much of it is of values outside, whatever the zero point.
    """

    scale: float
    zero_point: int
    error: float
    outside: float


def _error(found: _Found) -> float:
    return found.error


def _values(edges: Doubles, counts: Doubles) -> _Values:
    if edges[0] > 0:
        edges, counts = np.append(0.0, edges), np.append(0.0, counts)
    if edges[-1] < 0:
        edges, counts = np.append(edges, 0.0), np.append(counts, 0.0)
    widths = np.diff(edges)
    return _Values(
        edges=edges,
        counts=counts,
        densities=np.divide(counts, widths, out=np.zeros(counts.size), where=widths > 0),
        points=np.flatnonzero(widths == 0),
        below=_CutOff(edges, counts),
        above=_CutOff(-edges[::-1], counts[::-1]),
    )


class _CutOff:
    """Squared error of representing all values before a place by that place, for any place."""

    def __init__(self, edges: Doubles, counts: Doubles) -> None:
        self._edges = edges
        self._widths = widths = np.diff(edges)
        self._thirds = np.divide(counts, 3 * widths, out=np.zeros(counts.size), where=widths > 0)
        # At each edge: how many values are before it, the sum of their distances, and of the
        # squares. From edge to edge every distance grows by the width, and the bin's values join.
        self._counts = np.cumsum(counts) - counts
        growth = widths * (self._counts + counts / 2)
        self._distances = np.cumsum(growth) - growth
        growth = widths * (2 * self._distances + widths * (self._counts + counts / 3))
        self._squares = np.cumsum(growth) - growth

    def __call__(self, places: Doubles) -> Doubles:
        """The sums of squares at these places, which are at most the last edge."""
        after = np.searchsorted(self._edges, places, side="right")
        bins = np.clip(after - 1, 0, self._widths.size - 1)
        inside = np.clip(places - self._edges[bins], 0.0, self._widths[bins])
        weights = self._counts[bins] + inside * self._thirds[bins]
        growth = inside * (2 * self._distances[bins] + inside * weights)
        return np.asarray(self._squares[bins] + growth, np.float64)


def _rounding_before(scale: float, values: _Values) -> Doubles:
    """At each edge, the sum of the squared rounding errors before it.

    Every multiple of the scale is a code here. A point errs by its distance to the nearest one. In
    units of the scale, with ``d`` the distance, the integral of the square is ``d**3 / 3``, and it
    grows by ``1 / 12`` from one multiple to the next.
    """

    def distances(places: Doubles) -> tuple[Doubles, Doubles]:
        units = places * (1 / scale)
        nearest = np.rint(units)
        units -= nearest
        return units, nearest

    # The search spends its time here: few passes over the edges, and few new arrays.
    distance, integral = distances(values.edges)
    cubes = distance * distance
    cubes *= distance
    cubes *= 4.0
    integral += cubes
    growth = np.diff(integral)
    growth *= values.densities
    growth *= scale**3 / 12
    distance, _ = distances(values.edges[values.points])
    growth[values.points] = values.counts[values.points] * (distance * scale) ** 2
    return np.append(0.0, np.cumsum(growth))


def _at(scale: float, values: _Values, scheme: QScheme) -> _Found:
    """The best zero point for this scale: all are tried, of many every n-th first."""
    rounding = _rounding_before(scale, values)
    first, last = _zero_points(scale, values, scheme)
    while True:
        stride = 1 + (last - first) // _ZERO_POINTS
        zero_points = np.arange(first, last + 1, stride)
        lows = np.asarray(scale * (scheme.qmin - zero_points), np.float64)
        highs = np.asarray(scale * (scheme.qmax - zero_points), np.float64)
        inside = np.interp(highs, values.edges, rounding) - np.interp(lows, values.edges, rounding)
        outside = values.below(lows) + values.above(-highs)
        best = int(np.argmin(inside + outside))
        found = int(zero_points[best])
        if stride == 1:
            return _Found(
                scale=scale,
                zero_point=found,
                error=float(inside[best] + outside[best]),
                outside=float(outside.min()),
            )
        first, last = max(first, found - stride), min(last, found + stride)


def _middle(scheme: QScheme) -> int:
    return 0 if scheme.signed else 1 << (scheme.bits - 1)


def _widest(values: _Values, scheme: QScheme) -> float:
    """The smallest scale whose codes reach all values; 0 where all are 0."""
    low, high = float(values.edges[0]), float(values.edges[-1])
    if scheme.symmetric:
        middle = _middle(scheme)
        return max(high / (scheme.qmax - middle), low / (scheme.qmin - middle))
    return (high - low) / (scheme.qmax - scheme.qmin)


def _zero_points(scale: float, values: _Values, scheme: QScheme) -> tuple[int, int]:
    """First and last zero point whose codes do not reach farther than the values."""
    if scheme.symmetric:
        return _middle(scheme), _middle(scheme)
    low, high = float(values.edges[0]), float(values.edges[-1])
    first = max(scheme.qmin, int(np.floor(scheme.qmax - high / scale)))
    last = min(scheme.qmax, int(np.ceil(scheme.qmin - low / scale)))
    return min(first, scheme.qmax), max(first, last)
