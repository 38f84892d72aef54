"""How strongly to smooth: for each group by the error that rounding makes in its layers.

Source: Xiao et al. 2023, SmoothQuant, arXiv 2211.10438, section 4, for the form of the divisor.
There its strength is one number for all layers, 0.5; here each group has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import QParams, parameters, range_parameters, weight_parameters
from ptq_core.smoothing.statistics import Activation
from ptq_core.types import QScheme, Range

Rounding = Literal["static", "tensor", "token"]
FloatArray = NDArray[np.float32]

_STRENGTHS = tuple(np.arange(0.1, 0.95, 0.1).round(2).tolist())
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.25)  # of the whole range, what a method that clips may keep
_COLUMNS = 1024  # outputs of a layer that errors are measured on, at most
_HELD_BACK = 4  # one of so many samples
_LARGEST = 1e4  # divisors beyond, or below its inverse, gain nothing
_TINY = 1e-9
_UNBOUNDED = 1e15  # beyond it, errors overflow float32
_FLOOR = 1e-3  # of the mean energy, below which a row counts less
# Of the error's energy, what has to be gained: a fold costs nothing, a node takes time.
_GAIN, _GAIN_OF_NODE = 0.98, 0.89


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothing:
    """What was found for a group.

    Attributes:
        divisor: of each channel, float64.
        strength: 0 to 1: how much of the activation's ranges moves into the weights.
        gain: by how many dB the error of held-back samples falls.
    """

    divisor: NDArray[np.float64]
    strength: float
    gain: float


def find_smoothing(
    activation: Activation,
    weights: Sequence[FloatArray],
    rounding: Rounding,
    scheme: QScheme,
    weight_scheme: QScheme,
    *,
    per_channel: bool,
    folds: bool,
    clips: bool = False,
) -> Smoothing | None:
    """The divisor with which the layers' results are closest to float; None where none helps.

    A divisor comes from three of four samples, and is judged by the others: where a range is
    fixed beforehand, they show what a channel with a range of its own loses by values that the
    range does not contain.

    Args:
        activation: over at least two samples.
        weights: of the layers, each ``[channels, outputs]``.
        rounding: ``static``: one range for all samples; ``tensor``: one for each sample;
            ``token``: one for each row, symmetric.
        scheme: of the activation, for ``static`` and ``tensor``.
        weight_scheme: of the weights.
        per_channel: weights have a scale for each output.
        folds: no node is needed, so that a small gain will do.
        clips: the user's method may find a narrower range than that of all values for the
            activation as it is: then the best of some is what smoothing has to beat. ``static``.
    """
    count = len(activation.kept)
    judged = [i for i in range(count) if i % _HELD_BACK == _HELD_BACK - 1] or [count - 1]
    measured = [i for i in range(count) if i not in judged]
    if not measured or not _is_sane(activation):
        return None
    rows = np.concatenate([activation.kept[i] for i in judged])
    whose = np.repeat(np.arange(len(judged)), [len(activation.kept[i]) for i in judged])
    largest = _largest_weights(weights)
    if per_channel:
        weights = [weight[:, :: -(-weight.shape[1] // _COLUMNS)] for weight in weights]
    wanted = [rows @ weight for weight in weights]
    importance = [_importance(one) for one in wanted]
    lowest, highest = _extremes(activation, measured)

    def error(divisor: FloatArray, share: float = 1.0) -> float:
        smoothed: FloatArray = np.asarray(rows / divisor, np.float32)
        if rounding == "token":
            rounded = _by_rows(smoothed)
        elif rounding == "tensor":
            low = [float((activation.low[i] / divisor).min()) for i in judged]
            high = [float((activation.high[i] / divisor).max()) for i in judged]
            rounded = _rounded(smoothed, parameters(low, high, scheme, axis=0), whose)
        else:
            low_end, high_end = float((lowest / divisor).min()), float((highest / divisor).max())
            cut = Range(low=low_end * share, high=high_end * share)
            rounded = _rounded(smoothed, range_parameters(cut, scheme))
        total = 0.0
        for weight, exact, counts in zip(weights, wanted, importance, strict=True):
            lost = exact - rounded @ _weight(weight, divisor, weight_scheme, per_channel)
            total += float(counts @ np.einsum("ij,ij->i", lost, lost))
        return total

    untouched = np.ones(rows.shape[1], np.float32)
    before = min(error(untouched, share) for share in (_SHARES if clips else (1.0,)))
    peaks = _peaks(lowest, highest)
    errors = {s: error(_divisor(peaks, largest, s).astype(np.float32)) for s in _STRENGTHS}
    strength = min(errors, key=lambda s: errors[s])
    if not errors[strength] < before * (_GAIN if folds else _GAIN_OF_NODE):
        return None
    return Smoothing(
        divisor=_divisor(_peaks(*_extremes(activation, range(count))), largest, strength),
        strength=strength,
        gain=10.0 * float(np.log10(before / max(errors[strength], 1e-300))),
    )


def _importance(results: FloatArray) -> FloatArray:
    """What a row's error counts: as much as any other's, whatever its size.

    A few tokens have results that are hundreds of times larger than the others', which a
    normalization behind them takes away again.
    """
    energy = np.einsum("ij,ij->i", results, results)
    return np.asarray(1.0 / (energy + _FLOOR * energy.mean() + _TINY), np.float32)


def _divisor(
    peaks: NDArray[np.float64], weights: NDArray[np.float64], strength: float
) -> NDArray[np.float64]:
    """``max|x|**strength / max|w|**(1 - strength)`` of each channel, about 1 in the middle.

    A channel that is always zero, or that no weight reads, is left alone.
    """
    idle = (peaks <= _TINY) | (weights <= _TINY)
    found: NDArray[np.float64] = np.maximum(peaks, _TINY) ** strength / np.maximum(
        weights, _TINY
    ) ** (1 - strength)
    if idle.all():
        return np.ones(len(peaks))
    found /= np.exp(np.log(found[~idle]).mean())
    found[idle] = 1.0
    return np.asarray(np.clip(found, 1 / _LARGEST, _LARGEST), np.float64)


def _extremes(activation: Activation, samples: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest value of each channel over these samples."""
    low = np.min([activation.low[i] for i in samples], axis=0)
    high = np.max([activation.high[i] for i in samples], axis=0)
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def _peaks(low: FloatArray, high: FloatArray) -> NDArray[np.float64]:
    return np.asarray(np.maximum(-low, high).clip(0.0), np.float64)


def _largest_weights(weights: Sequence[FloatArray]) -> NDArray[np.float64]:
    peaks = [np.abs(weight).max(axis=1, initial=0.0) for weight in weights]
    return np.asarray(np.max(peaks, axis=0), np.float64)


def _is_sane(activation: Activation) -> bool:
    """Whether its values are finite, and so are the squares of what they are multiplied to."""
    peaks = np.abs([*activation.low, *activation.high]).max(initial=0.0)
    return bool(peaks < _UNBOUNDED)  # not of NaN


def _by_rows(rows: FloatArray) -> FloatArray:
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127.0)
    scale[scale == 0.0] = 1.0
    return np.asarray(np.rint(rows / scale) * scale, np.float32)


def _rounded(
    values: FloatArray, params: QParams, whose: NDArray[np.intp] | None = None
) -> FloatArray:
    """Values as their codes give them back, in float32: half a million of them many times."""
    scale, zero_point = params.scale, params.zero_point.astype(np.float32)
    if whose is not None:
        scale, zero_point = scale[whose][:, None], zero_point[whose][:, None]
    codes: FloatArray = np.rint(values / scale)
    codes += zero_point
    np.clip(codes, params.scheme.qmin, params.scheme.qmax, out=codes)
    codes -= zero_point
    codes *= scale
    return codes


def _weight(
    weight: FloatArray, divisor: FloatArray, scheme: QScheme, per_channel: bool
) -> FloatArray:
    """The weights times the divisor, rounded."""
    scaled = weight * divisor[:, None]
    return _rounded(scaled, weight_parameters(scaled, scheme, 1 if per_channel else None))
