"""One tensor's histogram while samples are seen, its threshold at the end."""

from __future__ import annotations

from typing import Any

from ptq_calibrator_kl.threshold import threshold
from ptq_core.api import Range
from ptq_histogram import FloatHistogram


class KL:
    """Counts values in a histogram that needs no range, and searches the threshold once."""

    def __init__(self, *, bins: int, levels: int) -> None:
        self._bins, self._levels = bins, levels
        self._seen = FloatHistogram()

    def observe(self, values: Any, /) -> None:
        """Count the values; releases the GIL."""
        self._seen.observe(values)

    def end_pass(self) -> bool:
        """One pass is enough."""
        return False

    def merge(self, other: KL, /) -> None:
        """Add the counts of the other one."""
        self._seen.merge(other._seen)

    def result(self) -> Range:
        """[-T, T], of which only what was seen is kept; infinite where nothing was seen."""
        low, high = self._seen.low, self._seen.high
        largest = max(abs(low), abs(high))
        clip = largest * threshold(self._seen.magnitudes(self._bins), self._levels)
        return Range(low=max(low, -clip), high=min(high, clip))
