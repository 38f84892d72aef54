"""Least noise: the factors with which rounding disturbs the layers' results least.

With one scale for a layer's weights and one for an activation, the noise of rounding is known:

* weights: their step is proportional to their largest magnitude R, so output o is disturbed by
  ``R² s_o² Σ_i x_i² / s_i²``, where ``x_i²`` is the mean square of input i;
* activations: their step is proportional to their width A, so a layer's output o is disturbed by
  ``A² Σ_i w_oi² s_i²``.

Both are taken relative to the output's own mean square, averaged over outputs, and their
logarithms (decibels) are summed over layers and activations. In the logarithms of the factors this
sum is convex: it has one minimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptq_core.equalization.statistics import ChannelStatistics
from ptq_core.equalization.weights import Array, Blocks

_NORM = 16  # a p-norm stands for the maximum: smooth, 4 % above it for two equal numbers
_FAINTEST = 1e-6  # mean square of an output, in the layer's largest one

# Adam (Kingma and Ba 2015) with a step that falls to nothing: ten times the steps bring 0.8 dB
# more at most, summed over 20 to 70 layers that gain 360 to 760 dB.
_STEPS = 300
_STEP = 0.05
_MOMENTUM, _SPREAD = 0.9, 0.99


@dataclass(kw_only=True)
class _Layer:
    power: Array  # magnitudes to the power of _NORM, [groups, outputs, inputs]
    weight: Array  # of each output in the mean of relative noise, [groups, outputs]
    square: Array  # mean squares of the inputs, [groups, inputs]
    ins: NDArray[np.int64]
    outs: NDArray[np.int64]


@dataclass(kw_only=True)
class _Activation:
    power: Array  # of each channel's magnitude
    weight: Array  # what noise of this channel adds to the layers that read it
    variables: NDArray[np.int64]


def least_noise(
    free: NDArray[np.bool_],
    blocks: Sequence[Blocks],
    observed: Mapping[str, ChannelStatistics],
    low: Array,
    high: Array,
) -> Array:
    """The factors of least noise within the limits.

    Args:
        free: of each variable: it may change.
        blocks: the layers that are quantized.
        observed: statistics of the activations that they read.
        low: smallest factor of each variable.
        high: largest one.
    """
    layers, activations = _parts(blocks, observed)
    logs = np.zeros(len(free))
    momentum, spread = np.zeros(len(free)), np.zeros(len(free))
    for step in range(1, _STEPS + 1):
        _, slope = _noise(logs, layers, activations)
        slope[~free] = 0.0
        momentum = _MOMENTUM * momentum + (1.0 - _MOMENTUM) * slope
        spread = _SPREAD * spread + (1.0 - _SPREAD) * slope * slope
        first, second = momentum / (1.0 - _MOMENTUM**step), spread / (1.0 - _SPREAD**step)
        size = _STEP * (1.0 - (step - 1) / _STEPS)
        moved = logs - size * first / (np.sqrt(second) + np.finfo(float).tiny)
        logs = np.where(free, np.clip(moved, np.log(low), np.log(high)), 0.0)
    return np.asarray(np.exp(logs))


def noise_level(
    factors: Array, blocks: Sequence[Blocks], observed: Mapping[str, ChannelStatistics]
) -> float:
    """What :func:`least_noise` minimizes, in dB up to a constant."""
    return 10.0 / float(np.log(10.0)) * _noise(np.log(factors), *_parts(blocks, observed))[0]


def _parts(
    blocks: Sequence[Blocks], observed: Mapping[str, ChannelStatistics]
) -> tuple[list[_Layer], list[_Activation]]:
    layers: list[_Layer] = []
    activations: dict[str, _Activation] = {}
    for block in blocks:
        name = block.layer.source
        seen = observed[name]
        square = seen.square.reshape(block.ins.shape)
        result = np.einsum("goi,gi->go", block.energy, square)
        if not result.any():
            continue  # never anything but zeros, or weights of zeros
        weight = 1.0 / np.maximum(result, _FAINTEST * result.max()) / result.size
        rows = block.largest.any(2)
        layers.append(
            _Layer(
                power=(block.largest / block.largest.max()) ** _NORM,
                weight=np.where(rows, weight, 0.0),  # zeros are rounded to zeros
                square=square,
                ins=block.ins,
                outs=block.outs,
            )
        )
        gain = np.einsum("goi,go->gi", block.energy, weight).reshape(-1)
        if name in activations:
            activations[name].weight = activations[name].weight + gain
        else:
            peak = np.maximum(np.abs(seen.low), np.abs(seen.high))
            activations[name] = _Activation(
                power=(peak / peak.max()) ** _NORM, weight=gain, variables=block.ins.reshape(-1)
            )
    return layers, list(activations.values())


def _noise(
    logs: Array, layers: Sequence[_Layer], activations: Sequence[_Activation]
) -> tuple[float, Array]:
    """The sum of logarithms, and its slope for each variable."""
    total, slope = 0.0, np.zeros(len(logs))
    for layer in layers:
        outs, ins = logs[layer.outs], logs[layer.ins]
        shrink, grow = np.exp(-_NORM * outs), np.exp(_NORM * ins)
        rows = shrink * np.matmul(layer.power, grow[:, :, None])[:, :, 0]
        columns = grow * np.matmul(shrink[:, None, :], layer.power)[:, 0, :]
        largest = rows.sum()
        loud, quiet = layer.weight * np.exp(2.0 * outs), layer.square * np.exp(-2.0 * ins)
        by_group = loud.sum(1, keepdims=True) * quiet.sum(1, keepdims=True)
        noise = by_group.sum()
        total += 2.0 / _NORM * np.log(largest) + np.log(noise)
        made = 2.0 * loud * quiet.sum(1, keepdims=True) / noise - 2.0 * rows / largest
        read = 2.0 * columns / largest - 2.0 * quiet * loud.sum(1, keepdims=True) / noise
        np.add.at(slope, layer.outs, made)
        np.add.at(slope, layer.ins, read)
    for one in activations:
        own = logs[one.variables]
        powers, noises = one.power * np.exp(-_NORM * own), one.weight * np.exp(2.0 * own)
        total += 2.0 / _NORM * np.log(powers.sum()) + np.log(noises.sum())
        np.add.at(slope, one.variables, 2.0 * noises / noises.sum() - 2.0 * powers / powers.sum())
    return float(total), slope
