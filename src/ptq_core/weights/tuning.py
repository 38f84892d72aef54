"""Steps for all weights together, so that the file is small and the outputs stay close.

Noise from different weights adds up at the outputs: D = sum a_t s_t^2, with s_t the step of weight
t and a_t what its noise does there. The codes take R = sum N_t (h_t - log2 s_t) bits. For a given D
the file is smallest at s_t = l sqrt(N_t / a_t): every weight makes as much of the noise as it has
of all weights. So a_t is measured once for each weight, and only l is searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ptq_core.errors import InputError, Location, Problem
from ptq_core.weights.mixed import finest_step, quantize_step, relative_error, step_for
from ptq_core.weights.quantized import QuantizedWeight
from ptq_core.weights.trial import Trial

TARGET = 0.995  # mean cosine of the outputs; seed-semantics section 8.2

# Measured on MobileNetV2 and SqueezeNet: 4, 8, 16 and 32 samples to measure the weights' effects
# give files of the same size within 2%, and so do errors of 0.02, 0.05 and 0.1; measuring again at
# the steps that were found gains nothing.
_PROBE_SAMPLES = 4
_PROBE_ERROR = 0.05  # relative, of the one weight that is rounded
_PROBE_NOISE = 0.05  # of the outputs, at most: more does not grow with the square of the step
_FINER, _RETRIES = 4.0, 6  # by which a probe's step is divided, and how often
_COARSEST = 0.5  # relative error that no weight exceeds
_TOLERANCE = 0.06  # of 1 - target: 0.995 to 0.9953
_EVALUATIONS = 16  # on all samples, at most; 1 to 5 are usual
_USUAL = 3
_SHOWN = 5  # weights that an error names

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What tuning found.

    Attributes:
        quantized: the weights.
        steps: of each; ``quantize_step`` makes the same codes of them again.
        errors: relative error of each, about its mean.
        cosine: mean over the outputs and samples.
        probes: how many times one weight was rounded and run on a few samples.
        evaluations: how many times all were, on all samples.
    """

    quantized: Mapping[str, QuantizedWeight]
    steps: Mapping[str, float]
    errors: Mapping[str, float]
    cosine: float
    probes: int
    evaluations: int


def auto_tune(
    trial: Trial,
    keep_sums: Mapping[str, Sequence[int]] | None = None,
    *,
    target: float = TARGET,
    progress: Progress | None = None,
) -> Tuned:
    """The steps that make the file small at this mean cosine of the outputs.

    Args:
        trial: the model, its weights and its samples.
        keep_sums: axes of the output channels, of the weights whose channels' sums are kept.
        target: the least mean cosine, between 0 and 1.
        progress: told what is done and what there is to do, both in samples to run.

    Raises:
        InputError: there is no weight to change, or 16 bits for each do not reach the target.
        NumericError: a weight is not finite.
    """
    if not 0.0 < target < 1.0:
        raise InputError(f"the cosine to reach has to be between 0 and 1, found {target:g}")
    if not trial.weights:
        raise InputError(
            "auto_tune finds no weight to change: all are in bodies of If, Loop or Scan",
            hint="set init_scale instead",
        )
    session = _Session(trial, keep_sums or {}, progress)
    effects = {name: _probe(session, name) for name in trial.weights}
    probes = session.count
    steps, cosine = _search(session, effects, target)
    quantized = session.quantize(steps)
    session.end()
    return Tuned(
        quantized=quantized,
        steps=steps,
        errors={
            name: relative_error(array, quantized[name].dequantize())
            for name, array in trial.weights.items()
        },
        cosine=cosine,
        probes=probes,
        evaluations=session.count - probes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Effect:
    """What rounding a weight does to the outputs.

    Attributes:
        gain: their relative noise by the square of the step; 0 where none was seen, infinite where
            they were not finite.
        finest: the least step, that of 16 bits.
        coarsest: the largest step to use.
    """

    gain: float
    finest: float
    coarsest: float

    def step(self, level: float, size: int) -> float:
        """The best one for a weight of this size, ``level`` being the logarithm of l."""
        wanted = math.exp(level) * math.sqrt(size / self.gain) if self.gain else math.inf
        return max(min(wanted, self.coarsest), self.finest)


def _probe(session: _Session, name: str) -> _Effect:
    """Round one weight and look at the outputs; more finely where that destroys them."""
    weight = session.trial.weights[name]
    step, finest = step_for(weight, _PROBE_ERROR), finest_step(weight)
    noise = math.inf
    for _ in range(_RETRIES):
        noise = session.score({name: step}, _PROBE_SAMPLES)[1]
        if noise <= _PROBE_NOISE or step <= finest:
            break
        step /= _FINER
    # where no effect was seen, nothing speaks for going beyond what was tried
    coarsest = step_for(weight, _COARSEST) if noise else step
    gain = noise / max(step, finest) ** 2
    return _Effect(gain=gain, finest=finest, coarsest=max(coarsest, finest))


def _search(
    session: _Session, effects: Mapping[str, _Effect], target: float
) -> tuple[dict[str, float], float]:
    """The steps whose cosine is just above the target, and that cosine.

    1 - cosine is half the noise and grows with the square of l, as long as it is small: that gives
    the start, and what to try next until there is one l on either side; then regula falsi.
    """
    sizes = {name: array.size for name, array in session.trial.weights.items()}
    aim = (1.0 - target) * (1.0 - _TOLERANCE / 2)
    level = 0.5 * math.log(2.0 * aim / max(1, sum(sizes.values())))
    good: tuple[float, float, dict[str, float], float] | None = None
    bad: tuple[float, float, dict[str, float], float] | None = None
    for _ in range(_EVALUATIONS):
        steps = {name: one.step(level, sizes[name]) for name, one in effects.items()}
        if any(end is not None and steps == end[2] for end in (good, bad)):
            break  # all are as coarse, or as fine, as they may be
        cosine = session.score(steps)[0]
        lost = max(1.0 - cosine, 1e-3 * aim)
        excess = math.log(lost / aim)
        if cosine >= target:
            good = (level, excess, steps, cosine)
            if lost >= (1.0 - target) * (1.0 - _TOLERANCE):
                break
        else:
            bad = (level, excess, steps, cosine)
        if good and bad:
            share = -good[1] / (bad[1] - good[1])
            level = good[0] + (bad[0] - good[0]) * min(max(share, 0.1), 0.9)
        else:
            level -= excess / 2
    if good is None:
        raise _missed(effects, bad, target)
    return good[2], good[3]


def _missed(
    effects: Mapping[str, _Effect],
    bad: tuple[float, float, dict[str, float], float] | None,
    target: float,
) -> InputError:
    if bad is None:
        raise AssertionError("nothing was tried")
    _, _, steps, cosine = bad
    worst = sorted(effects, key=lambda name: -effects[name].gain * steps[name] ** 2)[:_SHOWN]
    return InputError(
        problems=[
            Problem(
                message=f"auto_tune cannot reach a mean cosine of {target:g}: the finest steps "
                f"that were tried give {cosine:.4f}. The weights that matter most follow",
                hint="leave their nodes float with skip_quant_node, or use bit_num=16",
            ),
            *(
                Problem(
                    message=f"makes an output noise of {effects[name].gain * steps[name] ** 2:.2g} "
                    f"of the output's power at a step of {steps[name]:.3g}",
                    location=Location(tensor=name),
                )
                for name in worst
            ),
        ]
    )


class _Session:
    """Quantizes what has changed, tries it, and counts."""

    def __init__(
        self, trial: Trial, keep_sums: Mapping[str, Sequence[int]], progress: Progress | None
    ) -> None:
        self.trial, self.count = trial, 0
        self._keep_sums, self._progress = keep_sums, progress
        self._known: dict[str, tuple[float, QuantizedWeight]] = {}
        few = min(_PROBE_SAMPLES, trial.samples)
        self._start = trial.runs
        self._total = len(trial.weights) * few + _USUAL * trial.samples

    def quantize(self, steps: Mapping[str, float]) -> dict[str, QuantizedWeight]:
        """Weights at these steps; those of which the step is the same as last time are reused."""
        for name, step in steps.items():
            if name not in self._known or self._known[name][0] != step:
                axes = self._keep_sums.get(name, ())
                self._known[name] = (step, quantize_step(self.trial.weights[name], step, axes))
        return {name: self._known[name][1] for name in steps}

    def score(self, steps: Mapping[str, float], samples: int | None = None) -> tuple[float, float]:
        """Cosine and noise of the outputs with these weights at these steps."""
        changed = {name: one.dequantize() for name, one in self.quantize(steps).items()}
        score = self.trial.score(changed, samples)
        self.count += 1
        if self._progress is not None:
            done = self.trial.runs - self._start
            self._progress(done, max(self._total, done + self.trial.samples))
        return score.cosine, score.noise

    def end(self) -> None:
        """All is done, whether or not it took as long as usual."""
        if self._progress is not None:
            done = self.trial.runs - self._start
            self._progress(done, done)
