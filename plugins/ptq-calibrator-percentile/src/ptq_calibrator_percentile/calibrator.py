"""The calibrator: a histogram of all values, and its quantiles at the end."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptq_core.api import Range
from ptq_histogram import FloatHistogram

Doubles: TypeAlias = NDArray[np.float64]

_ROUNDING = 1e-6  # of a value: 100 - percentile is not exact


class Percentile:
    """Counts values in a histogram, whose bins need no range beforehand: one pass is enough."""

    def __init__(self, percentile: float, *, symmetric: bool) -> None:
        self._percentile = percentile
        self._symmetric = symmetric
        self._share = (100 - percentile) / (100 if symmetric else 200)  # outside of each end
        self._histogram = FloatHistogram()

    def observe(self, values: Any, /) -> None:
        """Count the values."""
        self._histogram.observe(values)

    def end_pass(self) -> bool:
        """One pass is enough."""
        return False

    def merge(self, other: Percentile, /) -> None:
        """Add the other one's counts, exactly: how data is split changes nothing."""
        self._histogram.merge(other._histogram)

    def note(self) -> str | None:
        """A sentence for the report where there were too few values for any to be left out."""
        if self._left_out() or not self._histogram.count or self._percentile == 100:
            return None
        needed = math.ceil(round(1 / self._share, 3))
        return (
            f"nothing was left out: a percentile of {self._percentile:.10g} needs {needed} values "
            "in all; the range is from the smallest to the largest"
        )

    def result(self) -> Range:
        """The quantiles at both ends; where the scheme is symmetric, that of the magnitudes."""
        edges, counts = self._histogram.bins()
        if not counts.size:
            raise ValueError("no value was observed, so there is no range")
        left_out = self._left_out()
        if self._symmetric:
            bound = upper_quantile(*folded(edges, counts), left_out)
            return Range(low=-bound, high=bound)
        return Range(
            low=0.0 - upper_quantile(*mirrored(edges, counts), left_out),  # 0.0, never -0.0
            high=upper_quantile(edges, cumulated(counts), left_out),
        )

    def _left_out(self) -> int:
        """How many values may lie outside an end: whole ones, none where the share is less."""
        return int(self._histogram.count * self._share + _ROUNDING)


def upper_quantile(edges: Doubles, below: Doubles, left_out: int) -> float:
    """The place above which ``left_out`` values lie, which are spread evenly within their bins.

    Shapes   edges (n), ascending; below (n): how many values are below or at each edge. Between two
             equal edges are as many values of just that size.
    """
    index = int(np.flatnonzero(below[-1] - below[:-1] > left_out)[-1])
    inside = left_out - (below[-1] - below[index + 1])
    share = inside / (below[index + 1] - below[index])
    return float(edges[index + 1] - share * (edges[index + 1] - edges[index]))


def cumulated(counts: NDArray[np.int64]) -> Doubles:
    """From counts of bins, how many values are below each edge."""
    return np.append(0.0, np.cumsum(counts))


def mirrored(edges: Doubles, counts: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """Edges of the histogram of ``-x``, and how many values are below each."""
    return -edges[::-1], cumulated(counts[::-1])


def folded(edges: Doubles, counts: NDArray[np.int64]) -> tuple[Doubles, Doubles]:
    """Edges of the histogram of ``|x|``, each of them twice, and how many values are below each."""
    magnitudes = np.unique(np.append(np.abs(edges), 0.0))

    def up_to(places: Doubles) -> Doubles:
        # Of two equal edges, interp takes the later one, so values of just that size are counted.
        found = np.interp(places, edges, cumulated(counts))
        return np.asarray(found + np.interp(places, *mirrored(edges, counts)), np.float64)

    total = counts.sum()
    smaller = np.maximum(total - up_to(-magnitudes), 0.0)  # of values of just that size, none
    below = np.stack((smaller, up_to(magnitudes) - total), axis=1)
    return np.repeat(magnitudes, 2), below.reshape(-1)
