"""Bias correction as a stage of a job: which samples it uses, and what the report says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ptq_core.arithmetic import Correction, QParams
from ptq_core.correction import BiasCorrection, correct_bias
from ptq_core.emission import emit as emit_model
from ptq_core.graph.model import copy_of
from ptq_core.jobs.job import Job, in_runs
from ptq_core.planning import Plan
from ptq_core.plugins import Registered
from ptq_core.samples import Sample
from ptq_core.types import Event, RunnerEntry

# Measured on MobileNets: beyond three dozen samples the result is as good, within its own noise.
_SAMPLES = 35
_HELD_BACK = 7  # every seventh
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
    parameters: Mapping[str, QParams],
    samples: Sequence[Sample],
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Mapping[str, Correction]:
    """Corrections of the layers, measured on samples of the calibration data."""
    held_back = samples[_HELD_BACK - 1 :: _HELD_BACK] or samples[-1:]
    measured = [one for one in samples if not any(one is other for other in held_back)] or samples
    size = max(1, sum(array.nbytes for array in samples[0].feeds.values()))
    rows = max(1, min(_ROWS, _RUN_BYTES // size))
    with job.stage("correct"):
        copy = replace(job.prepared, model=copy_of(job.prepared.model))
        found = correct_bias(
            job.prepared.model,
            emit_model(copy, plan, parameters, job.target.spec),
            plan,
            in_runs(job, measured, rows),
            list(in_runs(job, held_back, rows)),
            runner,
            runner_options,
            lambda done: job.listeners(
                Event(stage="correct", kind="advance", done=done, total=len(measured))
            ),
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
