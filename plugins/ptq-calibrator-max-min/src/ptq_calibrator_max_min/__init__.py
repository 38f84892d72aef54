"""MAX_MIN: a tensor's range is from the smallest to the largest value seen in any sample.

The best choice when the calibration data looks like the data at inference; a single outlier widens
the range for all. Source: seed-semantics section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ptq_core.api import Calibrator, CalibratorEntry, ObservedTensor, Range, hookimpl

ptq_api_version = (1, 0)


class MaxMin:
    """Running minimum and maximum. NumPy's own reductions are vectorized and release the GIL."""

    def __init__(self, bounds: tuple[float, float] | None = None) -> None:
        self._bounds = bounds
        self._low = float("inf")
        self._high = float("-inf")

    def observe(self, values: Any, /) -> None:
        """Widen the range by the values; FloatingPointError where one is NaN or infinite."""
        if values.size:
            low, high = float(values.min()), float(values.max())  # NaN if any value is
            if not (math.isfinite(low) and math.isfinite(high)):
                raise FloatingPointError
            self._low, self._high = min(self._low, low), max(self._high, high)

    def settled(self) -> bool:
        """Whether both ends have reached the bounds that the values cannot leave."""
        bounds = self._bounds
        return bounds is not None and self._low <= bounds[0] and self._high >= bounds[1]

    def end_pass(self) -> bool:
        """One pass is enough."""
        return False

    def merge(self, other: MaxMin, /) -> None:
        """Widen the range by the other one."""
        self._low = min(self._low, other._low)
        self._high = max(self._high, other._high)

    def result(self) -> Range:
        """Smallest and largest value."""
        return Range(low=self._low, high=self._high)


def _make(tensor: ObservedTensor, options: object) -> Calibrator:
    return MaxMin(tensor.bounds)


@hookimpl
def ptq_calibrators() -> Iterator[CalibratorEntry]:
    """Offer MAX_MIN."""
    yield CalibratorEntry(
        name="MAX_MIN",
        summary="smallest and largest value seen; for clean calibration data",
        factory=_make,
        aliases=("MIN_MAX", "MINMAX"),
        batched=True,
        checks_finite=True,
    )
