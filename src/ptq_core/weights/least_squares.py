"""The affine grid of the least squared error for channels of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

TINY = float(np.finfo(np.float32).tiny)  # the least scale
# Half the ranges that the search starts from, in standard deviations. The best uniform grids for
# normal weights end at 1.5 (2 bits), 2.05 (3), 2.5 (4), 2.9 (5), 3.3 (6) and 3.9 (8).
_STARTS = (0.75, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0)
_CUTS = (-0.3, 0.0, 0.3, 0.6)  # of half the whole range, at either end: further starts
_ALTERNATIONS = 4  # for each start
_LAST_ALTERNATIONS = 24  # at most, for the best of them


def two_values(unit: Floats) -> tuple[Doubles, Doubles]:
    """Scale and offset of the two values of least squared error: the best cut of the sorted row."""
    ordered = np.sort(unit, axis=1)
    count = ordered.shape[1]
    sums = np.cumsum(ordered, axis=1, dtype=np.float64)
    total = sums[:, -1:]
    if count == 1:
        return np.ones(len(unit)), total[:, 0]
    left = np.arange(1.0, count)
    gain = (sums[:, :-1] - total * (left / count)) ** 2 / (left * (count - left))
    cut = np.argmax(gain, axis=1)[:, None]
    low = np.take_along_axis(sums, cut, axis=1) / (cut + 1.0)
    high = (total - low * (cut + 1.0)) / (count - (cut + 1.0))
    return np.maximum(high - low, TINY)[:, 0], high[:, 0]


def search(unit: Floats, bits: int, scale: Doubles, offset: Doubles) -> tuple[Doubles, Doubles]:
    """Scale and offset of the least squared error that alternation finds from several starts.

    Args:
        unit: channels shifted and scaled into [-1, 1].
        bits: 2 to 16.
        scale: of a grid that is one of the starts, so that the result is never worse.
        offset: likewise.
    """
    mean, spread = unit.mean(axis=1), unit.std(axis=1)
    ranges = [
        (np.maximum(mean - start * spread, -1.0), np.minimum(mean + start * spread, 1.0))
        for start in _STARTS
    ]
    one = np.ones_like(mean)
    ranges += [(below - one, one - above) for below in _CUTS for above in _CUTS]
    starts = [(scale.astype(np.float32), offset.astype(np.float32))]
    for low, high in ranges:
        step = np.maximum((high - low) / np.float32(2**bits - 1), np.float32(TINY))
        starts.append((step, low + step * np.float32(2 ** (bits - 1))))
    work = _Alternation(unit, bits, mean)
    best, best_error = work.run(*starts[0], _ALTERNATIONS)
    for start in starts[1:]:
        found, error = work.run(*start, _ALTERNATIONS)
        better = error < best_error
        best = (np.where(better, found[0], best[0]), np.where(better, found[1], best[1]))
        best_error = np.where(better, error, best_error)
    found, error = work.run(*best, _LAST_ALTERNATIONS)
    better = error < best_error
    final = (np.where(better, found[side], best[side]).astype(np.float64) for side in (0, 1))
    return next(final), next(final)


class _Alternation:
    """Nearest codes, then scale and offset by least squares, in turns; in float32."""

    def __init__(self, unit: Floats, bits: int, mean: Floats) -> None:
        self._unit, self._mean = unit, mean
        self._limits = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1.0
        self._codes = np.empty_like(unit)

    def run(
        self, scale: Floats, offset: Floats, turns: int
    ) -> tuple[tuple[Floats, Floats], Floats]:
        """The grid after some turns, and its mean squared error for each channel."""
        unit, codes = self._unit, self._codes
        for _ in range(turns):
            before = scale, offset
            np.multiply(unit, (1.0 / scale)[:, None], out=codes)
            np.subtract(codes, (offset / scale)[:, None], out=codes)
            np.rint(codes, out=codes)
            np.clip(codes, *self._limits, out=codes)
            mean = codes.mean(axis=1)
            both = np.einsum("ij,ij->i", unit, codes) / unit.shape[1] - self._mean * mean
            square = np.einsum("ij,ij->i", codes, codes) / unit.shape[1] - mean * mean
            usable = (square > 0.0) & (both > 0.0)
            scale = np.divide(both, square, out=scale.copy(), where=usable)
            offset = self._mean - scale * mean
            if (scale == before[0]).all() and (offset == before[1]).all():
                break
        np.multiply(codes, scale[:, None], out=codes)
        codes += offset[:, None]
        codes -= unit
        return (scale, offset), np.einsum("ij,ij->i", codes, codes) / unit.shape[1]
