"""The calibrator: a histogram, and the search over it at the end."""

from __future__ import annotations

from typing import Any

from ptq_calibrator_mse.search import best_range
from ptq_core.api import QScheme, Range
from ptq_histogram import FloatHistogram


class MSE:
    """Counts values in a histogram, whose bins need no range beforehand: one pass is enough."""

    def __init__(self, scheme: QScheme) -> None:
        self._scheme = scheme
        self._histogram = FloatHistogram()

    def observe(self, values: Any, /) -> None:
        """Count the values."""
        self._histogram.observe(values)

    def end_pass(self) -> bool:
        """One pass is enough."""
        return False

    def merge(self, other: MSE, /) -> None:
        """Add the other one's counts, exactly: how data is split changes nothing."""
        self._histogram.merge(other._histogram)

    def result(self) -> Range:
        """The range with the least mean squared error over all values seen."""
        edges, counts = self._histogram.bins()
        if not counts.size:
            raise ValueError("no value was observed, so there is no range")
        return best_range(edges, counts, self._scheme)
