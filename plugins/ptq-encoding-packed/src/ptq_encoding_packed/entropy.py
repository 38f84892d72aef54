"""ENTROPY: a variable-length code whose decoder is a handful of standard operators.

Constants, besides the ``data`` of PACKED where that is smaller:

=============  =========================================================================
``low<r>``     the lowest r bits of each code, in bytes; not there for r = 0
``classes``    bits of a place in each of the 2**k classes, a byte each; then the class of each
               symbol, k bits each; uint8
``payload``    the places in their classes, one after the other, least bit first, in uint16
``symbols``    codes of each symbol by rank, ``[symbols, v]``, int8 or int16; for r > 0 it is
               ``highs``: shifted down by r
=============  =========================================================================

Equal codes everywhere: ``value`` alone. See :mod:`ptq_encoding_packed.classes` for the code and
:mod:`ptq_encoding_packed.search` for what a symbol is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.api import Encoded
from ptq_encoding_packed.bits import layout, pack, unpack, unpack_text
from ptq_encoding_packed.classes import CLASS_BITS, MOST_WIDTH, Widths, first_ranks
from ptq_encoding_packed.packed import (
    COUNT,
    Packed,
    check,
    container_type,
    cut_text,
    function_text,
)
from ptq_encoding_packed.search import choose

Array = NDArray[Any]

_WORD = 16  # bits of a word of the payload
_NAMED = 50  # bytes of a constant beside its values, about
_LONG = 2**31  # from so many bits of payload on, their positions need int64


class Entropy:
    """The encoding ENTROPY.

    Args:
        long: payload bits from which positions are int64.
    """

    def __init__(self, long: int = _LONG) -> None:
        self._long = long
        self._packed = Packed()

    def encode(self, codes: Array, bits: int, opset: int, /) -> Encoded:
        """Code frequent codes in few bits; as PACKED does where that is smaller.

        Errors   ValueError for codes or a width out of range.
        """
        check(codes, bits)
        flat = codes.reshape(-1).astype(container_type(bits))
        if flat.size == 0:
            return self._packed.encode(codes, bits, opset)
        if flat.min() == flat.max():
            return Encoded(constants={"value": flat[:1].copy()}, function=_CONSTANT)
        plain = self._packed.encode(codes, bits, opset)
        coded = self._coded(flat)
        return coded if coded and stored(coded, bits) < stored(plain, bits) else plain

    def decode(self, constants: Mapping[str, Array], bits: int, shape: Sequence[int], /) -> Array:
        """Codes from what :meth:`encode` stored.

        Errors   ValueError where the constants contradict each other, the width or the shape.
        """
        container, count = container_type(bits), math.prod(shape)
        if set(constants) == {"value"}:
            value = constants["value"]
            if value.dtype != container or value.shape != (1,):
                raise ValueError(
                    f"found value as {value.dtype} {list(value.shape)},"
                    f" expected {np.dtype(container)} [1]"
                )
            codes = np.full(tuple(shape), value[0])
        elif "classes" in constants:
            codes = _decoded(constants, np.dtype(container), count).reshape(tuple(shape))
        else:
            return self._packed.decode(constants, bits, shape)
        check(codes, bits)
        return codes

    def _coded(self, flat: Array) -> Encoded | None:
        chosen = choose(flat)
        if chosen is None:
            return None
        symbols, widths = chosen
        order = np.argsort(-symbols.counts, kind="stable")
        ranks = np.empty(order.size, np.int64)
        ranks[order] = np.arange(order.size)
        firsts = first_ranks(widths)
        class_of = (np.searchsorted(firsts, np.arange(order.size), side="right") - 1)[ranks]
        place_of = ranks - firsts[class_of]
        classes = class_of.astype(np.uint8)[symbols.ids]
        payload, length = _payload(place_of[symbols.ids], widths[classes])
        k, low = widths.size.bit_length() - 1, symbols.low
        constants = {f"low{low}": pack(flat & (2**low - 1), low)} if low else {}
        constants |= {
            "classes": np.concatenate([widths, pack(classes, k)]),
            "payload": payload,
            "highs" if low else "symbols": symbols.table[order],
        }
        text = _text(k, low, flat.dtype, long=length >= self._long)
        return Encoded(constants=constants, function=text)


def stored(encoded: Encoded, bits: int) -> int:
    """Bytes that the constants take in a model, their names and shapes included."""
    found = encoded.constants
    codes = found.get("codes")
    if codes is not None:  # NumPy keeps int2 and int4 in a byte each
        return _NAMED + -(-codes.size * bits // 8)
    return sum(_NAMED + array.nbytes for array in found.values())


def _payload(places: Array, widths: Widths) -> tuple[Array, int]:
    """Places in as many bits as the widths say, one after the other; and how many bits that are.

    Each position has its word and a next one, also that of places without bits behind the last.
    """
    ends = np.cumsum(widths, dtype=np.int64)
    length = int(ends[-1])
    starts = ends - widths
    index = starts // _WORD
    lifted = places << (starts % _WORD)
    words = length // _WORD + 2
    # Each bit is set at most once, so a sum is an OR, and float64 holds it exactly.
    low = np.bincount(index, weights=lifted % 2**_WORD, minlength=words)
    high = np.bincount(index + 1, weights=lifted >> _WORD, minlength=words)
    return (low[:words] + high[:words]).astype(np.uint16), length


def _decoded(constants: Mapping[str, Array], container: np.dtype[Any], count: int) -> Array:
    problems = []
    found = dict(constants)
    lows = [name for name in found if name.startswith("low")]
    low = int(lows[0][3:]) if len(lows) == 1 and lows[0][3:] in set("1248") else 0
    table = "highs" if "highs" in found else "symbols"
    expected = {"classes", "payload", table}
    if table == "highs":
        expected.add(f"low{low or '<bits>'}")
    if set(found) != expected:
        raise ValueError(f"found constants {sorted(found)}, expected {sorted(expected)}")
    data, symbols, payload = found["classes"], found[table], found["payload"]
    if symbols.dtype not in (np.int8, container) or symbols.ndim != 2 or 0 in symbols.shape:
        problems.append(
            f"{table} are {symbols.dtype} {list(symbols.shape)}, not {container} [S, v]"
        )
    if payload.dtype != np.uint16 or payload.ndim != 1:
        problems.append(f"payload is {payload.dtype} {list(payload.shape)}, not uint16 in a row")
    number = -(-count // symbols.shape[-1]) if not problems else 0
    forms = [k for k in CLASS_BITS if data.shape == (2**k + layout(k).nbytes(number),)]
    if not problems and (not forms or not number or data.dtype != np.uint8):
        problems.append(
            f"classes are {data.dtype} {list(data.shape)}, not uint8 for {number} symbols"
        )
    if problems:
        raise ValueError("; ".join([*problems, "the data is cut off or damaged"]))
    widths = data[: 2 ** forms[0]]
    if widths.max() > MOST_WIDTH:
        raise ValueError(f"found a class of {widths.max()} bits, expected 16 at most: damaged data")
    classes = unpack(data[widths.size :], forms[0], number)
    width = widths[classes].astype(np.int64)
    ends = np.cumsum(width)
    words = int(ends[-1]) // _WORD + 2
    if payload.size != words:
        raise ValueError(
            f"found a payload of {payload.size} words, but the classes take {words}: the data is"
            " cut off or damaged"
        )
    starts = ends - width
    index = starts // _WORD
    window = payload[index].astype(np.int64)
    window |= payload[index + 1].astype(np.int64) << _WORD
    places = (window >> (starts % _WORD)) & ((1 << width) - 1)
    ranks = first_ranks(widths)[classes] + places
    beyond = payload[-1] or payload[-2] >> (int(ends[-1]) % _WORD)
    if int(ranks.max()) >= symbols.shape[0] or beyond:
        raise ValueError(
            f"found symbol {int(ranks.max())} of {symbols.shape[0]}, or bits behind the last: the"
            " data is damaged"
        )
    codes: Array = (symbols.astype(container) << low)[ranks].reshape(-1)[:count]
    if low:
        codes += unpack(found[f"low{low}"], low, count).astype(container)
    return codes


_CONSTANT = function_text(
    "Entropy_constant", ["value"], ["real = Cast <to = 1> (value)", "codes = Expand (real, shape)"]
)


def _text(k: int, low: int, container: np.dtype[Any], *, long: bool) -> str:
    """The decoder; positions are int32, or int64 if they are long."""
    name = f"Entropy_k{k}" + (f"_r{low}_{container}" if low else "")
    symbols = "highs" if low else "symbols"
    to, kind = (7, "int64") if long else (6, "int32")
    lines = [
        *COUNT,
        "axis = Constant <value = int64 {0}> ()",
        "one = Constant <value = int64[1] {1}> ()",
        f"end = Constant <value = int64[1] {{{2**63 - 1}}}> ()",
        f"form = Shape ({symbols})",
        "length = Slice (form, one, end)",
        "fill = Sub (length, one)",
        "filled = Add (count, fill)",
        "number = Div (filled, length)",
        f"split = Constant <value = int64[1] {{{2**k}}}> ()",
        "widths = Slice (classes, start, split)",
        "packed = Slice (classes, split, end)",
        *unpack_text("packed", k, "stream"),
        "bytes = Slice (stream, start, number)",
        "class = Cast <to = 6> (bytes)",
        # where the place of each symbol begins: a word of 16 bits, and a bit in it
        f"table = Cast <to = {to}> (widths)",
        "width = Gather (table, class)",
        "position = CumSum <exclusive = 1> (width, axis)",
        f"bits = Constant <value = {kind} {{{_WORD}}}> ()",
        "word = Div (position, bits)",
        "bit = Mod (position, bits)",
        "down = Cast <to = 12> (bit)",
        # each word and 15 bits of its next, which is all that a place can reach into
        "words = Cast <to = 6> (payload)",
        "last = Constant <value = int64[1] {-1}> ()",
        "these = Slice (words, start, last)",
        "nexts = Slice (words, one, end)",
        f"most = Constant <value = int32 {{{2 ** (_WORD - 1)}}}> ()",
        "reached = Mod (nexts, most)",
        f"up = Constant <value = int32 {{{2**_WORD}}}> ()",
        "above = Mul (reached, up)",
        "signed = Add (these, above)",
        "windows = Cast <to = 12> (signed)",
        "window = Gather (windows, word)",
        'moved = BitShift <direction = "RIGHT"> (window, down)',
        # as many bits of it as the class has
        "single = Constant <value = uint32 {1}> ()",
        "shifts = Cast <to = 12> (widths)",
        'sizes = BitShift <direction = "LEFT"> (single, shifts)',
        "size = Gather (sizes, class)",
        "masked = Mod (moved, size)",
        "place = Cast <to = 6> (masked)",
        "steps = Cast <to = 6> (sizes)",
        "firsts = CumSum <exclusive = 1> (steps, axis)",
        "first = Gather (firsts, class)",
        "rank = Add (first, place)",
    ]
    if low:
        lines += [  # the table is small: what can be done to it is cheap
            "numbers = Cast <to = 6> (highs)",
            f"low_step = Constant <value = int32 {{{2**low}}}> ()",
            "shifted = Mul (numbers, low_step)",
            f"vector = Cast <to = {3 if container == np.int8 else 5}> (shifted)",
        ]
    lines += [
        f"vectors = Gather ({'vector' if low else 'symbols'}, rank)",
        "flat = Reshape (vectors, last)",
        *cut_text("flat", "integers"),
    ]
    if low:
        lines += [
            "coarse = Cast <to = 1> (integers)",
            *unpack_text(f"low{low}", low, "noise"),
            *cut_text("noise", "lowest"),
            "fine = Cast <to = 1> (lowest)",
            "codes = Add (coarse, fine)",
        ]
    else:
        lines.append("codes = Cast <to = 1> (integers)")
    inputs = [*([f"low{low}"] if low else []), "classes", "payload", symbols]
    return function_text(name + ("_long" if long else ""), inputs, lines)
