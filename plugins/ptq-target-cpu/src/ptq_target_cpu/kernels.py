"""The loops of onnxruntime's integer arithmetic; numba compiles them at the first use.

Source: MlasRequantizeOutput and MlasQuantizeLinear of onnxruntime, both in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def quantize(
    values: NDArray[np.float32], scale: np.float32, zero_point: int, low: int, high: int
) -> Any:
    """float32 [n] to int32 codes: the quotient is clipped, then rounded half to even."""
    codes = np.empty(values.size, np.int32)
    least, most = np.float32(low - zero_point), np.float32(high - zero_point)
    for i in range(values.size):
        steps = min(max(np.float32(values[i] / scale), least), most)
        codes[i] = np.int32(np.rint(steps)) + zero_point
    return codes


@njit(cache=True, nogil=True)
def requantize(
    sums: NDArray[np.int64], factors: NDArray[np.float32], zero_point: int, low: int, high: int
) -> Any:
    """int64 [n, channels] to int32 codes: one product in float32, clipped, then rounded."""
    codes = np.empty(sums.shape, np.int32)
    least, most = np.float32(low - zero_point), np.float32(high - zero_point)
    for i in range(sums.shape[0]):
        for channel in range(sums.shape[1]):
            steps = np.float32(np.float32(sums[i, channel]) * factors[channel])
            codes[i, channel] = np.int32(np.rint(min(max(steps, least), most))) + zero_point
    return codes


@njit(cache=True, nogil=True)
def dequantize(sums: NDArray[np.int64], scales: NDArray[np.float32]) -> Any:
    """int64 [n, channels] to float32."""
    reals = np.empty(sums.shape, np.float32)
    for i in range(sums.shape[0]):
        for channel in range(sums.shape[1]):
            reals[i, channel] = np.float32(sums[i, channel]) * scales[channel]
    return reals
