"""PACKED: codes of 1 to 16 bits side by side.

===========  ======================  ==========================================================
bits         opset                   constants
===========  ======================  ==========================================================
8, 16        any                     ``codes``: the int8 or int16 array
4            21 and more             ``codes``: int4
2            25 and more             ``codes``: int2
1 to 7       else                    ``data``: bytes of :mod:`ptq_encoding_packed.bits`
9 to 15      any                     ``high``: the upper 8 bits, int8; ``low``: the rest, in bytes
===========  ======================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ptq_core.api import Encoded
from ptq_encoding_packed.bits import pack, unpack, unpack_text

Array = NDArray[Any]

COUNT = (
    "count = ReduceProd <keepdims = 1> (shape)",
    "start = Constant <value = int64[1] {0}> ()",
)

_NATIVE = {2: (25, ml_dtypes.int2), 4: (21, ml_dtypes.int4)}  # the opset that has the type


class Packed:
    """The encoding PACKED."""

    def encode(self, codes: Array, bits: int, opset: int, /) -> Encoded:
        """Pack codes; no function where ONNX has a type of this width.

        Errors   ValueError for codes or a width out of range.
        """
        check(codes, bits)
        container = container_type(bits)
        if bits in (8, 16) or codes.size == 0:
            return Encoded(constants={"codes": codes.astype(container)})
        if bits in _NATIVE and opset >= _NATIVE[bits][0]:
            return Encoded(constants={"codes": codes.astype(np.int8).astype(_NATIVE[bits][1])})
        flat = codes.reshape(-1)  # operators on arrays without axes give other types
        if bits < 8:
            values = (flat.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
            return Encoded(constants={"data": pack(values, bits)}, function=_narrow(bits))
        rest = bits - 8
        high = (flat >> rest).astype(np.int8).reshape(codes.shape)
        low = (flat & (2**rest - 1)).astype(np.uint8)
        return Encoded(constants={"high": high, "low": pack(low, rest)}, function=_wide(bits))

    def decode(self, constants: Mapping[str, Array], bits: int, shape: Sequence[int], /) -> Array:
        """Codes from what :meth:`encode` stored.

        Errors   ValueError where the constants cannot be of this width and shape.
        """
        shape, count, container = tuple(shape), math.prod(shape), container_type(bits)
        names = set(constants)
        if names == {"codes"}:
            found = constants["codes"]
            if found.shape != shape:
                raise ValueError(f"found codes of shape {found.shape}, expected {shape}")
            if found.dtype not in (container, *[native for _, native in _NATIVE.values()]):
                raise ValueError(
                    f"found codes of type {found.dtype}, expected {container.__name__}"
                )
            codes: Array = found.astype(container)
            check(codes, bits)
            return codes
        if names == {"data"} and bits < 8:
            values = unpack(constants["data"], bits, count).astype(np.int16)
            signed: Array = (values - 2 ** (bits - 1)).astype(container)
            return signed.reshape(shape)
        if names == {"high", "low"} and bits > 8:
            high = constants["high"]
            if high.dtype != np.int8 or high.shape != shape:
                raise ValueError(f"found high as {high.dtype} {high.shape}, expected int8 {shape}")
            low = unpack(constants["low"], bits - 8, count).astype(np.int16)
            wide: Array = (high.reshape(-1).astype(np.int16) << (bits - 8)) + low
            return wide.reshape(shape)
        raise ValueError(
            f"found constants {sorted(names)} for {bits} bits, expected codes, data (below 8 bits)"
            " or high and low (9 to 15): not encoded with PACKED, or with another width"
        )


def container_type(bits: int) -> type[np.int8] | type[np.int16]:
    """The type of codes of this width."""
    return np.int8 if bits <= 8 else np.int16


def check(codes: Array, bits: int) -> None:
    """Raise ValueError unless all codes are integers of this width."""
    if not 1 <= bits <= 16:
        raise ValueError(f"found a width of {bits} bits, expected 1 to 16")
    if codes.dtype not in (np.int8, np.int16):
        raise ValueError(f"found codes of type {codes.dtype}, expected int8 or int16")
    if codes.size == 0:
        return
    low, high, half = int(codes.min()), int(codes.max()), 2 ** (bits - 1)
    if low < -half or high >= half:
        raise ValueError(
            f"found codes from {low} to {high}, but {bits} bits hold {-half} to {half - 1}"
        )


def function_text(name: str, inputs: Sequence[str], lines: Sequence[str]) -> str:
    """An ONNX function from its lines; core puts in the domain and opset of the model."""
    head = '<domain: "ptq", opset_import: ["" : 13]>'
    body = "\n".join(f"  {line}" for line in lines)
    return f"{head}\n{name} ({', '.join(inputs)}, shape) => (codes)\n{{\n{body}\n}}\n"


def cut_text(line: str, out: str) -> list[str]:
    """The lines, after ``COUNT``, that give a 1-D array its shape and cut off what fills it up."""
    return [
        f"{out}_cut = Slice ({line}, start, count)",
        f"{out} = Reshape ({out}_cut, shape)",
    ]


def _narrow(bits: int) -> str:
    lines = [
        *unpack_text("data", bits, "line"),
        *COUNT,
        *cut_text("line", "unsigned"),  # while it is one byte a code
        "positive = Cast <to = 1> (unsigned)",
        f"half = Constant <value = float {{{2 ** (bits - 1)}}}> ()",
        "codes = Sub (positive, half)",
    ]
    return function_text(f"Unpack{bits}", ["data"], lines)


def _wide(bits: int) -> str:
    lines = [
        *unpack_text("low", bits - 8, "line"),
        *COUNT,
        *cut_text("line", "below"),
        "fine = Cast <to = 1> (below)",
        "above = Cast <to = 1> (high)",
        f"step = Constant <value = float {{{2 ** (bits - 8)}}}> ()",
        "coarse = Mul (above, step)",
        "codes = Add (coarse, fine)",
    ]
    return function_text(f"Unpack{bits}", ["high", "low"], lines)
