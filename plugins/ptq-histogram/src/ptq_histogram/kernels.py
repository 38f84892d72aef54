"""Where a float32 belongs in the histogram, found from its own bits, and the loop that counts.

A magnitude is a word of 31 bits: 8 of exponent, 23 of mantissa. With ``top`` the exponent field of
the largest magnitude, the octave ``top`` is cut into ``2**TOP_BITS`` bins and each octave below it
into half as many, so that all these bins have one width, until ``2**LOW_BITS`` are left; from
there down every octave has that many. All bins are dyadic: one that was made for some ``top`` lies
wholly inside one bin for any higher ``top``. That makes raising it exact, and merging too.

Slots of one sign, in order of magnitude: some for zeros, one for all that is smaller than the
lowest octave, then the octaves. Zeros have several because half of the values after a Relu are
zeros: on one counter, each would wait for the one before it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

TOP_BITS = 12
LOW_BITS = 6
OCTAVES = 20  # a window of 2**20, about 1e6
LOWEST_TOP = OCTAVES  # so that the lowest octave is one of normal numbers
ZEROS = 16  # a power of two
SMALLER = ZEROS  # the slot below the lowest octave

_MANTISSA = 23
_HALVINGS = TOP_BITS - LOW_BITS
_OFFSET = SMALLER + 1 + (OCTAVES - 2 - _HALVINGS) * 2**LOW_BITS
SLOTS = _OFFSET + 2 ** (TOP_BITS + 1)

Layout = tuple[int, int, int, int, int, int, int]


def layout(top: int) -> Layout:
    """The numbers that :func:`count` and :func:`slots` work with, for this top octave."""
    wide = _MANTISSA - LOW_BITS
    low_offset = _OFFSET - ((top - _HALVINGS - 1) << LOW_BITS)
    return top, _HALVINGS, _MANTISSA - TOP_BITS, wide, _OFFSET, low_offset, ZEROS


def lower_words(top: int) -> NDArray[np.uint32]:
    """The smallest magnitude word of each slot; :func:`slots` gives its place back."""
    words = _lowest_words().copy()
    words[SMALLER + 1 :] += np.uint32(top - LOWEST_TOP << _MANTISSA)
    return words


def lower_edges(top: int) -> NDArray[np.float64]:
    """The smallest magnitude of each slot from :data:`SMALLER` on, and 0 for that one."""
    edges = _lowest_words()[SMALLER:].view(np.float32).astype(np.float64)
    edges[0] = 0.0
    return np.asarray(np.ldexp(edges, top - LOWEST_TOP), np.float64)


@functools.cache
def _lowest_words() -> NDArray[np.uint32]:
    octaves = np.arange(SMALLER + 1, SLOTS)
    words = (octaves - layout(LOWEST_TOP)[5]) << (_MANTISSA - LOW_BITS)
    index = octaves - _OFFSET  # in bins of the one width
    for step in range(_HALVINGS):
        inside = index >> (TOP_BITS - step) == 1
        mantissa = (index[inside] << (_MANTISSA - TOP_BITS + step)) & (2**_MANTISSA - 1)
        words[inside] = ((LOWEST_TOP - step) << _MANTISSA) + mantissa
    return np.concatenate(([0] * ZEROS, [1], words)).astype(np.uint32)


@njit(cache=True, nogil=True)
def _slot(magnitude: Any, place: Any, layout: Any) -> Any:
    """The slot of a magnitude word; ``place``, any number, chooses among those for zeros."""
    top, halvings, narrow, wide, offset, low_offset, zeros = layout
    below = np.int32(top) - np.int32(magnitude >> np.uint32(23))
    step = np.uint32(min(max(below, np.int32(0)), np.int32(halvings)))
    mantissa = (magnitude & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
    one_width = np.int32(mantissa >> (np.uint32(narrow) + step)) + np.int32(offset)
    by_octave = np.int32(magnitude >> np.uint32(wide)) + np.int32(low_offset)
    found = one_width if below < np.int32(halvings) else by_octave
    found = max(found, np.int32(zeros))
    zero = np.int32(np.uint32(place) & np.uint32(zeros - 1))
    return np.uint32(found if magnitude != np.uint32(0) else zero)


@njit(cache=True, nogil=True)
def slots(words: Any, layout: Any) -> Any:
    """The slot of each magnitude word, none of which may lie above the top octave."""
    found = np.empty(words.size, np.int64)
    for i in range(words.size):
        found[i] = _slot(words[i], i, layout)
    return found


@njit(cache=True, nogil=True)
def count(values: Any, counts: Any, layout: Any) -> Any:
    """Count values, until one lies above the top octave.

    The loop has two halves over a block that stays in the first cache: the first is vectorized and
    finds slots, minimum and maximum; the second, which cannot be, increments.

    Shapes   ``values``: float32, one axis; ``counts``: uint32 (2 signs * SLOTS), plus first.
    Returns  how many values were counted, and their lowest and highest as integers that are in the
             order of the floats.
    """
    block = 1024
    words = values.view(np.uint32)
    found = np.empty(block, np.uint32)
    of_one_sign = np.uint32(counts.size // 2)
    top = np.uint32(layout[0])
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
    start = 0
    while start < words.size:
        size = min(block, words.size - start)
        part = words[start : start + size]
        largest = np.uint32(0)
        block_low, block_high = low, high
        for i in range(size):
            word = part[i]
            magnitude = word & np.uint32(0x7FFFFFFF)
            bits = np.int32(word)
            ordered = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
            block_low, block_high = min(block_low, ordered), max(block_high, ordered)
            largest = max(largest, magnitude)
            found[i] = _slot(magnitude, i, layout) + (word >> np.uint32(31)) * of_one_sign
        if largest >> np.uint32(23) > top:
            break
        low, high = block_low, block_high
        for i in range(size):
            counts[found[i]] += np.uint32(1)
        start += size
    return start, low, high


# Loading compiled code takes a while. It is over once this module is imported, instead of at the
# first values, which come while a runtime executes a model beside it.
_nothing = np.empty(0, np.float32)
_nothing.flags.writeable = False  # as in FloatHistogram.observe: part of the type
count(_nothing, np.zeros(2 * SLOTS, np.uint32), layout(LOWEST_TOP))
