"""What is known of the activations: measured on samples, or recalled from a calibration table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from ptq_core.arithmetic import Correction
from ptq_core.calibration import Calibration, Watch, calibrate, open_session
from ptq_core.calibration_table import CalibrationTable, content_sha256
from ptq_core.config import Config
from ptq_core.equalization import rescale
from ptq_core.errors import InputError, Location, Problem
from ptq_core.jobs.choices import find_methods, find_samples
from ptq_core.jobs.corrected import is_kept
from ptq_core.jobs.equalized import equalized
from ptq_core.jobs.job import Job, whole_runs
from ptq_core.jobs.smoothed import smooth_as_stored, smoothed
from ptq_core.jobs.stamp import versions
from ptq_core.planning import MAX_MIN, Plan
from ptq_core.plugins import PluginHost, Registered
from ptq_core.samples import Sample, Samples
from ptq_core.types import CalibratorEntry, RunnerEntry

VERIFIED_SAMPLES = 8
_NAMED = 5  # missing tensors in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What is known of the activations, and samples to compare models on.

    Attributes:
        calibration: the ranges.
        plugins: for each method who had a part in it, as ``distribution==version``.
        probes: samples for the comparison; none where a table was recalled.
        held_out: calibration did not see those.
        between: names of the first and the last sample that calibration saw.
        kept: some of those that calibration saw, for bias correction.
        corrections: of layers, by their keys; only what a table has.
    """

    calibration: Calibration
    plugins: Mapping[str, tuple[str, ...]]
    probes: tuple[Sample, ...] = ()
    held_out: bool = False
    between: tuple[str, str] | None = None
    kept: tuple[Sample, ...] = ()
    corrections: Mapping[str, Correction] = field(default_factory=dict)


def measure(
    job: Job,
    data: Iterable[Any] | None,
    asked: Mapping[str, Registered[CalibratorEntry]],
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Measured:
    """Calibrate on the samples, and keep some to verify with: unseen ones where there are any."""
    samples = find_samples(job, data)
    full = job.config.full
    if full is not None and not full.per_channel:
        samples = equalized(job, samples, runner, runner_options)
    if full is not None and full.smoothing:
        samples = smoothed(job, samples, runner, runner_options)
    methods = find_methods(job, asked)
    job.say_unused_options()
    names: list[str] = []
    probes: list[Sample] = []
    kept: list[Sample] = []
    correct = full is not None and full.bias_correction

    def remembering() -> Iterator[Sample]:
        names.clear()  # of an earlier pass
        probes.clear()
        kept.clear()
        for index, sample in enumerate(samples.open()):
            names[1:] = [sample.name]
            if samples.held_out is None and len(probes) < VERIFIED_SAMPLES:
                probes.append(sample)
            if correct and is_kept(sample, index, samples.count):
                kept.append(sample)
            yield sample

    with job.stage("load"):
        watched = {method: plan.watched() for method, plan in job.plans.items()}
        watch = Watch(watched, methods)
        model = job.prepared.model
        session = open_session(watch, model, job.inputs, runner, runner_options)
    with job.stage("calibrate"):
        found = calibrate(watch, session, replace(samples, open=remembering), job.listeners)
        del session  # a copy of the model, and large buffers
        if samples.held_out is not None:
            probes += islice(samples.held_out(), VERIFIED_SAMPLES)
    tell_of(samples, job.report.notes, job.report.warnings)
    job.report.notes += found.notes
    reader = [] if job.reader is None else [job.reader.record]
    used = {
        method: [methods[one.method].entry.record for one in plan.watched().values() if one.method]
        for method, plan in job.plans.items()
    }
    return Measured(
        calibration=found,
        plugins={method: versions([*reader, *records]) for method, records in used.items()},
        probes=tuple(whole_runs(job.inputs, probes)),
        held_out=samples.held_out is not None,
        between=(names[0], names[-1]),
        kept=tuple(kept),
    )


def tell_of(samples: Samples, notes: list[str], warnings: list[str]) -> None:
    """Put into a report what there is to say of samples, once all of them were read."""
    notes += samples.notes
    warnings += samples.warnings
    if samples.skipped:
        warnings.append(
            f"samples skipped: {len(samples.skipped)}; " + "; ".join(samples.skipped[:3])
        )


# ------------------------------------------------------------------------------- from a table


def recall(job: Job, table: CalibrationTable, where: Location) -> Measured:
    """What the table says about the job's one method.

    Raises:
        InputError: it is another model's table, or it lacks tensors that the plan needs.
    """
    found = content_sha256(job.model_files)
    if found != table.model.sha256:
        raise InputError(
            f"the table was made for another model ('{table.model.file}', SHA-256 "
            f"{table.model.sha256[:12]}…), this one has {found[:12]}…",
            location=where,
            hint="calibrate this model with `ptq calibrate`",
        )
    full = job.config.full
    per_channel = full is None or full.per_channel
    if per_channel != table.plan.per_channel:
        raise InputError(
            f"the table was made for {_described(table)}, and per_channel = "
            f"{str(per_channel).lower()} here: its ranges are those of an equalized model, or of "
            "one that is not",
            location=where,
            hint="calibrate again with the same per_channel",
        )
    if table.equalization:
        rescale(job.prepared, {layer: np.array(one) for layer, one in table.equalization.items()})
    if table.smoothing:
        divisors = {name: np.array(one) for name, one in table.smoothing.items()}
        smooth_as_stored(job, divisors, where)
    ((method, plan),) = job.plans.items()
    stored = table.methods[method]
    ranges = stored.observed()
    missing = [name for name in plan.watched() if name not in ranges]
    if missing:
        raise _missing(missing, job, table, where)
    asked = full is not None and full.bias_correction
    corrections = stored.layer_corrections() if asked else {}
    if corrections and plan_sha256(plan) != table.plan.sha256:
        job.report.warnings.append(
            f"{where}: the stored corrections of biases are left out, for they were made for "
            f"another plan: {_described(table)}"
        )
        corrections = {}
    text = (
        f"the ranges of {method} are those of {where}, from {table.data.samples} samples; no "
        "sample was read, and the result was not compared with the float model"
    )
    if job.config.data is not None:
        text += "; the config's data and calibrator options have no effect"
    job.report.notes.append(text)
    # what the table was made with has had its effect
    job.used += [
        key for key in job.config.plugin_options if key[0] in ("calibrator", "preprocessor")
    ]
    job.say_unused_options()
    return Measured(
        calibration=Calibration(
            ranges={method: {name: ranges[name] for name in plan.watched()}},
            samples=table.data.samples,
            data_sha256=table.data.sha256,
        ),
        plugins={method: stored.plugins},
        corrections=corrections,
    )


def stored_name(table: CalibrationTable, config: Config, host: PluginHost, where: Location) -> str:
    """The table's name of the config's method, whose plugin need not be installed.

    Raises:
        InputError: the table has no such method.
    """
    asked = config.full.activation_quant_method if config.full is not None else MAX_MIN
    names = {asked.rpartition(":")[2].strip().casefold()}
    with suppress(InputError):
        entry = host.calibrator(asked).entry
        names |= {name.casefold() for name in (entry.name, *entry.aliases)}
    found = next((name for name in table.methods if name.casefold() in names), None)
    if found is None:
        raise InputError(
            f"the table has no ranges of {asked}",
            location=where,
            hint=f"it has those of {', '.join(table.methods)}",
        )
    return found


def plan_sha256(plan: Plan) -> str:
    """Hash of what the plan decides about weights and tensors, whatever the method."""
    tensors = [replace(tensor, method=None) for tensor in plan.tensors.values()]
    return hashlib.sha256(repr((plan.weights, tensors)).encode()).hexdigest()


def _missing(missing: list[str], job: Job, table: CalibrationTable, where: Location) -> InputError:
    shown = ", ".join(missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return InputError(
        problems=[
            Problem(
                message=f"the table has no range for {len(missing)} tensors that the plan for "
                f"{job.target.name} quantizes: {shown}{more}; it was made for "
                f"{_described(table)}",
                location=where,
                hint="calibrate again with the same target and skipped nodes as here",
            )
        ]
    )


def _described(table: CalibrationTable) -> str:
    plan = table.plan
    skip = f", skipping {', '.join(plan.skip)}" if plan.skip else ""
    return f"{plan.target}, {'per channel' if plan.per_channel else 'per layer'}{skip}"
