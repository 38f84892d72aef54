"""The calibrator: exact sums of the samples' quantiles."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from ptq_calibrator_removal_outlier.order import ranked_from_end
from ptq_core.api import Range


class RemovalOutlier:
    """Sums of the samples' quantiles.

    The sums are exact, so that neither the order of the samples nor how they are split over merged
    calibrators changes a bit of the result.
    """

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._low = self._high = Fraction(0)
        self._samples = 0
        self._removed = False

    def observe(self, values: Any, /) -> None:
        """Add the quantiles of one sample."""
        size = values.size
        if not size:
            return
        below, above = removed(size, self._fraction)
        flat = values.reshape(-1)
        self._low += Fraction(float(ranked_from_end(flat, below, "low")))
        self._high += Fraction(float(ranked_from_end(flat, above, "high")))
        self._samples += 1
        self._removed |= below + above > 0

    def end_pass(self) -> bool:
        """One pass is enough."""
        return False

    def merge(self, other: RemovalOutlier, /) -> None:
        """Add the other one's samples."""
        self._low += other._low
        self._high += other._high
        self._samples += other._samples
        self._removed |= other._removed

    def note(self) -> str | None:
        """A sentence for the report where every sample was too small for anything to be removed."""
        if self._removed or not self._samples or self._fraction == 0:
            return None
        needed = math.ceil(round(1 / self._fraction, 6))
        return (
            f"nothing was removed: a fraction of {self._fraction:g} needs {needed} values per "
            "sample; the range is the mean of the samples' minima and maxima"
        )

    def result(self) -> Range:
        """Mean over the samples of the lower and of the upper quantile, correctly rounded."""
        if not self._samples:
            raise ValueError("no value was observed, so there is no range")
        return Range(low=float(self._low / self._samples), high=float(self._high / self._samples))


def removed(size: int, fraction: float) -> tuple[int, int]:
    """How many of ``size`` sorted values stand before the low and behind the high quantile.

    The quantiles are at the indices ``int(fraction * size)`` and ``int((1 - fraction) * size)``,
    computed in float32 as the original computes them, and at most the last one: of 20000 values,
    2 are removed below and 1 above.
    """
    last = size - 1
    below = int(np.float32(fraction) * np.float32(size))
    high = int(np.float32(1 - fraction) * np.float32(size))
    return min(below, last), last - min(high, last)
