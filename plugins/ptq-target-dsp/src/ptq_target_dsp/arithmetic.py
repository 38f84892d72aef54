"""The integer arithmetic of Hexagon's tensor processor (HTP), found by experiment.

A layer's factor ``m = s_x * s_w / s_y`` becomes ``mantissa * 2**exponent`` with 11 bits of
mantissa. Of a sum, the zero point's share ``round(z_y / m)`` added, only so many bits are kept that
the result has 4 bits behind the point; it is multiplied with the mantissa and rounded half up.
Signed codes are computed as unsigned ones, whose zero point is larger by 128. A code can be off by
one where the exact result is within about a tenth of a step from a half.

Source: measured on the x86 build of libQnnHtp.so (onnxruntime-qnn 2.7.0): equal codes for Conv with
groups, depthwise, ConvTranspose, Gemm and MatMul of 8 bits. Two things are a step off at times:
depthwise convolutions with strides, which have 15 bits of mantissa there and drop nothing, and
16-bit activations, whose two bytes are multiplied one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_target_dsp import kernels

_MANTISSA_BITS = 10  # behind the leading one
_KEPT_BITS = 4  # of a result, behind the point, before it is multiplied
_BYTE, _WORD = 8, 16
# Beyond these every sum but 0 saturates, and none is seen at all: the integers stay within 64 bits.
_LARGEST, _SMALLEST = 2.0**16, 2.0**-44


class HexagonArithmetic:
    """See :class:`ptq_core.api.Arithmetic`."""

    def quantize(
        self, values: NDArray[Any], scale: float, zero_point: int, low: int, high: int, /
    ) -> NDArray[np.int32]:
        """A division, then rounding half to even."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        codes = kernels.quantize(flat, np.float32(scale), zero_point, low, high)
        return np.asarray(codes.reshape(np.shape(values)), np.int32)

    def requantize(
        self,
        accumulators: NDArray[Any],
        input_scale: float,
        weight_scale: NDArray[Any],
        output_scale: float,
        zero_point: int,
        low: int,
        high: int,
        /,
    ) -> NDArray[np.int32]:
        """Fixed point: an offset, a shift, a product with 11 bits, rounding half up."""
        sums, scales = _rows(accumulators, input_scale, weight_scale)
        factors = np.clip(scales / np.float64(output_scale), _SMALLEST, _LARGEST)
        mantissas, exponents = mantissa_and_exponent(factors)
        middle = 0 if low >= 0 else 1 << (_BYTE - 1 if low >= -(1 << _BYTE - 1) else _WORD - 1)
        offsets = np.rint((zero_point + middle) / factors).astype(np.int64)
        shifts = -exponents - _KEPT_BITS
        fraction = _MANTISSA_BITS + _KEPT_BITS
        codes = kernels.requantize(
            sums, offsets, shifts, mantissas, fraction, low + middle, high + middle
        )
        return np.asarray(codes.reshape(accumulators.shape) - middle, np.int32)

    def dequantize(
        self, accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[Any], /
    ) -> NDArray[np.float32]:
        """One float32 product."""
        sums, scales = _rows(accumulators, input_scale, weight_scale)
        reals = kernels.dequantize(sums, scales.astype(np.float32))
        return np.asarray(reals.reshape(accumulators.shape), np.float32)


def mantissa_and_exponent(
    factors: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``factor ~ mantissa / 2**10 * 2**exponent`` with ``2**10 <= mantissa <= 2**11``."""
    fractions, exponents = np.frexp(factors)  # in [0.5, 1)
    mantissas = np.rint(fractions * 2 ** (_MANTISSA_BITS + 1)).astype(np.int64)
    return mantissas, exponents.astype(np.int64) - 1


def _rows(
    accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The sums as [n, channels] and ``s_x * s_w`` of each channel."""
    channels = accumulators.shape[-1] if accumulators.ndim else 1
    sums = np.ascontiguousarray(accumulators, np.int64).reshape(-1, channels)
    scales = np.float64(input_scale) * np.asarray(weight_scale, np.float64)
    return sums, np.ascontiguousarray(np.broadcast_to(scales, channels))
