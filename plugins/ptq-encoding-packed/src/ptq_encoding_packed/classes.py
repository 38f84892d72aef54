"""A prefix code that array operations decode: classes of equally long words.

Symbols are ranked by how frequent they are. The first ``2**w_0`` of them form class 0, the next
``2**w_1`` class 1, and so on up to ``2**k`` classes. The word of a symbol is its class, in k bits,
and its place in the class, in w_c bits. Classes stand in one stream, places in another, so a
decoder needs no loop: the places begin where the running sum of the widths says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Widths = NDArray[np.uint8]

# 3, 5 and 6 bits would save 0.3 % at most, and a model would need more functions, of 3 kB each.
CLASS_BITS = (1, 2, 4)
MOST_WIDTH = 16  # a place and the 15 bits that can precede it in its window make 31 bits


def design(counts: Counts, table: int) -> tuple[int, Widths]:
    """The code of fewest bits, by dynamic programming over (classes left, first rank).

    Args:
        counts: how often each symbol occurs, in descending order; at least one, at most 2**16.
        table: bits that one entry of the table of widths takes.

    Returns:
        Total of bits, the table included, and the widths of the classes, ``2**k`` of them.
    """
    symbols, total = counts.size, int(counts.sum())
    before = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)  # exact below 2**53
    widest = (symbols - 1).bit_length()
    sizes = [min(2**width, symbols) for width in range(widest + 1)]
    one_class = [
        width * (before[size:] - before[:-size]) for width, size in enumerate(sizes)
    ]  # bits of the symbols of one class, by its first rank
    left = np.arange(symbols, 0, -1)
    last_width = np.ceil(np.log2(left))  # of a class for all that are left
    last_class = np.append(last_width * (total - before[:-1]), 0)
    costs = [np.append(np.full(symbols, np.inf), 0)]  # of all from a rank on, in so many classes
    found = []
    room = np.empty(symbols + 1)
    for classes in range(1, 2 ** CLASS_BITS[-1] + 1):
        least = last_class.copy()
        for size, own in zip(sizes, one_class, strict=True):
            sums = np.add(own, costs[-1][size:], out=room[: own.size])
            np.minimum(least[: own.size], sums, out=least[: own.size])
        costs.append(least)
        k = classes.bit_length() - 1
        if classes == 2**k and k in CLASS_BITS:
            found.append((int(least[0]) + total * k + table * classes, classes))
    bits, classes = min(found)
    chosen = np.zeros(classes, np.uint8)
    first = 0
    for place in range(classes):
        rest = costs[classes - 1 - place]
        if first == symbols:
            break  # fewer classes would do
        options = [
            (own[first] + rest[first + size], width)
            for width, (size, own) in enumerate(zip(sizes, one_class, strict=True))
            if first < own.size
        ]
        options.append((last_class[first], int(last_width[first])))
        chosen[place] = min(options)[1]
        first = min(first + 2 ** int(chosen[place]), symbols)
    return bits, chosen


def first_ranks(widths: Widths) -> Counts:
    """The rank of the first symbol of each class."""
    sizes = np.left_shift(np.int64(1), widths.astype(np.int64))
    ranks: Counts = np.cumsum(sizes) - sizes
    return ranks
