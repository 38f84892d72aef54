"""The arithmetic of quantization, in NumPy: ranges to parameters, reals to codes and back.

Rounding is half away from zero throughout, for parameters and for constants. A runtime's
QuantizeLinear rounds activations half to even; that is the runtime's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptq_core.errors import NumericError
from ptq_core.types import QScheme, Range

# The tolerance with which onnxruntime compares a quantized range with a Clip's bounds, FLT_EPSILON.
_CLIP_TOLERANCE = float(np.finfo(np.float32).eps)
_MINIMUM_WIDTH = 1e-10  # of a range; seed-semantics section 5 step 1
_BELOW_HALF = float(np.nextafter(0.5, 0.0))
_PIECE = 1 << 18  # elements that are worked on at a time
_MAXIMUM_BIAS = 2**30  # half of int32: the other half is left to the accumulator


@dataclass(frozen=True, kw_only=True, slots=True)
class QParams:
    """Scale and zero point, of a tensor (``axis`` None, rank 0) or of each channel (rank 1).

    ``real = scale * (code - zero_point)``
    """

    scheme: QScheme
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """What a layer's result lacks in integers, for each output channel.

    ``float result ~ gain * quantized result + offset``, before an activation.
    """

    gain: NDArray[np.float64]
    offset: NDArray[np.float64]


def round_half_away(values: ArrayLike) -> NDArray[np.float64]:
    """Nearest integers, halves away from zero: 0.5 -> 1, -2.5 -> -3.

    Exact for every double: what is added is the largest number below a half, so that a half is
    carried over by the rounding of the sum, and what is just below a half is not.
    """
    reals = np.asarray(values, np.float64)
    return np.asarray(np.trunc(reals + np.copysign(_BELOW_HALF, reals)), np.float64)


def parameters(
    low: ArrayLike,
    high: ArrayLike,
    scheme: QScheme,
    *,
    axis: int | None = None,
) -> QParams:
    """Scale and zero point that represent the interval [low, high].

    Shapes   scalars for a tensor, vectors of one length for the channels along ``axis``.
    Range    widened to contain 0, so that zero is exact; a width of nothing at zero takes the
             scale of [0, 1], since the scale that a width of 1e-10 gives would overflow a bias.
    Errors   NumericError if a bound is not finite or low > high.
    Source   seed-semantics section 5 (MindSpore Lite); Jacob et al. 2018, section 2.3.
    """
    lows = np.asarray(low, np.float64)
    highs = np.asarray(high, np.float64)
    if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
        raise NumericError(f"a range has to be finite, found [{low!r}, {high!r}]")
    if (lows > highs).any():
        raise NumericError(f"a range has to be ordered, found [{low!r}, {high!r}]")
    highs = np.maximum(highs, lows + _MINIMUM_WIDTH)
    empty = (lows == 0) & (highs <= _MINIMUM_WIDTH)
    highs = np.where(empty, 1.0, highs)
    codes = scheme.qmax - scheme.qmin
    if scheme.symmetric:
        bound = np.maximum(np.abs(lows), np.abs(highs))
        lows, highs = -bound, bound
    lows = np.minimum(lows, 0.0)
    highs = np.maximum(highs, 0.0)
    step = (highs - lows) / codes
    below_zero = round_half_away(-lows / step)
    encoded_low = np.float32(-below_zero * step).astype(np.float64)
    encoded_high = np.float32((codes - below_zero) * step).astype(np.float64)
    scale = np.maximum(
        ((encoded_high - encoded_low) / codes).astype(np.float32), np.finfo(np.float32).tiny
    )
    if not np.isfinite(scale).all():
        raise NumericError(f"a range is too wide for float32, found [{low!r}, {high!r}]")
    if scheme.symmetric:
        middle = 0 if scheme.signed else 1 << (scheme.bits - 1)
        zero_point = np.full(scale.shape, middle)
    else:
        zero_point = round_half_away(scheme.qmin - encoded_low / scale.astype(np.float64))
    return QParams(
        scheme=scheme,
        scale=np.asarray(scale, np.float32),
        zero_point=np.asarray(zero_point).astype(scheme.dtype),
        axis=axis,
    )


def fit_within(params: QParams, bounds: tuple[float, float]) -> QParams:
    """The same parameters, with the scale reduced until every code lies within the bounds.

    Runtimes drop a Relu or Clip between an operator and its QuantizeLinear only if the quantized
    range lies inside the activation's (onnxruntime: up to FLT_EPSILON); otherwise the operator
    runs in float. Only per-tensor parameters.
    """
    scheme = params.scheme

    def largest(zero_point: int) -> float:
        limits = [float(params.scale)]
        for bound, code in zip(bounds, (scheme.qmin, scheme.qmax), strict=True):
            steps = code - zero_point
            if steps != 0 and np.isfinite(bound):
                limits.append(bound / steps)
        return min(limits)

    # one code more or less below zero may keep much more of a lopsided range, as [-0.02, 6] is
    found = int(params.zero_point)
    near = [found, found - 1, found + 1] if not scheme.symmetric else [found]
    zero_point = max((z for z in near if scheme.qmin <= z <= scheme.qmax), key=largest)
    scale = np.float32(largest(zero_point))

    def outside(scale: np.float32) -> bool:
        low = float(scale * np.float32(scheme.qmin - zero_point))
        high = float(scale * np.float32(scheme.qmax - zero_point))
        return low < bounds[0] - _CLIP_TOLERANCE or high > bounds[1] + _CLIP_TOLERANCE

    for _ in range(4):  # float32 rounding of the product: one step down is enough in practice
        if not outside(scale):
            break
        scale = np.nextafter(scale, np.float32(0))
    return QParams(
        scheme=scheme,
        scale=np.asarray(scale),
        zero_point=np.asarray(zero_point, params.zero_point.dtype),
    )


def range_parameters(
    observed: Range, scheme: QScheme, bounds: tuple[float, float] | None = None
) -> QParams:
    """Parameters of an activation from its calibrated range, inside the bounds if there are any.

    A symmetric scheme has as many codes below zero as above, whatever the bounds: its range is cut
    to them, but its codes reach beyond.
    """
    low, high = observed.low, observed.high
    if bounds is None:
        return parameters(low, high, scheme)
    low, high = (min(max(value, bounds[0]), bounds[1]) for value in (low, high))
    if scheme.symmetric:
        return parameters(low, high, scheme)
    return fit_within(parameters(low, high, scheme), bounds)


def quantize(values: NDArray[Any], params: QParams) -> NDArray[Any]:
    """Codes of the values, rounded half away from zero and saturated.

    Works through axis 0 in pieces: the doubles in between would be many times the size of a
    weight of gigabytes, and small ones stay in the processor's cache.
    """
    scheme = params.scheme
    codes = np.empty(values.shape, scheme.dtype)
    scale, zero_point = _along_axis(params, values.ndim)
    rows = max(1, _PIECE // max(1, values[:1].size)) if values.ndim else 1
    for start in range(0, len(values) if values.ndim else 1, rows):
        piece = slice(start, start + rows) if values.ndim else ()
        own = piece if params.axis == 0 else ()
        quotient = np.divide(values[piece], scale[own], dtype=np.float64)
        exact = round_half_away(quotient + zero_point[own])
        codes[piece] = np.clip(exact, scheme.qmin, scheme.qmax)
    return codes


def dequantize(codes: NDArray[Any], params: QParams) -> NDArray[np.float32]:
    """Reals of the codes."""
    scale, zero_point = _along_axis(params, codes.ndim)
    return np.asarray((codes - zero_point) * scale, np.float32)


def _along_axis(params: QParams, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scale = params.scale.astype(np.float64)
    zero_point = params.zero_point.astype(np.float64)
    if params.axis is None:
        return scale, zero_point
    shape = [1] * rank
    shape[params.axis] = -1
    return scale.reshape(shape), zero_point.reshape(shape)


def weight_parameters(weight: NDArray[Any], scheme: QScheme, axis: int | None) -> QParams:
    """Parameters that cover the whole range of a constant, per channel along ``axis`` or at all."""
    if axis is None:
        return parameters(weight.min(initial=0.0), weight.max(initial=0.0), scheme)
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return parameters(
        weight.min(axis=others), weight.max(axis=others), scheme, axis=axis % weight.ndim
    )


def widen_for_bias(weight: QParams, bias: NDArray[Any], input_scale: float) -> QParams:
    """Weight parameters whose scale is large enough for the bias to fit into int32.

    The bias is stored with scale ``s_x * s_w``. Where a channel's weights are tiny beside its bias,
    the bias code would overflow; then the channel's weight scale is raised, and the caller
    quantizes the weights with the raised one, so that both stay consistent.
    """
    needed = np.abs(np.asarray(bias, np.float64)) / (input_scale * _MAXIMUM_BIAS)
    if weight.axis is None:
        needed = needed.max(initial=0.0)
    raised = np.maximum(weight.scale.astype(np.float64), needed)
    if (raised == weight.scale).all():
        return weight
    scale = raised.astype(np.float32)
    scale = np.where(scale < raised, np.nextafter(scale, np.float32(np.inf)), scale)
    return QParams(
        scheme=weight.scheme, scale=scale, zero_point=weight.zero_point, axis=weight.axis
    )


def quantize_bias(
    bias: NDArray[Any], input_scale: float, weight: QParams
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """int32 codes of a bias and their scale ``s_x * s_w``, rounded as a runtime multiplies it.

    Errors   NumericError where a code does not fit; :func:`widen_for_bias` prevents that.
    """
    scale = np.asarray(np.float32(input_scale) * weight.scale, np.float32)
    codes = round_half_away(np.asarray(bias, np.float64) / scale.astype(np.float64))
    if np.abs(codes).max(initial=0.0) > np.iinfo(np.int32).max:
        raise NumericError("a bias does not fit into int32 at the scale of its weights")
    return codes.astype(np.int32), scale


def cosine(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Cosine similarity over all elements, in double; two zero arrays are alike (1)."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (reference, other))
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if norms == (0.0, 0.0):
        return 1.0
    if 0.0 in norms:
        return 0.0
    return float(a @ b) / (norms[0] * norms[1])


def sqnr(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to quantization noise ratio in dB; infinite where both are equal."""
    noise = signal = 0.0
    flat = np.broadcast_arrays(reference, other)
    wanted, found = (one.reshape(-1) for one in flat)
    for start in range(0, wanted.size, _PIECE):
        piece = slice(start, start + _PIECE)
        a, b = (np.asarray(one[piece], np.float64) for one in (wanted, found))
        noise += float(((a - b) ** 2).sum())
        signal += float((a**2).sum())
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")
