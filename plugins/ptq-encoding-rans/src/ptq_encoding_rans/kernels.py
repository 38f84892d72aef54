"""The loops: interleaved rANS, raw low bits, and exponential Golomb codes for the table.

The coder is the range variant of asymmetric numeral systems (Duda 2013, arXiv:1311.2540) with
32-bit states that are renormalized by 16-bit words. Symbol i of a chunk belongs to lane i % 8:
eight independent states hide the latency of each other's table look-up and multiplication. All
lanes share one stream of words, which works because the encoder walks the chunk backwards and so
undoes the decoder step by step (Giesen 2014, arXiv:1402.3392).

With f of M = 2**k slots for a symbol and c slots before its own::

    encode:  while x >= f * 2**(32-k): emit the low word of x;   x = (x // f) * M + x % f + c
    decode:  slot = x % M;   x = f * (x // M) + slot - c;   while x < 2**16: take in a word

With 16-bit words, k <= 15 and 2**16 <= x < 2**32 each "while" is an "if".

A symbol is the upper part of a code, taken as unsigned: ``(code + half) >> low``. The ``low`` bits
below are stored as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

LANES = 8  # written out in the loops, for the compiler to unroll them


@njit(cache=True, nogil=True)
def count(codes: Any, counts: Any, half: Any) -> None:
    """Add how often each code occurs.

    Shapes   ``codes``: (n,) int8 or int16; ``counts``: (256,) or (65536,) int64, from -half on.
    """
    for i in range(codes.size):
        counts[np.int64(codes[i]) + half] += 1


@njit(cache=True, nogil=True)
def encode(
    codes: Any, freq: Any, before: Any, half: Any, low: Any, k: Any, states: Any, words: Any
) -> Any:
    """Code one chunk backwards; returns how many words it took: the last ones of ``words``.

    Shapes   ``codes``: (n,); ``freq``, ``before``: uint32, by symbol; ``states``: (8,) uint32, the
             result; ``words``: (n,) uint16 or more.
    """
    lanes = np.full(8, 65536, np.uint64)
    place = words.size
    shift, room = np.uint64(k), np.uint64(32 - k)
    for i in range(codes.size - 1, -1, -1):
        symbol = (np.int64(codes[i]) + half) >> low
        f = np.uint64(freq[symbol])
        x = lanes[i & 7]
        if x >= f << room:
            place -= 1
            words[place] = np.uint16(x & np.uint64(0xFFFF))
            x >>= np.uint64(16)
        quotient = np.uint64(np.uint32(x) // np.uint32(f))
        lanes[i & 7] = (quotient << shift) + (x - quotient * f) + np.uint64(before[symbol])
    for lane in range(8):
        states[lane] = np.uint32(lanes[lane])
    return words.size - place


@njit(cache=True, nogil=True)
def _step(x: Any, place: Any, words: Any, table: Any, mask: Any, shift: Any) -> Any:
    """One symbol of one lane: its new state, the next word's place, and the code."""
    entry = table[x & mask]
    x = ((entry >> np.uint64(16)) & np.uint64(0xFFFF)) * (x >> shift) + (entry >> np.uint64(32))
    word = np.uint64(words[place])  # taken or not: there is no branch to guess
    short = x < np.uint64(65536)
    return ((x << np.uint64(16)) | word if short else x), place + np.uint64(short), np.int16(entry)


@njit(cache=True, nogil=True)
def decode(states: Any, words: Any, first: Any, end: Any, table: Any, k: Any, codes: Any) -> Any:
    """Decode one chunk; False if it does not end as the encoder began, or runs out of words.

    Whatever the stream holds, nothing beyond ``words[end + 7]`` is read.

    Shapes   ``states``: (8,) uint32; ``words``: (end + 8 or more,) uint16, of which those from
             ``first`` to ``end`` are the chunk's; ``table``: (2**k,) uint64, see :func:`slots`;
             ``codes``: the result, (n,) int8 or int16.
    """
    lanes = np.empty(8, np.uint64)
    for lane in range(8):
        lanes[lane] = np.uint64(states[lane])
    shift, mask = np.uint64(k), (np.uint64(1) << np.uint64(k)) - np.uint64(1)
    place, limit = np.uint64(first), np.uint64(end)
    whole = codes.size >> 3 << 3
    for i in range(0, whole, 8):
        if place > limit:
            return False
        for lane in range(8):
            lanes[lane], place, code = _step(lanes[lane], place, words, table, mask, shift)
            codes[i + lane] = code
    if place > limit:
        return False
    for i in range(whole, codes.size):
        lane = i - whole
        lanes[lane], place, code = _step(lanes[lane], place, words, table, mask, shift)
        codes[i] = code
    for lane in range(8):
        if lanes[lane] != 65536:
            return False
    return place == limit


@njit(cache=True, nogil=True)
def slots(first: Any, freq: Any, half: Any, low: Any, table: Any) -> None:
    """What :func:`decode` needs of each slot, in one word: code, f, and slot - c.

    Shapes   ``first``: (symbols,) int64, which ones there are; ``freq``: (symbols,) uint32, their
             slots; ``table``: the result, (sum of freq,) uint64.
    """
    slot = 0
    for i in range(first.size):
        code = np.uint64(((first[i] << low) - half) & 0xFFFF)
        f = np.uint64(freq[i])
        for inside in range(freq[i]):
            table[slot] = code | (f << np.uint64(16)) | (np.uint64(inside) << np.uint64(32))
            slot += 1


@njit(cache=True, nogil=True)
def put_low(codes: Any, low: Any, packed: Any) -> None:
    """Store the ``low`` (1 to 8) lowest bits of each code, the first code lowest in its byte.

    Eight codes take ``low`` bytes, which are one word here.

    Shapes   ``codes``: (n,); ``packed``: (ceil(n / 8) * low,) uint8 or more, the result.
    """
    mask = np.uint64((1 << low) - 1)
    for i in range(0, codes.size, 8):
        word = np.uint64(0)
        for j in range(min(8, codes.size - i)):
            word |= (np.uint64(codes[i + j]) & mask) << np.uint64(j * low)
        for j in range(low):
            packed[(i >> 3) * low + j] = np.uint8(word >> np.uint64(8 * j))


@njit(cache=True, nogil=True)
def get_low(packed: Any, low: Any, codes: Any) -> None:
    """Put the bits of :func:`put_low` into codes that have zeros there; same shapes."""
    mask, step = np.uint64((1 << low) - 1), np.uint64(low)
    for i in range(0, codes.size - 7, 8):
        word = np.uint64(0)
        for j in range(low):
            word |= np.uint64(packed[(i >> 3) * low + j]) << np.uint64(8 * j)
        for j in range(8):  # a loop of known length is unrolled
            codes[i + j] |= np.int16((word >> (np.uint64(j) * step)) & mask)
    begin = codes.size >> 3 << 3
    for i in range(begin, codes.size):
        bit = i * low
        value = np.int64(packed[bit >> 3])
        if (bit & 7) + low > 8:
            value |= np.int64(packed[(bit >> 3) + 1]) << 8
        codes[i] |= np.int16((np.uint64(value) >> np.uint64(bit & 7)) & mask)


@njit(cache=True, nogil=True)
def put_golomb(values: Any, order: Any, bit: Any, data: Any) -> Any:
    """Write exponential Golomb codes of this order from this bit on; returns the bit behind.

    A value v is written as ``v + 2**order`` in binary behind as many zeros as it has bits more than
    ``order + 1``. Within a byte, the highest bit comes first.

    Shapes   ``values``: (n,) int64, not negative; ``data``: uint8, zeros, large enough.
    """
    for i in range(values.size):
        value = values[i] + (1 << order)
        length = 0
        while value >> length:
            length += 1
        bit += length - 1 - order
        for j in range(length - 1, -1, -1):
            data[bit >> 3] |= np.uint8(((value >> j) & 1) << (7 - (bit & 7)))
            bit += 1
    return bit


@njit(cache=True, nogil=True)
def get_golomb(data: Any, order: Any, bit: Any, values: Any) -> Any:
    """Read what :func:`put_golomb` wrote; returns the bit behind, or -1 where data ends before."""
    bits = data.size * 8
    for i in range(values.size):
        length = order + 1
        while bit < bits and not (data[bit >> 3] >> (7 - (bit & 7))) & 1:
            bit += 1
            length += 1
        if bit + length > bits or length > 40:
            return -1
        value = 0
        for _ in range(length):
            value = value << 1 | (data[bit >> 3] >> (7 - (bit & 7))) & 1
            bit += 1
        values[i] = value - (1 << order)
    return bit
