"""Equal ranges: the factors that weights alone suggest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptq_core.equalization.weights import Array, Blocks

# Layers whose typical channel is within this factor of the largest one are left alone. Equal
# weights make activations unequal, which costs such layers more than it brings: SqueezeNet loses
# 4 dB by it (factors up to 4), MobileNets gain 10 (factors from 5 to 170).
_UNEQUAL = 5.0

_SWEEPS = 300
_STEP = 0.7  # of a sweep; with whole steps neighbours in a chain chase each other
_SETTLED = 1e-4


def equal_ranges(
    free: NDArray[np.bool_], blocks: Sequence[Blocks], low: Array, high: Array
) -> Array:
    """Factors with which a channel has the same range in the weights that make and read it.

    Ranges are relative to the largest of the layer, or of the most demanding one of several. A
    channel without range on one side keeps the factor 1.

    Shapes   one number for each variable.
    Source   Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
             Correction", section 4.1; iterated over all layers at once.
    """
    movable = free & unequal(len(free), blocks)
    factors = np.ones(len(free))
    for _ in range(_SWEEPS):
        made, read = _relative_ranges(factors, blocks)
        both = movable & (made > 0.0) & (read > 0.0)
        ratio = np.ones(len(free))
        ratio[both] = np.sqrt(made[both] / read[both])
        new = np.where(both, np.clip(factors * ratio**_STEP, low, high), 1.0)
        change = np.abs(np.log(new / factors)).max(initial=0.0)
        factors = new
        if change < _SETTLED:
            break
    return factors


def unequal(count: int, blocks: Sequence[Blocks]) -> NDArray[np.bool_]:
    """Of each variable: a layer that makes or reads it has really unequal output channels."""
    found = np.zeros(count, bool)
    for block in blocks:
        rows = block.largest.max(-1, initial=0.0)
        if rows.any() and rows.max() >= _UNEQUAL * np.median(rows[rows > 0.0]):
            found[block.ins] = found[block.outs] = True
    return found


def _relative_ranges(factors: Array, blocks: Sequence[Blocks]) -> tuple[Array, Array]:
    made, read = np.zeros(len(factors)), np.zeros(len(factors))
    for block in blocks:
        ratio = factors[block.ins][:, None, :] / factors[block.outs][:, :, None]
        scaled = block.largest * ratio
        scaled /= scaled.max(initial=0.0) or 1.0
        np.maximum.at(made, block.outs, scaled.max(2, initial=0.0))
        np.maximum.at(read, block.ins, scaled.max(1, initial=0.0))
    return made, read
