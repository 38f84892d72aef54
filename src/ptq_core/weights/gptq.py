"""Error-compensating rounding: codes that keep a layer's output rather than its weights.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers": inputs are rounded one after the other, and what each leaves is made up for by those
still to come, as far as the inputs go together. Then the codes are improved one at a time (Behdin
et al. 2023, "QuantEase") and scale and offset fitted to the output, in turns.

Inside, arrays are [groups of the layer, inputs, output channels of a group].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away
from ptq_core.errors import NumericError
from ptq_core.weights.quantized import QuantizedWeight

Doubles = NDArray[np.float64]

_DAMPING = 0.01  # of the mean of the diagonal of H; GPTQ section 4
_BLOCK = 64  # inputs whose effect on the others is gathered before it is applied
_TURNS = 3
_MAXIMUM_GAIN = 10.0  # exclusive, as of CorrectionVar; seed-semantics section 6.1
_SINGULAR = 1e-9  # of a determinant, relatively: all codes alike


def gptq(
    weight: NDArray[Any],
    hessian: NDArray[Any],
    start: QuantizedWeight,
    output_axis: int,
    *,
    correct: bool = True,
    refit: bool = True,
    turns: int = _TURNS,
) -> QuantizedWeight:
    """Codes of less error at the layer's output than those of ``start``.

    Before ``correct`` never of more: for each output channel (the whole layer where it has one
    scale), judged by H with its damping.

    Args:
        weight: of a Conv, a Gemm or a MatMul of two axes.
        hessian: ``X^T X`` of its inputs, [groups, inputs, inputs]; any factor.
        start: the weight on a grid, with one scale, one for each output channel, or groups.
        output_axis: the axis of the output channels: 0 for Conv, 1 for MatMul.
        correct: multiply by a factor that gives each output its power back, as CorrectionVar does
            for weights: what fits best is too small, which adds up from layer to layer.
        refit: fit scale and offset to the output as well; otherwise they stay as they are, and
            nothing is corrected.
        turns: of compensation, improvement and fit.

    Raises:
        NumericError: where H is not finite.
        ValueError: where scales are shared otherwise.
    """
    if not np.isfinite(hessian).all():
        raise NumericError("the layer's inputs are not finite or too large for float32")
    if weight.size == 0:
        return start
    groups, inputs = hessian.shape[:2]

    def inward(array: NDArray[Any]) -> Doubles:
        """From the weight's shape to [groups, inputs, outputs of a group]."""
        rows = np.moveaxis(array.reshape(weight.shape), output_axis, 0)
        return np.asarray(rows, np.float64).reshape(groups, -1, inputs).swapaxes(1, 2).copy()

    def outward(array: Doubles) -> NDArray[Any]:
        """Back, to the shape of the codes."""
        others = np.moveaxis(np.empty(weight.shape, np.bool_), output_axis, 0).shape
        rows = array.swapaxes(1, 2).reshape(others)
        return np.moveaxis(rows, 0, output_axis).reshape(start.codes.shape)

    shared = start.scale.size == 1
    segments = 1 if shared else max(1, start.scale.size // weight.shape[output_axis])
    width = inputs // segments
    scale, offset = (
        inward(np.broadcast_to(one, start.codes.shape)) for one in (start.scale, start.offset)
    )
    if not np.array_equal(np.repeat(scale[:, ::width], width, axis=1), scale):
        raise ValueError(
            "a scale has to be the layer's, an output channel's or a group's of inputs"
        )
    scale, offset = scale[:, ::width], offset[:, ::width]
    wanted, h = inward(weight), np.asarray(hessian, np.float64)
    if start.input_scale is not None:  # then it is the inputs that are multiplied
        factors = inward(np.broadcast_to(start.input_scale, weight.shape))
        wanted /= factors
        h = h * factors[:, :, :1] * factors[:, :, :1].swapaxes(1, 2)
    h = _damped(h)
    layer = _Layer(wanted, h, start.bits, segments, shared)
    best = _Solution(inward(start.codes), scale, offset)
    error = layer.error(best, layer.gradient(best))
    order = np.argsort(-np.einsum("gii->i", h), kind="stable")
    upper = _inverse_factor(h[:, order][:, :, order])
    current = best
    for _ in range(turns if refit else 1):
        current = layer.compensate(current, upper, order)
        gradient = layer.gradient(current)
        current = layer.descend(current, gradient)
        if refit:
            current = layer.fit(current, gradient)
        found = layer.error(current, gradient)
        best = _Solution.choose(found < error, current, best)
        error = np.minimum(error, found)
    codes = outward(best.codes).astype(start.codes.dtype)
    if not refit:
        return replace(start, codes=codes)
    gain = np.broadcast_to(layer.gain(best) if correct else 1.0, layer.weight.shape)
    corner = tuple(slice(0, 1) if size == 1 else slice(None) for size in start.scale.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        result = replace(
            start,
            codes=codes,
            scale=outward(layer.spread(best.scale) * gain)[corner].astype(np.float32),
            offset=outward(layer.spread(best.offset) * gain)[corner].astype(np.float32),
            zero_point=np.zeros_like(start.zero_point),
            variance=outward(gain)[corner],
            mean=np.zeros_like(start.mean),
        )
        # weights at the end of float32: the start is safe
        return result if np.isfinite(result.dequantize()).all() else start


@dataclass(frozen=True, slots=True)
class _Solution:
    """Codes [groups, inputs, outputs], scale and offset [groups, segments, outputs]."""

    codes: Doubles
    scale: Doubles
    offset: Doubles

    @classmethod
    def choose(cls, first: NDArray[np.bool_], a: Self, b: Self) -> Self:
        """The first where the condition, [groups, 1, outputs], holds."""
        return cls(
            np.where(first, a.codes, b.codes),
            np.where(first, a.scale, b.scale),
            np.where(first, a.offset, b.offset),
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a solution is judged by.

    Attributes:
        weight: [groups, inputs, outputs].
        h: [groups, inputs, inputs].
        bits: of a code.
        segments: of the inputs, with a scale each.
        shared: whether all outputs share one scale.
    """

    weight: Doubles
    h: Doubles
    bits: int
    segments: int
    shared: bool

    def spread(self, values: Doubles) -> Doubles:
        """One value for each input of a segment."""
        return np.repeat(values, self.weight.shape[1] // self.segments, axis=1)

    def residual(self, solution: _Solution) -> Doubles:
        reals = solution.codes * self.spread(solution.scale) + self.spread(solution.offset)
        return self.weight - reals

    def gradient(self, solution: _Solution) -> Doubles:
        """Half of what the error grows by with each weight: ``H residual``, in its shape."""
        return np.asarray(self.h @ self.residual(solution))

    def error(self, solution: _Solution, gradient: Doubles) -> Doubles:
        """[groups, 1, outputs]; the same for all outputs where they share a scale."""
        errors = (self.residual(solution) * gradient).sum(axis=1, keepdims=True)
        return np.broadcast_to(errors.sum(), errors.shape) if self.shared else errors

    def gain(self, solution: _Solution) -> Doubles:
        """What gives the outputs of a solution their power back, [groups, 1, outputs]."""
        decoded = self.weight - self.residual(solution)
        wanted, found = (
            (one * (self.h @ one)).sum(axis=1, keepdims=True) for one in (self.weight, decoded)
        )
        if self.shared:
            wanted, found = (np.full_like(one, one.sum()) for one in (wanted, found))
        ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0.0)
        return np.where((ratio > 0.0) & (ratio < _MAXIMUM_GAIN**2), np.sqrt(ratio), 1.0)

    def compensate(self, grid: _Solution, upper: Doubles, order: NDArray[np.int64]) -> _Solution:
        """GPTQ: round the inputs in this order and hand the error of each to the later ones.

        ``upper`` is the upper Cholesky factor of the inverse of H in that order.
        """
        scale, offset = (self.spread(one)[:, order] for one in (grid.scale, grid.offset))
        weight = self.weight[:, order]
        codes = np.empty_like(weight)
        for start in range(0, len(order), _BLOCK):
            stop = min(start + _BLOCK, len(order))
            errors = np.empty_like(weight[:, start:stop])
            for i in range(start, stop):
                codes[:, i] = self.nearest((weight[:, i] - offset[:, i]) / scale[:, i])
                left = weight[:, i] - (codes[:, i] * scale[:, i] + offset[:, i])
                error = left / upper[:, i, i, None]
                weight[:, i + 1 : stop] -= upper[:, i, i + 1 : stop, None] * error[:, None]
                errors[:, i - start] = error
            weight[:, stop:] -= upper[:, start:stop, stop:].swapaxes(1, 2) @ errors
        unordered = np.empty_like(codes)
        unordered[:, order] = codes
        return replace(grid, codes=unordered)

    def descend(self, solution: _Solution, gradient: Doubles) -> _Solution:
        """One sweep over the inputs: each takes its best code, the others staying as they are.

        ``gradient`` is brought up to date.
        """
        scale, codes = self.spread(solution.scale), solution.codes.copy()
        for start in range(0, codes.shape[1], _BLOCK):
            stop = min(start + _BLOCK, codes.shape[1])
            block = gradient[:, start:stop].copy()
            changes = np.empty_like(block)
            for i in range(start, stop):
                wish = block[:, i - start] / (self.h[:, i, i, None] * scale[:, i])
                code = self.nearest(codes[:, i] + wish)
                change = (code - codes[:, i]) * scale[:, i]
                block[:, i + 1 - start :] -= self.h[:, i + 1 : stop, i, None] * change[:, None]
                codes[:, i], changes[:, i - start] = code, change
            gradient -= self.h[:, :, start:stop] @ changes
        return replace(solution, codes=codes)

    def fit(self, solution: _Solution, gradient: Doubles) -> _Solution:
        """Scale and offset of the least error for these codes, one segment after the other.

        ``gradient`` is brought up to date.
        """
        scale, offset = solution.scale.copy(), solution.offset.copy()
        width = self.weight.shape[1] // self.segments
        for segment in range(self.segments):
            own = slice(segment * width, (segment + 1) * width)
            codes = solution.codes[:, own]
            through = self.h[:, :, own] @ codes
            ones = self.h[:, :, own].sum(axis=2)[..., None]
            sums = np.stack(
                [
                    (codes * through[:, own]).sum(axis=1),
                    through[:, own].sum(axis=1),
                    np.broadcast_to(ones[:, own].sum(axis=1), through[:, 0].shape),
                    (codes * gradient[:, own]).sum(axis=1),
                    gradient[:, own].sum(axis=1),
                ]
            )
            if self.shared:
                sums = np.broadcast_to(sums.sum(axis=(1, 2), keepdims=True), sums.shape)
            cc, c1, one, cg, g1 = sums
            determinant = cc * one - c1 * c1
            usable = determinant > _SINGULAR * cc * one
            safe = np.where(usable, determinant, np.inf)
            wider = _as_float32(scale[:, segment] + (cg * one - g1 * c1) / safe)
            usable &= (wider > np.finfo(np.float32).tiny) & np.isfinite(wider)
            wider = np.where(usable, wider, scale[:, segment])
            moved = _as_float32(offset[:, segment] + (g1 * cc - cg * c1) / safe)
            moved = np.where(usable, moved, offset[:, segment])
            gradient -= through * (wider - scale[:, segment])[:, None]
            gradient -= ones * (moved - offset[:, segment])[:, None]
            scale[:, segment], offset[:, segment] = wider, moved
        return replace(solution, scale=scale, offset=offset)

    def nearest(self, codes: Doubles) -> Doubles:
        limit = 2.0 ** (self.bits - 1)
        return np.clip(round_half_away(codes), -limit, limit - 1.0)


def _as_float32(values: Doubles) -> Doubles:
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def _damped(hessian: Doubles) -> Doubles:
    """H with a part of its diagonal's mean added to the diagonal; an empty one becomes the unit."""
    inputs = hessian.shape[1]
    mean = np.einsum("gii->g", hessian) / inputs
    damped = hessian / np.where(mean > 0.0, mean, 1.0)[:, None, None]
    more = np.where(mean > 0.0, _DAMPING, 1.0)
    damped[:, np.arange(inputs), np.arange(inputs)] += more[:, None]
    return damped


def _inverse_factor(h: Doubles) -> Doubles:
    """The upper triangular U with ``U^T U = H^-1``."""
    return np.asarray(np.linalg.cholesky(np.linalg.inv(h)).swapaxes(1, 2))
