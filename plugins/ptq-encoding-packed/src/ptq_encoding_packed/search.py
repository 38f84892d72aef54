"""Which symbols to code: vectors of consecutive codes, without bits that are noise anyway.

The lowest r bits of a code are as good as random once the steps are much finer than the
distribution; stored as they are, they leave an alphabet so small that vectors of v codes make
symbols of their own. That brings a word's whole number of bits close to the entropy, and a runtime
has v times fewer words to find.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_encoding_packed.classes import Counts, Widths, design

Array = NDArray[Any]

MOST_SYMBOLS = 2**16
_LOW = (8, 4, 2, 1, 0)  # bits that may be stored as they are; others for the reason of CLASS_BITS
_NOISE = 0.02  # the share that storing low bits as they are may add to the entropy
_TABLE = 0.05  # a table of more than this of the entropy and one bit a code does not pay
_FASTER = 0.01  # the share that is given up for longer vectors, which load faster ...
_SLOW = 2**17  # ... with so many codes
_DENSE = 2**16  # pairs that are counted in an array in any case
_PROBE = 2**13  # vectors that show whether there are too many different ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbols:
    """A sequence of codes as symbols from a table.

    Attributes:
        low: bits of each code that are stored apart.
        ids: the symbol of each v codes, int32.
        counts: how often each symbol occurs, at least once.
        table: codes of each symbol, shifted down by ``low``; shape [symbols, v], int8 if they fit.
    """

    low: int
    ids: Array
    counts: Counts
    table: Array

    def table_bits(self) -> int:
        """Bits that the table takes."""
        return self.table.nbytes * 8

    def entropy_bits(self) -> float:
        """Least bits of all ids, for a code that knows nothing but how frequent each is."""
        share = self.counts / self.ids.size
        return float(-(self.counts * np.log2(share)).sum())


def choose(codes: Array) -> tuple[Symbols, Widths] | None:
    """The symbols and the code that take the fewest bits (or next to, and load faster).

    None where every table would be too large for so few codes.

    Args:
        codes: int8 or int16, 1-D, at least two different ones.
    """
    near = 1 + (_FASTER if codes.size >= _SLOW else 0)
    best: list[tuple[float, Symbols, Widths]] = []
    least = float("inf")
    for low in _noise(codes):
        before, here = least, float("inf")
        for symbols in _candidates(codes, low):
            apart = low * codes.size + symbols.table_bits()
            bound = apart + symbols.entropy_bits()
            here = min(here, bound)
            if bound <= least * near:
                bits, widths = design(np.sort(symbols.counts)[::-1], table=8)
                best.append((apart + bits, symbols, widths))
                least = min(least, apart + bits)
                best = [entry for entry in best if entry[0] <= least * near]
        if least == before and here < float("inf"):
            break  # fewer low bits apart: larger tables from here on
    if not best:
        return None
    _, symbols, widths = max(best, key=lambda entry: (entry[1].table.shape[1], -entry[0]))
    return symbols, widths


def _noise(codes: Array) -> list[int]:
    """How many low bits may be stored apart, most first: as many as are noise, or fewer."""
    most = _LOW[0]
    first = int(codes.min()) >> most << most
    counts = np.bincount(codes.astype(np.int64) - first)
    counts = np.append(counts, np.zeros(-counts.size % 2**most, np.int64))
    rates = {}
    for low in _LOW:
        share = counts.reshape(-1, 2**low).sum(axis=1) / codes.size
        share = share[share > 0]
        rates[low] = low - float((share * np.log2(share)).sum())
    return [low for low in _LOW if rates[low] <= rates[0] * (1 + _NOISE)]


def _candidates(codes: Array, low: int) -> Iterator[Symbols]:
    """Symbols without so many low bits: single codes, then 2, 4, 8 ... and 3, 6, 12 ..."""
    single = _single(codes, low)
    limit = _TABLE * (low * codes.size + single.entropy_bits() + codes.size)
    if single.counts.size > MOST_SYMBOLS or single.table_bits() > limit:
        return
    yield single
    for times in (2, 3):
        longer = _joined(single, times, limit)
        while longer is not None:
            yield longer
            longer = _joined(longer, 2, limit)


def _single(codes: Array, low: int) -> Symbols:
    high = codes >> low
    first = int(high.min())
    ids = high.astype(np.int64) - first
    ids, counts, distinct = _occurring(ids, np.bincount(ids))
    values = (distinct + first).reshape(-1, 1)
    narrow = np.int8 if values[0, 0] >= -128 and values[-1, 0] < 128 else codes.dtype
    return Symbols(low=low, ids=ids, counts=counts, table=values.astype(narrow))


def _joined(symbols: Symbols, times: int, limit: float) -> Symbols | None:
    """Symbols of so many of these each; None where there would be too many."""
    base = symbols.counts.size
    length = -(-symbols.ids.size // times)
    if length < 2:
        return None
    ids: Array = np.full(length * times, symbols.counts.argmax(), np.int32)
    ids[: symbols.ids.size] = symbols.ids
    keys = ids[::times].astype(np.int64)
    for step in range(1, times):
        keys = keys * base + ids[step::times]
    entry_bits = symbols.table.itemsize * 8 * symbols.table.shape[1] * times
    most = min(MOST_SYMBOLS, limit / entry_bits)
    if np.unique(keys[:_PROBE]).size > most:
        return None
    counts: Counts
    distinct: Array
    if base**times <= max(_DENSE, 2 * length):
        ids, counts, distinct = _occurring(keys, np.bincount(keys, minlength=base**times))
    else:
        distinct, places, counts = np.unique(keys, return_inverse=True, return_counts=True)
        ids = places.reshape(-1).astype(np.int32)
    if counts.size > most:
        return None
    parts = [symbols.table[distinct // base ** (times - 1 - step) % base] for step in range(times)]
    return Symbols(low=symbols.low, ids=ids, counts=counts, table=np.concatenate(parts, axis=1))


def _occurring(keys: Array, counts: Counts) -> tuple[Array, Counts, Array]:
    """Numbers without gaps for the keys that occur: ids, their counts, their keys."""
    distinct = np.flatnonzero(counts)
    renumber = np.zeros(counts.size, np.int32)
    renumber[distinct] = np.arange(distinct.size)
    return renumber[keys], counts[distinct], distinct
