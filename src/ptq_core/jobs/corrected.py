"""Bias correction as a stage of a job: which samples it uses, and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ptq_core.arithmetic import Correction
from ptq_core.correction import BiasCorrection, correct_bias
from ptq_core.jobs.job import Job, in_runs
from ptq_core.planning import Plan
from ptq_core.plugins import Registered
from ptq_core.samples import Sample
from ptq_core.types import Event, RunnerEntry

# Measured on MobileNets: beyond three dozen samples the result is as good, within its own noise.
_SAMPLES = 35
_HELD_BACK = 7  # one of so many
_BYTES = 128 << 20  # of the samples that are kept for it
_ROWS = 4  # of a run: more need more memory, and are no faster
_RUN_BYTES = 8 << 20  # of its inputs
_NAMED = 5


def is_kept(sample: Sample, index: int, count: int | None) -> bool:
    """Whether to keep this sample of so many: a few, spread evenly over all.

    Of an unknown number the first ones.
    """
    size = max(1, sum(array.nbytes for array in sample.feeds.values()))
    wanted = max(2, min(_SAMPLES, _BYTES // size))
    if count is None or count <= wanted:
        return index < wanted
    return (index + 1) * wanted // count > index * wanted // count


def measured_corrections(
    job: Job,
    plan: Plan,
    quantized: Callable[[], ir.Model],
    samples: Sequence[Sample],
    runner: Registered[RunnerEntry],
    runner_options: Any,
    margin: float = 0.0,
    every: int = _HELD_BACK,
) -> Mapping[str, Correction]:
    """Corrections of the layers in ``plan.weights``, measured on samples of the calibration data.

    Args:
        job: with the float model.
        plan: with the layers.
        quantized: makes the quantized model, without corrections.
        samples: a few dozen.
        runner: executes both.
        runner_options: its options.
        every: one of so many samples is held back.
        margin: dB by which the outputs have to come closer for the corrections to be used.
    """
    held_back = samples[every - 1 :: every] or samples[-1:]
    measured = [one for one in samples if not any(one is other for other in held_back)] or samples
    size = max(1, sum(array.nbytes for array in samples[0].feeds.values()))
    rows = max(1, min(_ROWS, _RUN_BYTES // size))
    with job.stage("correct"):
        found = correct_bias(
            job.prepared.model,
            quantized(),
            plan,
            in_runs(job, measured, rows),
            list(in_runs(job, held_back, rows)),
            runner,
            runner_options,
            lambda done: job.listeners(
                Event(stage="correct", kind="advance", done=done, total=len(measured))
            ),
            margin,
        )
    job.report.notes.append(_told(found, len(measured), len(held_back)))
    return found.layers


def _told(found: BiasCorrection, measured: int, held_back: int) -> str:
    figures = ""
    if found.before is not None and found.after is not None:
        figures = f": on {held_back} others the outputs go from {found.before:.1f} to "
        figures += f"{found.after:.1f} dB"
    if not found.layers:
        return f"bias correction is left out, for it does not help{figures}"
    text = f"biases of {len(found.layers)} layers corrected from {measured} samples{figures}"
    if found.undone:
        named = ", ".join(found.undone[:_NAMED])
        more = f" and {len(found.undone) - _NAMED} more" if len(found.undone) > _NAMED else ""
        text += f"; not those of {named}{more}, which it does not help"
    return text
