"""Fixed-width fields in bytes, in an order that few and long array operations undo.

With ``f = 8 // k`` fields of k bits in a byte, ``8 - f k`` bits of each byte are left. L bytes hold
g codes without a gap (``8 L = k g``, least such L): f L of them are fields, the other ``g - f L``
are put together from what is left. The bytes form L rows of m. Field i of byte j holds code
``i L m + j``; what is left in column c of the rows holds the codes ``(f L + x) m + c`` for x from 0
to ``g - f L - 1``. So one field of all bytes is two shifts, and all the rest is one product of a
small matrix with the rows of remaining bits. onnxruntime keeps each array that it computes at
load time until the session stands, so what counts is that few of them are longer than the data.

====  =  =  =  =======================
bits  f  L  g  extra codes
====  =  =  =  =======================
1     8  1  8  none
2     4  1  4  none
3     2  3  8  2 from 2 bits a byte
4     2  1  2  none
5     1  5  8  3 from 3 bits a byte
6     1  3  4  1 from 2 bits a byte
7     1  7  8  1 from 1 bits a byte
====  =  =  =  =======================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_MIDDLE = 128  # onnxruntime multiplies uint8 by uint8 everywhere, so 0 is the middle


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How codes of one width lie in bytes; see the module's text."""

    width: int
    fields: int
    rows: int
    codes: int

    @property
    def left(self) -> int:
        """Bits of a byte that are no field."""
        return 8 - self.fields * self.width

    @property
    def extra(self) -> int:
        """Codes that are put together from the bits that are left."""
        return self.codes - self.fields * self.rows

    @property
    def piece(self) -> int:
        """Bits that stay together in an extra code."""
        return math.gcd(self.left, self.width)

    def columns(self, count: int) -> int:
        """Bytes in a row, for so many codes."""
        return -(-count // self.codes)

    def nbytes(self, count: int) -> int:
        """Bytes for so many codes."""
        return self.rows * self.columns(count)


def layout(width: int) -> Layout:
    """How codes of 1 to 7 bits lie in bytes."""
    shared = math.gcd(width, 8)
    return Layout(width=width, fields=8 // width, rows=width // shared, codes=8 // shared)


def pack(values: NDArray[Any], width: int) -> Bytes:
    """Values from 0 to ``2**width - 1`` (1-D) as bytes; width 1 to 8."""
    values = values.astype(np.uint8)
    if width == 8:
        return values
    form = layout(width)
    line = form.rows * form.columns(values.size)
    padded = np.zeros(form.codes * form.columns(values.size), np.uint8)
    padded[: values.size] = values
    data = np.zeros(line, np.uint8)
    for field in range(form.fields):
        data |= padded[field * line : (field + 1) * line] << np.uint8(field * width)
    if form.extra:
        extra = padded[form.fields * line :].reshape(form.extra, -1)
        rows = data.reshape(form.rows, -1)
        for code, place, row, at in _pieces(form):
            bits = (extra[code] >> np.uint8(place)) & np.uint8(2**form.piece - 1)
            rows[row] |= bits << np.uint8(at)
    return data


def unpack(data: Bytes, width: int, count: int) -> Bytes:
    """The ``count`` values that :func:`pack` put into these bytes.

    Errors   ValueError if there are more or fewer bytes than these values take, or bits behind the
             last value that are not 0.
    """
    expected = count if width == 8 else layout(width).nbytes(count)
    if data.dtype != np.uint8 or data.shape != (expected,):
        raise ValueError(
            f"found {data.dtype} {list(data.shape)} where {count} values of {width} bits take"
            f" uint8 [{expected}]: the data is cut off, or not of this tensor"
        )
    if width == 8:
        return data
    form = layout(width)
    mask = np.uint8(2**width - 1)
    parts = [(data >> np.uint8(field * width)) & mask for field in range(form.fields)]
    if form.extra:
        rows = data.reshape(form.rows, -1)
        extra = np.zeros((form.extra, rows.shape[1]), np.uint8)
        for code, place, row, at in _pieces(form):
            bits = (rows[row] >> np.uint8(at)) & np.uint8(2**form.piece - 1)
            extra[code] |= bits << np.uint8(place)
        parts.append(extra.reshape(-1))
    values = np.concatenate(parts)
    if values[count:].any():
        raise ValueError(f"bits are set behind the last of {count} values: the data is damaged")
    return values[:count]


def unpack_text(data: str, width: int, out: str) -> list[str]:
    """The lines of an ONNX function that make uint8 ``out`` of ``data``; both 1-D.

    ``out`` is longer than the values by what fills up the last column. Other names that the lines
    introduce begin with ``out``.
    """
    if width == 8:
        return [f"{out} = Identity ({data})"]
    form = layout(width)
    text = [f"{out}_down = Constant <value = uint8[1] {{{8 - width}}}> ()"]
    parts = []
    for field in range(form.fields):
        up = 8 - width - field * width
        part, lifted = f"{out}_{field}", data
        if up:
            lifted = f"{part}_lifted"
            text += [
                f"{part}_up = Constant <value = uint8[1] {{{up}}}> ()",
                f'{lifted} = BitShift <direction = "LEFT"> ({data}, {part}_up)',
            ]
        text.append(f'{part} = BitShift <direction = "RIGHT"> ({lifted}, {out}_down)')
        parts.append(part)
    if form.extra:
        weights = _weights(form)
        shifts = [8 - form.left + form.piece * i for i in range(form.left // form.piece)]
        listed = ", ".join(str(weight + _MIDDLE) for weight in weights.reshape(-1).tolist())
        text += [
            f"{out}_shifts = Constant <value = uint8[{len(shifts)}, 1]"
            f" {{{', '.join(map(str, shifts))}}}> ()",
            f'{out}_left = BitShift <direction = "RIGHT"> ({data}, {out}_shifts)',
            f"{out}_matrix = Constant <value = int64[2] {{{weights.shape[1]}, -1}}> ()",
            f"{out}_rows = Reshape ({out}_left, {out}_matrix)",
            f"{out}_weights = Constant <value = uint8[{weights.shape[0]}, {weights.shape[1]}]"
            f" {{{listed}}}> ()",
            f"{out}_middle = Constant <value = uint8 {{{_MIDDLE}}}> ()",
            f"{out}_product = MatMulInteger ({out}_weights, {out}_rows, {out}_middle)",
            f"{out}_bytes = Cast <to = 2> ({out}_product)",
            f"{out}_line = Constant <value = int64[1] {{-1}}> ()",
            f"{out}_extra = Reshape ({out}_bytes, {out}_line)",
        ]
        parts.append(f"{out}_extra")
    return [*text, f"{out} = Concat <axis = 0> ({', '.join(parts)})"]


def _pieces(form: Layout) -> list[tuple[int, int, int, int]]:
    """(extra code, bit in it, row, bit in its byte) of each piece."""
    each = form.left // form.piece
    found = []
    for index in range(form.rows * each):
        code, place = divmod(index * form.piece, form.width)
        row, at = divmod(index, each)
        found.append((code, place, row, 8 - form.left + at * form.piece))
    return found


def _weights(form: Layout) -> NDArray[np.int8]:
    """The matrix that makes extra codes of the rows of bytes, shifted down to each piece.

    Shape [extra, pieces of a byte * rows]. A byte that is shifted to one piece has the higher ones
    above it, which are taken off again: piece = shifted here - 2**bits * shifted to the next.
    """
    each = form.left // form.piece
    weights = np.zeros((form.extra, each, form.rows), np.int8)
    for code, place, row, at in _pieces(form):
        step = (at - 8 + form.left) // form.piece
        weights[code, step, row] += 2**place
        if step + 1 < each:
            weights[code, step + 1, row] -= 2 ** (place + form.piece)
    return weights.reshape(form.extra, -1)
