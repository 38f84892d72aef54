"""How many bits codes need at least, when each is coded by how often its value occurs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 20  # codes that are counted at a time: counting widens them to eight bytes


def entropy(codes: NDArray[Any]) -> float:
    """Zeroth-order entropy of integer codes in bits a code, 0 where there are none or one value.

    What an entropy code that knows no context stays above, for each code on average.
    """
    counts = frequencies(codes)
    if codes.size == 0:
        return 0.0
    shares = counts[counts > 0] / codes.size
    return max(0.0, -float((shares * np.log2(shares)).sum()))


def entropy_bytes(codes: NDArray[Any]) -> int:
    """The same for all codes together, in whole bytes; the table of the values comes on top."""
    return math.ceil(codes.size * entropy(codes) / 8)


def frequencies(codes: NDArray[Any]) -> NDArray[np.int64]:
    """How often each value from the lowest code to the highest occurs."""
    if codes.size == 0:
        return np.zeros(0, np.int64)
    flat = codes.reshape(-1)
    low, high = int(flat.min()), int(flat.max())
    counts = np.zeros(high - low + 1, np.int64)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.int64) - low
        counts += np.bincount(piece, minlength=counts.size)
    return counts
