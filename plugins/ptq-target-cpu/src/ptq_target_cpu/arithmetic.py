"""onnxruntime's integer arithmetic on CPUs: one float32 factor for each channel.

The scales of input, weights and output become one float32 number, ``s_x * s_w / s_y``, with which
the sum is multiplied; the product is clipped and rounded half to even.

Source: MLAS of onnxruntime (quantize.cpp), QLinearConv, QLinearMatMul and QGemm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_target_cpu import kernels


class OnnxRuntimeArithmetic:
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
        """One float32 product, then rounding half to even."""
        sums, scales = _rows(accumulators, input_scale, weight_scale)
        factors = np.asarray(scales / np.float32(output_scale), np.float32)
        codes = kernels.requantize(sums, factors, zero_point, low, high)
        return np.asarray(codes.reshape(accumulators.shape), np.int32)

    def dequantize(
        self, accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[Any], /
    ) -> NDArray[np.float32]:
        """One float32 product."""
        sums, scales = _rows(accumulators, input_scale, weight_scale)
        reals = kernels.dequantize(sums, scales)
        return np.asarray(reals.reshape(accumulators.shape), np.float32)


def _rows(
    accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The sums as [n, channels] and ``s_x * s_w`` of each channel."""
    channels = accumulators.shape[-1] if accumulators.ndim else 1
    sums = np.ascontiguousarray(accumulators, np.int64).reshape(-1, channels)
    scales = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
    return sums, np.ascontiguousarray(np.broadcast_to(scales, channels), np.float32)
