"""Integer zero points, for devices that subtract one before they multiply by the scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away
from ptq_core.weights.quantized import QuantizedWeight, container
from ptq_core.weights.rounding import channel_rows, from_rows, keep_channel_sums

_ROUNDS = 3


def with_zero_points(
    weight: NDArray[Any], found: QuantizedWeight, *, keep_sums: bool = False
) -> QuantizedWeight:
    """The nearest form of a quantized weight in which zero has a code of its own.

    ``real = scale * (code - zero_point)``: the offset becomes a multiple of the scale, so that
    CorrectionMean has no place any more. Codes and scale are then fitted again, by rounding and by
    least squares in turn; the zero point stays.

    Args:
        weight: the float values.
        found: their codes with a free offset.
        keep_sums: at last, round a few codes to the other side, so that each channel keeps its sum:
            behind a Relu, layers carry the mean of their weights' errors on.
    """
    low, high = -(1 << (found.bits - 1)), (1 << (found.bits - 1)) - 1
    reals = np.asarray(weight, np.float32).reshape(found.codes.shape)
    scale = found.scale.astype(np.float64)
    zero_point = np.clip(round_half_away(-found.offset / scale), low, high)
    axes = tuple(axis for axis, count in enumerate(scale.shape) if count == 1)
    codes = np.clip(round_half_away(reals / scale) + zero_point, low, high)
    for _ in range(_ROUNDS):
        steps = codes - zero_point
        power = (steps * steps).sum(axis=axes, keepdims=True)
        fitted = (reals * steps).sum(axis=axes, keepdims=True) / np.maximum(power, 1.0)
        scale = np.where((power > 0) & (fitted > 0), fitted, scale)
        codes = np.clip(round_half_away(reals / scale) + zero_point, low, high)
    kept = [axis for axis, count in enumerate(scale.shape) if count > 1]
    if keep_sums and weight.size:
        exact = np.clip(channel_rows(reals / scale + zero_point, kept), low, high)
        rounded = round_half_away(exact)
        keep_channel_sums(exact, rounded)
        codes = from_rows(rounded, reals.shape, kept)
    stored = np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)
    return replace(
        found,
        codes=codes.astype(container(found.bits)),
        scale=stored,
        offset=np.asarray(-(zero_point * stored), np.float32),
        zero_point=zero_point.astype(np.int64),
        mean=np.zeros_like(found.mean),
    )
