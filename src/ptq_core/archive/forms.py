"""The forms in which bytes are stored: as integer codes, by byte planes, or compressed as they are.

All are lossless, and all but the codes need the standard library only.
"""

from __future__ import annotations

import lzma
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Integer types: bits of an element and whether it is signed.
INTEGERS = {
    "int8": (8, True),
    "uint8": (8, False),
    "int16": (16, True),
    "uint16": (16, False),
    "int4": (4, True),
    "uint4": (4, False),
    "int2": (2, True),
    "uint2": (2, False),
}

_STORED, _ZLIB, _LZMA = b"\0\1\2"
_SAMPLE = 1 << 16
_LITTLE = 0.98  # of the size: compressing saves too little to be worth the time
_LZMA_LARGEST = 1 << 20  # LZMA is the smaller one of the two, but slow
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _LZMA_LARGEST}]

Codes = NDArray[Any]  # int8 or int16


# ----------------------------------------------------------------------------------------- bytes


def compress(data: bytes) -> bytes:
    """The data behind a byte that tells how they are stored."""
    sample = data[:_SAMPLE]
    if len(zlib.compress(sample, 1)) > _LITTLE * len(sample):
        return bytes([_STORED]) + data
    best = bytes([_ZLIB]) + zlib.compress(data, 6)
    if len(data) <= _LZMA_LARGEST:
        other = lzma.compress(data, lzma.FORMAT_RAW, filters=_FILTERS)
        best = min(best, bytes([_LZMA]) + other, key=len)
    return min(best, bytes([_STORED]) + data, key=len)


def decompress(data: bytes, size: int) -> bytes:
    """What :func:`compress` was given; never more than ``size`` bytes of it are made.

    Raises:
        ValueError: the data are damaged.
    """
    way, rest = data[:1], data[1:]
    try:
        match way[0] if way else None:
            case 0:
                found = rest
            case 1:
                found = zlib.decompressobj().decompress(rest, size + 1)
            case 2:
                machine = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
                found = machine.decompress(rest, size + 1)
            case other:
                raise ValueError(f"there is no way {other} to compress")
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from error
    if len(found) != size:
        raise ValueError(f"there are {len(found)} bytes or more, expected {size}")
    return found


# ---------------------------------------------------------------------------------------- planes


def to_planes(data: bytes, width: int) -> bytes:
    """First bytes of all elements, second bytes, and so on, each compressed by itself.

    A float's sign and exponent are a fraction of what they take, its mantissa is not.
    """
    table = np.frombuffer(data, np.uint8).reshape(-1, width)
    parts = []
    for place in range(width):
        plane = compress(table[:, place].tobytes())
        parts += [len(plane).to_bytes(4, "little"), plane]
    return b"".join(parts)


def from_planes(data: bytes, width: int, size: int) -> bytes:
    """What :func:`to_planes` was given.

    Raises:
        ValueError: the data are damaged.
    """
    if size % width:
        raise ValueError(f"{size} bytes are not elements of {width} bytes")
    table = np.empty((size // width, width), np.uint8)
    at = 0
    for place in range(width):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        plane = decompress(data[at + 4 : end], size // width)
        table[:, place] = np.frombuffer(plane, np.uint8)
        at = end
    if at != len(data):
        raise ValueError("there are bytes behind the last plane")
    return table.tobytes()


# ----------------------------------------------------------------------------------------- codes


def to_codes(data: bytes, kind: str, count: int) -> Codes:
    """The elements as signed codes; an unsigned type's are shifted by half its range.

    Types of 4 and 2 bits have the first element lowest in its byte.
    """
    bits, signed = INTEGERS[kind]
    offset = 0 if signed else 1 << (bits - 1)
    if bits >= 8:
        elements = np.frombuffer(data, f"<u{bits // 8}")
        return np.asarray((elements ^ elements.dtype.type(offset)).view(f"<i{bits // 8}"))
    packed = np.frombuffer(data, np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    mask, half = (1 << bits) - 1, 1 << (bits - 1)
    elements = ((packed[:, None] >> shifts) & mask).reshape(-1)[:count].astype(np.int8)
    codes: Codes = (elements ^ half if signed else elements) - np.int8(half)
    return codes


def from_codes(codes: Codes, kind: str) -> bytes:
    """The bytes that :func:`to_codes` was given; bits behind the last element are zero."""
    bits, signed = INTEGERS[kind]
    offset = 0 if signed else 1 << (bits - 1)
    if bits >= 8:
        elements = codes.astype(f"<i{bits // 8}").view(f"<u{bits // 8}")
        return bytes((elements ^ elements.dtype.type(offset)).tobytes())
    per = 8 // bits
    elements = ((codes + offset) & ((1 << bits) - 1)).astype(np.uint8)
    padded = np.pad(elements, (0, -elements.size % per)).reshape(-1, per)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return bytes(np.bitwise_or.reduce(padded << shifts, axis=1).astype(np.uint8).tobytes())


def add_counts(codes: Codes, counts: NDArray[np.int64]) -> None:
    """Add how often each code occurs.

    Shapes   ``counts``: (65536,), from the lowest code of 16 bits on.
    """
    flat = codes.reshape(-1)
    for start in range(0, flat.size, 1 << 18):  # bincount makes int64 of them
        part = flat[start : start + (1 << 18)].astype(np.int64)
        counts += np.bincount(part + (1 << 15), minlength=1 << 16)


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits for a code, zeroth order: the least for who knows only how often each code occurs."""
    there = counts[counts > 0]
    total = int(there.sum())
    return math.fsum(there * np.log2(total / there)) / total if total else 0.0
