"""The stream: a header, the symbols' table, and chunks that are decoded in parallel.

All numbers are little endian::

    header   version, k, low bits, log2 of the codes in a chunk: a byte each; the first symbol and
             how many there are less one: uint16 each; bytes of the table: uint32; codes: uint64
    table    padded with zeros to a multiple of 4 bytes
    words    of each chunk, how many: uint32
    states   of each chunk, eight: uint32
    words    of all chunks, one chunk behind the other: uint16
    low      bits of all codes, the first lowest in its byte; in whole bytes

No codes: no bytes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.api import Encoded
from ptq_encoding_rans import frequencies, kernels

VERSION = 1
CHUNK_BITS = range(17, 21)  # of the codes in a chunk, their logarithm
_CHUNK_HEAD = 4 + 4 * kernels.LANES  # bytes
_CHUNK_SHARE = 1e-3  # of the stream, that those bytes may take
_HEADER = struct.Struct("<BBBBHHIQ")
_BEHIND = kernels.LANES  # words that the decoder may look at behind its own

Codes = NDArray[Any]  # int8 or int16
Bytes = NDArray[np.uint8]


class Rans:
    """Integer codes in as many bits as their entropy says, and a table of a few hundred bytes."""

    def encode(self, codes: Any, bits: int, opset: int, /) -> Encoded:
        """One constant, ``stream``: uint8.

        Raises:
            ValueError: a code is outside ``-2**(bits-1) <= code < 2**(bits-1)``.
        """
        flat = np.ascontiguousarray(codes, _dtype(bits)).reshape(-1)
        counts = _counts(flat)
        half = 1 << (bits - 1)
        outside = counts.copy()
        outside[counts.size // 2 - half : counts.size // 2 + half] = 0
        if outside.any() or not np.array_equal(flat.reshape(np.shape(codes)), codes):
            raise ValueError(f"codes of {bits} bits are at least {-half} and at most {half - 1}")
        return Encoded(constants={"stream": _encode(flat, counts)})

    def decode(self, constants: Mapping[str, Any], bits: int, shape: Sequence[int], /) -> Codes:
        """The codes that :meth:`encode` was given.

        Raises:
            ValueError: the stream is cut short, altered, or not of this shape.
        """
        stream = np.ascontiguousarray(constants["stream"], np.uint8).reshape(-1)
        codes = np.empty(math.prod(shape), _dtype(bits))
        if codes.size:
            _decode(stream, codes)
        elif stream.size:
            raise ValueError(f"the stream has {stream.size} bytes, expected none for no codes")
        return codes.reshape(shape)


def _dtype(bits: int) -> type[np.int8] | type[np.int16]:
    return np.int8 if bits <= 8 else np.int16


def _counts(codes: Codes) -> NDArray[np.int64]:
    size = 1 << (8 * codes.itemsize)
    counts = np.zeros(size, np.int64)
    kernels.count(codes, counts, size // 2)
    return counts


def _encode(codes: Codes, counts: NDArray[np.int64]) -> Bytes:
    if not codes.size:
        return np.zeros(0, np.uint8)
    model = frequencies.fit(counts)
    low, half = model.low, counts.size // 2
    freq = np.zeros(counts.size >> low, np.uint32)
    freq[model.symbols] = model.freq
    before = np.cumsum(freq, dtype=np.uint32) - freq
    chunk_bits = _chunk_bits(codes.size, model.bits / 8)
    pieces = _chunks(codes.size, chunk_bits)
    states = np.empty((len(pieces), kernels.LANES), np.uint32)

    def work(index: int) -> NDArray[np.uint16]:
        part = codes[pieces[index]]
        words = np.empty(part.size, np.uint16)
        used = kernels.encode(part, freq, before, half, low, model.slot_bits, states[index], words)
        return words[words.size - used :].copy()

    words = _in_threads(work, len(pieces))
    header = _HEADER.pack(
        VERSION,
        model.slot_bits,
        low,
        chunk_bits,
        int(model.symbols[0]),
        model.symbols.size - 1,
        model.table.size,
        codes.size,
    )
    packed = np.zeros(-(-codes.size // 8) * low, np.uint8)
    if low:
        kernels.put_low(codes, low, packed)
    parts = [
        np.frombuffer(header, np.uint8),
        model.table,
        np.zeros(-model.table.size % 4, np.uint8),
        _bytes(np.array([one.size for one in words]), "<u4"),
        _bytes(states, "<u4"),
        *(_bytes(one, "<u2") for one in words),
        packed[: -(-codes.size * low // 8)],
    ]
    return np.concatenate(parts)


def _decode(stream: Bytes, codes: Codes) -> None:
    if stream.size < _HEADER.size:
        raise ValueError(f"the stream has {stream.size} bytes, fewer than its header")
    version, slot_bits, low, chunk_bits, first, last, table_size, count = _HEADER.unpack(
        stream[: _HEADER.size].tobytes()
    )
    if version != VERSION:
        raise ValueError(f"the stream has version {version}, expected {VERSION}")
    if count != codes.size:
        raise ValueError(f"the stream has {count} codes, expected {codes.size}")
    if (
        slot_bits not in frequencies.SLOT_BITS
        or low > min(frequencies.MOST_LOW, 8 * codes.itemsize - 1)
        or chunk_bits not in CHUNK_BITS
    ):
        raise ValueError("the stream's header is malformed")
    pieces = _chunks(count, chunk_bits)
    places = np.cumsum(
        [_HEADER.size, table_size + -table_size % 4, 4 * len(pieces), 4 * 8 * len(pieces)]
    ).tolist()
    if stream.size < places[-1]:
        raise ValueError("the stream is cut short")
    sizes = stream[places[1] : places[2]].view("<u4")
    ends = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).tolist()
    behind = places[3] + 2 * ends[-1]
    if stream.size != behind + -(-count * low // 8):
        raise ValueError("the stream is cut short, or too long")
    table = stream[places[0] : places[0] + table_size]
    symbols, freq = frequencies.read(table, first, last + 1, slot_bits)
    half = 1 << (8 * codes.itemsize - 1)
    if symbols[-1] << low >= 2 * half:
        raise ValueError("its table has symbols that are too large")
    slots = np.empty(1 << slot_bits, np.uint64)
    kernels.slots(symbols, freq.astype(np.uint32), half, low, slots)
    states = stream[places[2] : places[3]].view("<u4").astype(np.uint32).reshape(-1, kernels.LANES)
    words = np.zeros(ends[-1] + _BEHIND, "<u2")
    words[: ends[-1]].view(np.uint8)[:] = stream[places[3] : behind]
    packed = stream[behind:]

    def work(index: int) -> bool:
        part = codes[pieces[index]]
        right = kernels.decode(
            states[index], words, ends[index], ends[index + 1], slots, slot_bits, part
        )
        if low:
            kernels.get_low(packed[pieces[index].start * low // 8 :], low, part)
        return bool(right)

    if not all(_in_threads(work, len(pieces))):
        raise ValueError("the stream is damaged: a chunk does not end where it should")


def _chunk_bits(count: int, size: float) -> int:
    """As small as can be: chunks are decoded in parallel, and each has a head of its own."""
    for bits in CHUNK_BITS:
        if (count >> bits) * _CHUNK_HEAD <= size * _CHUNK_SHARE:
            return bits
    return CHUNK_BITS[-1]


def _chunks(count: int, chunk_bits: int) -> list[slice]:
    size = 1 << chunk_bits
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """The results of ``work(0)``, ``work(1)``, ...; kernels release the GIL."""
    threads = min(count // 2, os.cpu_count() or 1)  # starting one takes as long as a chunk
    if threads < 2:
        return [work(index) for index in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))


def _bytes(array: NDArray[Any], dtype: str) -> Bytes:
    return np.frombuffer(array.astype(dtype).tobytes(), np.uint8)
