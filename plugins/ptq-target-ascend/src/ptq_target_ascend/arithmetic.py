"""The integer arithmetic of Ascend NPUs: AscendDequant behind a layer, AscendQuant before one.

AscendDequant multiplies a sum by ``s_x * s_w``, which it takes as float32 bits in an uint64.
AscendQuant computes ``round(x * (1 / s) + offset)`` in float32, half to even, and saturates: with
the reciprocal, a code next to a half may differ from what a division gives. A compiler that merges
both into one is taken to give the same.

Source: README and kernels of AscendQuant in CANN's operator library ops-nn (CAST_RINT); AMCT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_target_ascend import kernels


class AscendArithmetic:
    """See :class:`ptq_core.api.Arithmetic`."""

    def quantize(
        self, values: NDArray[Any], scale: float, zero_point: int, low: int, high: int, /
    ) -> NDArray[np.int32]:
        """AscendQuant."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        reciprocal = np.float32(1.0) / np.float32(scale)
        codes = kernels.quantize(flat, reciprocal, np.float32(zero_point), low, high)
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
        """AscendDequant, then AscendQuant."""
        reals = self.dequantize(accumulators, input_scale, weight_scale)
        return self.quantize(reals, output_scale, zero_point, low, high)

    def dequantize(
        self, accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[Any], /
    ) -> NDArray[np.float32]:
        """AscendDequant."""
        channels = accumulators.shape[-1] if accumulators.ndim else 1
        sums = np.ascontiguousarray(accumulators, np.int64).reshape(-1, channels)
        scales = np.float32(input_scale) * np.asarray(weight_scale, np.float32)
        reals = kernels.dequantize(sums, np.ascontiguousarray(np.broadcast_to(scales, channels)))
        return np.asarray(reals.reshape(accumulators.shape), np.float32)
