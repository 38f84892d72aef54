"""TensorRT's integer arithmetic: exact sums, then a float32 epilogue.

A layer's sum becomes the real ``sum * (s_x * s_w)`` in float32, to which bias and activation are
applied; where the result is quantized, that real is divided by its scale and rounded half to even.

Source: the quantization formulas of TensorRT's documentation ("Explicit Quantization"). Which of
its kernels an engine takes, and whether one multiplies by the reciprocal, only the GPU knows: a
code may differ by one where the quotient is next to a half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_target_nvgpu import kernels


class TensorRtArithmetic:
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
        """The real result in float32, quantized."""
        reals = self.dequantize(accumulators, input_scale, weight_scale)
        return self.quantize(reals, output_scale, zero_point, low, high)

    def dequantize(
        self, accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[Any], /
    ) -> NDArray[np.float32]:
        """One float32 product."""
        channels = accumulators.shape[-1] if accumulators.ndim else 1
        sums = np.ascontiguousarray(accumulators, np.int64).reshape(-1, channels)
        scales = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
        reals = kernels.dequantize(sums, np.ascontiguousarray(np.broadcast_to(scales, channels)))
        return np.asarray(reals.reshape(accumulators.shape), np.float32)
