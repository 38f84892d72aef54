"""A histogram of float32 values that needs no range beforehand and merges exactly.

For calibrators that decide where to clip: they see the data once, in any order and any batches,
and keep a table instead of samples.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_histogram import kernels

__all__ = ["FloatHistogram"]

_FULL = 2**32 - 1  # what a counter of 32 bits can hold
_PIECE = 2**31 - 1  # values that are counted at a time


class FloatHistogram:
    """Counts of float32 values in bins that follow from the values' own bits.

    With A the largest magnitude seen, bins are between A/8192 and A/4096 wide from A down to
    about A/50; below, every octave has 64 bins, down to about A * 1e-6; what is smaller is in one
    bin beside zero. Zeros are counted apart. Counts are exact and follow from the values only, not
    from their order nor from how they were split over histograms that were merged.

    At most 36 kB a sign, and only where values occur.
    """

    def __init__(self) -> None:
        self._top = kernels.LOWEST_TOP
        self._layout = kernels.layout(self._top)
        self._counts = _no_counts()
        self._counted = 0  # how many values these hold: never more than one counter can
        self._folded: NDArray[np.int64] | None = None  # counts beyond those
        # extremes as integers that are in the order of the floats, see kernels.count
        self._low, self._high = 0x7FFFFFFF, -0x7FFFFFFF

    def observe(self, values: NDArray[Any], /) -> None:
        """Count the values: any shape, converted to float32. Releases the GIL.

        FloatingPointError where one is NaN or infinite; the counts are of no use then.
        """
        flat = np.asarray(values, np.float32).ravel(order="K")
        flat.flags.writeable = False  # one type for the kernel, whatever the caller's array is
        for start in range(0, flat.size, _PIECE):
            self._count(flat[start : start + _PIECE])

    def _count(self, values: NDArray[np.float32]) -> None:
        if self._counted + values.size > _FULL:
            self._restart(self._top, self._totals())
        done, low, high = kernels.count(values, self._counts, self._layout)
        self._counted += done
        self._low, self._high = min(self._low, low), max(self._high, high)
        if done < values.size:
            rest = values[done:]
            if not (np.isfinite(rest.min()) and np.isfinite(rest.max())):
                raise FloatingPointError
            top = max(_octave(rest.min()), _octave(rest.max()))
            self._restart(top, self._moved(top))
            self._count(rest)

    def merge(self, other: FloatHistogram, /) -> None:
        """Add what another histogram has counted, which stays as it is."""
        top = max(self._top, other._top)
        self._restart(top, self._moved(top) + other._moved(top))
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    @property
    def count(self) -> int:
        """How many values were seen, zeros included."""
        return self._counted + (0 if self._folded is None else int(self._folded.sum()))

    @property
    def zeros(self) -> int:
        """How many of them were exactly 0."""
        return int(self._totals()[:, : kernels.ZEROS].sum())

    @property
    def low(self) -> float:
        """The smallest value, infinity where nothing was seen."""
        return _as_float(self._low) if self._low <= self._high else float("inf")

    @property
    def high(self) -> float:
        """The largest value, minus infinity where nothing was seen."""
        return _as_float(self._high) if self._low <= self._high else float("-inf")

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Signed histogram: ascending edges (n + 1) and counts (n), both empty where nothing is.

        The outermost edges are ``low`` and ``high``; neighbouring empty bins are one. Of its two
        edges a bin contains the one that is nearer to zero. A bin without width is a single value:
        zeros are in a bin [0, 0], and an extreme may have one, for example the 6 of a Relu6.
        """
        totals = self._totals()
        if not totals.any():
            return np.zeros(0), np.zeros(0, np.int64)
        lower = kernels.lower_edges(self._top)
        edges = np.concatenate(([-np.inf], 0.0 - lower[::-1], lower, [np.inf]))
        zeros = totals[:, : kernels.ZEROS].sum()
        minus, plus = totals[1, kernels.SMALLER :], totals[0, kernels.SMALLER :]
        counts = np.concatenate((minus[::-1], [zeros], plus))
        filled = counts > 0
        # the edges of filled bins; what is empty between two of them becomes one bin
        kept = np.flatnonzero(np.append(filled, False) | np.append(False, filled))
        return np.clip(edges[kept], self.low, self.high), counts[kept[:-1]]

    def magnitudes(self, bins: int) -> NDArray[np.float64]:
        """Histogram of ``|x|`` in equal bins over [0, max(|low|, |high|)]; zeros are not counted.

        The count of a bin of :meth:`bins` is spread over those that it overlaps, in proportion but
        in whole numbers: in a sparse tail one value stays one, and does not fill two bins.
        """
        edges, counts = self.bins()
        result = np.zeros(bins)
        largest = max(abs(self.low), abs(self.high)) if counts.size else 0.0
        if largest == 0.0:
            return result
        left, right = edges[:-1], edges[1:]
        plus, minus = (counts > 0) & (right > 0), (counts > 0) & (left < 0)
        result += _spread(left[plus], right[plus], counts[plus], largest, bins)
        result += _spread(
            -right[minus][::-1], -left[minus][::-1], counts[minus][::-1], largest, bins
        )
        return result

    def _totals(self) -> NDArray[np.int64]:
        """Counts by sign, plus first, and slot."""
        totals = self._counts.reshape(2, kernels.SLOTS).astype(np.int64)
        return totals if self._folded is None else totals + self._folded

    def _moved(self, top: int) -> NDArray[np.int64]:
        """Counts by sign and slot for a top octave that is no lower."""
        totals = self._totals()
        if top == self._top or not totals.any():
            return totals
        moved = np.zeros_like(totals)
        to = kernels.slots(kernels.lower_words(self._top), kernels.layout(top))
        signs, places = np.nonzero(totals)
        np.add.at(moved, (signs, to[places]), totals[signs, places])
        return moved

    def _restart(self, top: int, totals: NDArray[np.int64]) -> None:
        """Go on from these counts."""
        self._top, self._layout = top, kernels.layout(top)
        self._counts = _no_counts()
        self._counted, self._folded = 0, totals
        if totals.sum() <= _PIECE:  # they fit, so they need no table of their own
            filled = np.flatnonzero(totals)  # memory of a sign that does not occur stays untouched
            self._counts[filled] = totals.reshape(-1)[filled]
            self._counted, self._folded = int(totals.sum()), None


def _no_counts() -> NDArray[np.uint32]:
    return np.zeros(2 * kernels.SLOTS, np.uint32)


def _octave(value: np.float32) -> int:
    return int(value.view(np.uint32)) >> 23 & 0xFF


def _as_float(ordered: int) -> float:
    """The float that :func:`kernels.count` found as an integer; -0.0 is 0.0."""
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    value: float = struct.unpack("=f", struct.pack("=i", bits))[0]
    return value + 0.0


def _spread(
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    counts: NDArray[np.int64],
    largest: float,
    bins: int,
) -> NDArray[np.float64]:
    """Counts of ascending intervals, in equal bins over [0, largest]."""
    result = np.zeros(bins)
    single = lower == upper
    index = (lower[single] / largest * bins).astype(np.int64)
    np.add.at(result, np.minimum(index, bins - 1), counts[single])
    if not single.all():
        below = np.cumsum(counts * ~single)
        ends = np.stack((lower, upper), axis=1).reshape(-1)
        cumulated = np.stack((np.append(0, below[:-1]), below), axis=1).reshape(-1)
        wanted = np.interp(np.linspace(0.0, largest, bins + 1), ends, cumulated)
        result += np.diff(np.floor(wanted + 0.5))
    return result
