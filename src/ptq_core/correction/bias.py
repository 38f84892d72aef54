"""Measure the corrections: one run of both networks over a few dozen samples.

What is matched, for every output channel of every linear operator, is its mean in the float
network (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", section 4.2, with means measured instead of derived) and how far it follows the float
one from sample to sample: a ridge regression of one on the other. The offset goes into the bias,
the gain into the scale of the channel's weights; neither costs the finished model anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import Correction
from ptq_core.correction.twin import (
    GAINS,
    MOMENTS,
    RIDGE,
    ROUNDING,
    SHARE,
    TINY,
    Twin,
    current_name,
    make_twin,
    state_name,
    updated_name,
)
from ptq_core.graph.model import runnable
from ptq_core.planning import Plan
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Batch
from ptq_core.types import RunnerEntry

State = dict[str, NDArray[np.float32]]

# What one output may lose where the worst of all gains, dB: the mean over an encoder's tokens can
# lose ten where the tokens gain seven, and be what the network is used for.
_SPARED = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BiasCorrection:
    """What was found.

    Attributes:
        layers: the corrections that help, by the layer's key.
        undone: layers whose correction did not help on the samples that were held back.
        before: SQNR of the worst output without corrections on those samples, in dB; where another
            one is why all are undone, of that.
        after: the same with them.
    """

    layers: Mapping[str, Correction] = field(default_factory=dict)
    undone: tuple[str, ...] = ()
    before: float | None = None
    after: float | None = None


def correct_bias(
    floats: ir.Model,
    quantized: ir.Model,
    plan: Plan,
    batches: Iterable[Batch],
    held_back: Sequence[Batch],
    runner: Registered[RunnerEntry],
    options: Any,
    progress: Callable[[int], None],
    margin: float = 0.0,
) -> BiasCorrection:
    """Corrections for the layers of a quantized model.

    Args:
        floats: the prepared model.
        quantized: the same after emission, without corrections.
        plan: that it was made from.
        batches: samples to measure with.
        held_back: others, to judge with: a layer's correction that does not bring its channel
            means closer to the float ones there is undone, and all of them are if the outputs are
            further off, or one of them is by far.
        runner: executes both.
        options: its options.
        progress: called with the number of samples that are done.
        margin: by which the outputs have to come closer, in dB, on those held back; else all
            corrections are undone.
    """
    twin = make_twin(floats, quantized, plan.weights)
    run = _Run(twin, runner, options)
    zero = {
        layer: np.zeros((1, len(MOMENTS) * channels), np.float32)
        for layer, channels in twin.channels.items()
    }
    state, seen = zero, 0
    for batch in batches:
        seen += batch.rows
        results = run(batch, state, batch.rows / seen)
        state = {layer: results[updated_name(layer)] for layer in state}
        progress(seen)
    per_channel = {weight.node: weight.axis is not None for weight in plan.weights}
    found = {
        layer: solve(moments, per_channel=per_channel[layer]) for layer, moments in state.items()
    }
    if not held_back:
        return BiasCorrection(layers=found)
    _, old = run.judge(held_back, zero)
    moments, new = run.judge(held_back, state)
    helps = {layer for layer, correction in found.items() if _improves(correction, moments[layer])}
    if len(helps) < len(found):
        kept = {layer: state[layer] if layer in helps else zero[layer] for layer in state}
        _, new = run.judge(held_back, kept)
    before, after = (min(ratios.values(), default=None) for ratios in (old, new))
    if before is not None and after is not None and after < before + margin:
        return BiasCorrection(undone=tuple(found), before=before, after=after)
    lost = [name for name in old if new[name] < old[name] - _SPARED]
    if lost:
        name = min(lost, key=lambda one: new[one] - old[one])
        return BiasCorrection(undone=tuple(found), before=old[name], after=new[name])
    return BiasCorrection(
        layers={layer: found[layer] for layer in found if layer in helps},
        undone=tuple(layer for layer in found if layer not in helps),
        before=before,
        after=after,
    )


def solve(moments: NDArray[np.float32], *, per_channel: bool) -> Correction:
    """The correction from a layer's moments, [1, 4 * channels].

    The regression of ``float - quantized`` on ``quantized`` over samples, its slope drawn to 0 by
    a ridge: a slope for each channel, or one for all where their weights share a scale.
    """
    difference, result, mixed, square = moments.astype(np.float64).reshape(len(MOMENTS), -1)
    covariance = mixed - difference * result
    variance = np.maximum(square - result * result, 0.0)
    ridge = RIDGE * variance.mean()
    if not per_channel:
        covariance, variance, square = covariance.mean(), variance.mean(), square.mean()
    slope = covariance / (variance + ridge + ROUNDING * square + TINY)
    gain = np.broadcast_to(np.clip(1.0 + slope, *GAINS), difference.shape).copy()
    return Correction(gain=gain, offset=difference - (gain - 1.0) * result)


def _improves(correction: Correction, moments: NDArray[np.float64]) -> bool:
    """Whether samples with these moments have channel means closer to float than without it.

    The mean of ``(difference - slope * result - offset)**2 - difference**2`` over the samples,
    summed over the channels.
    """
    difference, result, mixed, square = moments.reshape(len(MOMENTS), -1)
    slope, offset = correction.gain - 1.0, correction.offset
    change = slope * slope * square + offset * offset
    change += 2.0 * (slope * offset * result - slope * mixed - offset * difference)
    return float(change.sum()) < 0.0


class _Run:
    """The twin in a runner."""

    def __init__(self, twin: Twin, runner: Registered[RunnerEntry], options: Any) -> None:
        self._twin, self._record = twin, runner.record
        with runnable(twin.model) as form, blame(self._record, "loading the model for correction"):
            self._session = runner.entry.factory(form, options)

    def __call__(self, batch: Batch, state: State, share: float) -> Mapping[str, NDArray[Any]]:
        """One run; with a share of 0 the state decides the corrections and stays as it is."""
        feeds = dict(batch.feeds)
        feeds |= {state_name(layer): moments for layer, moments in state.items()}
        feeds[SHARE] = np.asarray(share, np.float32)
        with blame(self._record, f"running {batch.names[0]}"):
            return self._session.run(feeds)

    def judge(
        self, batches: Sequence[Batch], state: State
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
        """The layers' moments without corrections, and the SQNR of every output with them.

        In dB, infinite where all are equal; an output that is always zero has none.
        """
        rows = sum(batch.rows for batch in batches)
        moments = {layer: np.zeros(one.shape, np.float64) for layer, one in state.items()}
        signal = dict.fromkeys(self._twin.outputs, 0.0)
        noise = dict.fromkeys(self._twin.outputs, 0.0)
        for batch in batches:
            results = self(batch, state, 0.0)
            for layer in moments:
                moments[layer] += results[current_name(layer)] * (batch.rows / rows)
            for name, other in self._twin.outputs.items():
                wanted, given = (results[one].astype(np.float64) for one in (name, other))
                signal[name] += float((wanted**2).sum())
                noise[name] += float(((wanted - given) ** 2).sum())
        ratios = {
            name: 10.0 * float(np.log10(signal[name] / noise[name])) if noise[name] else np.inf
            for name in signal
            if signal[name] > 0.0
        }
        return moments, ratios
