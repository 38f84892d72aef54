"""A constant as integer codes, and the one formula that gives its values back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTE = 8
_HALF = np.finfo(np.float16)
_MOVED = 0.1  # of a step: what rounding an offset may change


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight as integers: ``real = (float32(code) * scale + offset) * input_scale``.

    Each step is in float32, which is what a runtime computes with Cast, Mul and Add, so the values
    are equal bit for bit.

    Attributes:
        codes: int8 (int16 above 8 bits), ``-2**(bits-1) <= code < 2**(bits-1)``. In the shape of
            the weight or, with scales for groups, with the axis of its inputs split in two.
        bits: width of a code.
        shape: of the weight.
        scale: float32, of the rank of the codes, broadcasts against them; positive.
        offset: float32, likewise.
        zero_point: the code of zero before any correction, int64, in the shape of ``scale``; 0
            where the grid has no such code.
        variance: CorrectionVar, the factor that is in ``scale`` already; shape of ``scale``.
        mean: CorrectionMean, the summand that is in ``offset`` already; shape of ``scale``.
        input_scale: float32, broadcasts against the weight's own shape; None where it is 1.
    """

    codes: NDArray[Any]
    bits: int
    shape: tuple[int, ...]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    variance: NDArray[np.float64]
    mean: NDArray[np.float64]
    input_scale: NDArray[np.float32] | None = None

    def dequantize(self) -> NDArray[np.float32]:
        """The values, in the shape of the weight."""
        reals = self.codes.astype(np.float32)
        reals *= self.scale
        reals += self.offset
        reals = reals.reshape(self.shape)
        if self.input_scale is not None:
            reals *= self.input_scale
        return reals


def with_half_parameters(weight: QuantizedWeight) -> QuantizedWeight:
    """The same codes with scales and offsets that float16 has, where groups share them.

    For at most 8 bits: the rounding is a small part of a step then, and differs between groups. (An
    offset for a whole channel would move all its weights the same way, which layers carry on: 8-bit
    MobileNetV2 loses 2 dB by it.) A weight whose scales are too small for float16, or of which a
    group is exact because it is constant, stays as it is.
    """
    grouped = weight.codes.shape != weight.shape
    if not grouped or weight.bits > _BYTE or not _fits_half(weight.scale):
        return weight
    scale, offset = _half(weight.scale), _half(weight.offset)
    moved = np.abs(offset - weight.offset)
    constant = weight.scale == 1.0
    if (moved > _MOVED * weight.scale).any() or moved[constant].any():
        return weight
    return replace(weight, scale=scale, offset=offset)


def is_half(array: NDArray[Any]) -> bool:
    """Whether float16 has all of these numbers."""
    return bool(np.array_equal(_half(array), array))


def _fits_half(array: NDArray[Any]) -> bool:
    return bool((array >= _HALF.smallest_normal).all() and (array <= _HALF.max).all())


def _half(array: NDArray[Any]) -> NDArray[np.float32]:
    """As float16 rounds, which gives infinity beyond its range."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


def container(bits: int) -> str:
    """The type of codes of this width."""
    return "int8" if bits <= 8 else "int16"
