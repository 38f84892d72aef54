"""What the search has to know of an activation, in memory that is bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST_ROWS = 2  # of a sample's rows those with the largest values are always kept


@dataclass(kw_only=True, slots=True)
class Activation:
    """An activation over the samples.

    Attributes:
        rows: how many rows are kept of each sample.
        low: smallest value of each channel, for every sample.
        high: largest.
        kept: rows, for every sample.
    """

    rows: int
    low: list[NDArray[np.float32]] = field(default_factory=list)
    high: list[NDArray[np.float32]] = field(default_factory=list)
    kept: list[NDArray[np.float32]] = field(default_factory=list)

    def observe(self, values: NDArray[Any]) -> None:
        """Take in one sample; of its rows the largest, and others evenly."""
        table = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
        if not len(table):
            return
        self.low.append(table.min(axis=0))
        self.high.append(table.max(axis=0))
        largest = np.argsort(np.abs(table).max(axis=1))[-_LARGEST_ROWS:]
        even = np.linspace(0, len(table) - 1, max(1, self.rows - _LARGEST_ROWS)).astype(int)
        self.kept.append(table[np.unique(np.concatenate([largest, even]))])
