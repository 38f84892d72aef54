"""How close two versions of a tensor are, over many samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Closeness:
    """Cosine and SQNR of a tensor's values, and of its codes how many differ; a sample at a time.

    Attributes:
        samples: how many were added.
        steps: largest difference of two codes; None where no codes were given.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.steps: int | None = None
        self._codes = self._differing = 0
        self._signal = self._noise = self._cosines = 0.0

    def add(self, wanted: NDArray[Any], found: NDArray[Any]) -> None:
        """Take in one sample's values."""
        a, b = (np.asarray(one, np.float64).reshape(-1) for one in (wanted, found))
        signal, other = _product(a, a), _product(b, b)
        self.samples += 1
        self._cosines += _cosine(_product(a, b), signal, other)
        self._signal += signal
        a = a - b
        self._noise += _product(a, a)

    def add_codes(self, wanted: NDArray[Any], found: NDArray[Any]) -> None:
        """Take in one sample's codes."""
        differences = np.abs(wanted.astype(np.int64) - found.astype(np.int64))
        self.steps = max(self.steps or 0, int(differences.max(initial=0)))
        self._codes += differences.size
        self._differing += int(np.count_nonzero(differences))

    @property
    def cosine(self) -> float:
        """Mean over the samples."""
        return self._cosines / self.samples if self.samples else float("nan")

    @property
    def sqnr(self) -> float:
        """Signal to noise of all samples together, in dB; infinite where nothing differs."""
        if self._noise == 0.0:
            return float("inf")
        return 10.0 * float(np.log10(self._signal / self._noise)) if self._signal else -float("inf")

    @property
    def differing(self) -> float | None:
        """Share of the codes that differ."""
        return self._differing / self._codes if self._codes else None


def _product(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Without the threads of BLAS, which wait for one another longer than this takes."""
    return float(np.einsum("i,i->", a, b))


def _cosine(both: float, one: float, other: float) -> float:
    """From the products of two vectors; two zero vectors are alike (1)."""
    if one == other == 0.0:
        return 1.0
    return both / math.sqrt(one * other) if one and other else 0.0
