"""Which symbols there are, in how many of 2**k slots each, and how that is written down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq_encoding_rans.kernels import get_golomb, put_golomb

SLOT_BITS = range(12, 16)  # below, rounding costs; above, f does not fit into 16 bits
MOST_LOW = 8
_BITS_A_SYMBOL = 6.0  # what one takes in the table, roughly
_NEAR = 1.0005  # fewer raw bits and a smaller table are faster: worth this much
_DENSE = 255  # instead of an order: no symbol is missing between the first and the last

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """How codes become symbols, and the symbols' shares.

    Attributes:
        low: that many lowest bits of a code are stored as they are.
        slot_bits: k; the slots are 2**k.
        symbols: those that occur, ascending, int64.
        freq: the slots of each, int64, at least 1.
        table: both, written down.
        bits: that all codes and the table take, low bits not counted.
    """

    low: int
    slot_bits: int
    symbols: Ints
    freq: Ints
    table: NDArray[np.uint8]
    bits: float


def fit(counts: Ints) -> Model:
    """The model of least stored size for codes that occur this often.

    Raw low bits pay off where a table of all codes would cost more than knowing their shares saves:
    for wide codes and for small tensors.

    Shapes   ``counts``: (256,) or (65536,) int64, not all zero.
    """
    choices = range(min(MOST_LOW, counts.size.bit_length() - 2) + 1)  # at least two symbols
    sizes = [_estimate(counts, low) for low in choices]
    low = next(low for low in choices if sizes[low] <= min(sizes) * _NEAR)
    grouped = _grouped(counts, low)
    symbols = np.flatnonzero(grouped)
    found = []
    for slot_bits in SLOT_BITS:
        if symbols.size > 1 << slot_bits:
            continue
        freq = normalize(grouped[symbols], slot_bits)
        table = written(symbols, freq)
        bits = 8.0 * table.size + (grouped[symbols] * (slot_bits - np.log2(freq))).sum()
        found.append(
            Model(low=low, slot_bits=slot_bits, symbols=symbols, freq=freq, table=table, bits=bits)
        )
    least = min(model.bits for model in found)
    return next(model for model in found if model.bits <= least * _NEAR)


def _grouped(counts: Ints, low: int) -> Ints:
    return np.asarray(counts.reshape(-1, 1 << low).sum(axis=1))


def _estimate(counts: Ints, low: int) -> float:
    """Bits of all codes and of their table, if so many low bits are stored as they are."""
    grouped = _grouped(counts, low)
    there = grouped[grouped > 0]
    if there.size > 1 << SLOT_BITS[-1]:
        return np.inf
    total = there.sum()
    coded = (there * np.log2(total / there)).sum()
    return float(total * low + coded + there.size * _BITS_A_SYMBOL)


def normalize(counts: Ints, slot_bits: int) -> Ints:
    """The shares of 2**slot_bits slots, each at least 1, with which coding takes the fewest bits.

    A further slot for a symbol with f of them saves ``n * log2((f + 1) / f)`` bits, less with each:
    so the best shares give every slot to whoever saves most by it. Instead of one by one, all slots
    that save at least some amount are given at once, the amount is found by bisection, and the few
    that are left are given one by one.

    Shapes   ``counts``: (symbols,) int64, positive, at most 2**slot_bits of them.
    """
    slots = 1 << slot_bits
    weights = counts.astype(np.float64)

    def given(least: float) -> Ints:
        with np.errstate(over="ignore"):
            more = np.floor(1.0 / np.expm1(least / weights))
        return 1 + np.minimum(more, slots).astype(np.int64)

    # where all shares are large, the last slots save what one costs: total / slots
    small = large = float(weights.sum()) / slots
    while given(small).sum() <= slots and small > 0:
        small /= 2
    while given(large).sum() > slots:
        large *= 2
    for _ in range(60):
        middle = (small + large) / 2
        total = given(middle).sum()
        small, large = (middle, large) if total > slots else (small, middle)
        if total == slots:
            break
    freq = given(large)
    while (left := slots - int(freq.sum())) > 0:
        gains = weights * np.log1p(1.0 / freq)
        freq[np.argsort(-gains, kind="stable")[:left]] += 1
    return freq


def written(symbols: Ints, freq: Ints) -> NDArray[np.uint8]:
    """Two bytes for the orders of the Golomb codes, then these: gaps between symbols, and freq.

    A symbol's slots are told as the difference to the one before it. The first symbol is told
    elsewhere.
    """
    gaps = np.diff(symbols) - 1
    steps = np.diff(freq, prepend=0)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps)  # 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
    gap_order = _best_order(gaps) if gaps.any() else _DENSE
    order = _best_order(folded)
    bits = _golomb_bits(folded, order)
    bits += _golomb_bits(gaps, gap_order) if gap_order != _DENSE else 0
    data = np.zeros(2 + -(-bits // 8), np.uint8)
    data[:2] = gap_order, order
    bit = 16
    if gap_order != _DENSE:
        bit = put_golomb(gaps, gap_order, bit, data)
    put_golomb(folded, order, bit, data)
    return data


def read(data: NDArray[np.uint8], first: int, count: int, slot_bits: int) -> tuple[Ints, Ints]:
    """Symbols and freq as :func:`written` was given them.

    Raises:
        ValueError: the table does not make sense.
    """
    gaps, folded = np.zeros(count - 1, np.int64), np.empty(count, np.int64)
    bit = 16
    if data.size < 2 or data[1] > 16 or (data[0] > 16 and data[0] != _DENSE):
        raise ValueError("its table is malformed")
    if data[0] != _DENSE:
        bit = get_golomb(data, int(data[0]), bit, gaps)
    bit = get_golomb(data, int(data[1]), bit, folded) if bit >= 0 else bit
    symbols = first + np.concatenate(([0], np.cumsum(gaps + 1)))
    freq = np.cumsum(np.where(folded & 1, -(folded + 1) // 2, folded // 2))
    if bit < 0 or (freq < 1).any() or freq.sum() != 1 << slot_bits or symbols[-1] > 0xFFFF:
        raise ValueError("its table is malformed")
    return symbols, freq


def _golomb_bits(values: Ints, order: int) -> int:
    lengths = np.frexp((values + (1 << order)).astype(np.float64))[1]
    return int((2 * lengths - 1 - order).sum())


def _best_order(values: Ints) -> int:
    return min(range(16), key=lambda order: _golomb_bits(values, order))
