"""Full quantization: read this file top to bottom and you have read the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq_core.arithmetic import Correction, QParams, range_parameters
from ptq_core.calibration import Emit
from ptq_core.calibration_table import CalibrationTable, read_table
from ptq_core.config import Config
from ptq_core.diagnosis import node_errors
from ptq_core.emission import emit as emit_model
from ptq_core.errors import InputError, Location
from ptq_core.estimates import TensorEstimate, clipping_warning, estimate
from ptq_core.graph.model import copy_of, runnable
from ptq_core.jobs.choices import asked_methods, find_judge, find_reader, find_runner
from ptq_core.jobs.corrected import measured_corrections
from ptq_core.jobs.deliver import deliver
from ptq_core.jobs.job import Job
from ptq_core.jobs.measured import Measured, measure, recall, stored_name
from ptq_core.jobs.report import Report, Settings
from ptq_core.jobs.stamp import stamp, versions
from ptq_core.jobs.start import check_output, prepare_job
from ptq_core.planning import Plan, narrowed
from ptq_core.plugins import PluginHost, Registered
from ptq_core.types import Range, RunnerEntry
from ptq_core.verification import Verification, check_model, verify


def full_quant(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    data: Iterable[Any] | None,
    settings: Settings,
    emit: Emit | None,
) -> Report:
    """Full quantization: prepare, plan, calibrate, then as :func:`_finish`."""
    check_output(model, output)
    reader = find_reader(config, host) if data is None else None
    asked = asked_methods(config, host)
    job = prepare_job(model, config, host, settings, emit, asked)
    job.reader = reader
    runner, runner_options = find_runner(job)
    measured = measure(job, data, asked, runner, runner_options)
    return _finish(job, output, measured, runner, runner_options)


def quant_from_table(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    calibration: Path | CalibrationTable,
    settings: Settings,
    emit: Emit | None,
) -> Report:
    """Full quantization with ranges that `ptq calibrate` has found: no sample is read."""
    check_output(model, output)
    if settings.min_cosine is not None:
        raise InputError(
            "min_cosine: a quality gate needs samples to compare on, a calibration table has none",
            hint="leave out the gate, or the table",
        )
    read = isinstance(calibration, Path)
    where = Location(file=str(calibration) if read else "the calibration table")
    table = read_table(calibration) if isinstance(calibration, Path) else calibration
    method = stored_name(table, config, host, where)
    job = prepare_job(model, config, host, settings, emit, [method])
    runner, runner_options = find_runner(job)
    measured = recall(job, table, where)
    return _finish(job, output, measured, runner, runner_options)


def _finish(
    job: Job,
    output: Path,
    measured: Measured,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Report:
    """Build the model from what is known of the activations, compare it, save it."""
    report, settings = job.report, job.settings
    ((method, plan),) = job.plans.items()
    report.samples = measured.calibration.samples
    report.ranges = narrowed(plan, measured.calibration.ranges[method])
    built = build(job, method, measured, runner, runner_options)
    report.estimates, report.verification = built.estimates, built.verification
    report.gate = settings.min_cosine
    if not report.passed:
        floats, probes = job.prepared.model, measured.probes[:2]
        judge = find_judge(job, runner)
        report.suspects = node_errors(floats, built.model, plan, probes, judge, runner_options)
    deliver(job, built.model, output)
    return report


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A quantized model, what went into it, and how good it is."""

    model: ir.Model
    corrections: Mapping[str, Correction]
    estimates: dict[str, TensorEstimate]
    verification: Verification


def build(
    job: Job,
    method: str,
    measured: Measured,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Built:
    """The quantized model that a method's ranges give: parameters, emit, verify."""
    plan, found = job.plans[method], measured.calibration
    ranges = found.ranges[method]
    parameters = tensor_parameters(plan, ranges)
    estimates = {
        name: one
        for name, values in found.values.items()
        if not plan.tensors[name].masks  # cut off on purpose
        and (one := estimate(values, parameters[name], plan.tensors[name].bounds)) is not None
    }
    _warn(job, method, ranges, estimates)

    def emitted(corrections: Mapping[str, Correction] | None = None) -> ir.Model:
        # the prepared model is used up by emission, and needed again
        copy = replace(job.prepared, model=copy_of(job.prepared.model))
        return emit_model(copy, plan, parameters, job.target.spec, corrections)

    corrections = measured.corrections
    if measured.kept:
        corrections = measured_corrections(
            job, plan, emitted, measured.kept, runner, runner_options
        )

    with job.stage("emit"):
        quantized = emitted(corrections)
        used = (*measured.plugins[method], *versions([runner.record]))
        stamp(quantized, job, used, found.data_sha256, found.samples)

    with job.stage("verify"), runnable(quantized) as after:
        check_model(after, job.report.model)
        floats = job.prepared.model
        with runnable(floats) if job.prepared.widened else nullcontext(job.report.model) as before:
            verification = verify(
                before,
                after,
                plan,
                measured.probes,
                find_judge(job, runner),
                runner_options,
                held_out=measured.held_out,
            )
    job.say_unexpected(verification.unexpected)
    return Built(
        model=quantized,
        corrections=corrections,
        estimates=estimates,
        verification=verification,
    )


def _warn(
    job: Job, method: str, ranges: Mapping[str, Range], estimates: Mapping[str, TensorEstimate]
) -> None:
    clips = clipping_warning(method, estimates)
    if clips is not None:
        job.report.warnings.append(clips)
    flat = [name for name, one in ranges.items() if one.low == one.high == 0.0]
    if flat:
        job.report.warnings.append(
            "always zero in the calibration data, quantized as if in [0, 1]: " + ", ".join(flat)
        )


def tensor_parameters(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, QParams]:
    """Scale and zero point of every tensor in the plan that is its own source."""
    parameters: dict[str, QParams] = {}
    ranges = narrowed(plan, ranges)
    for name, tensor in plan.tensors.items():
        if tensor.source != name:
            continue
        if tensor.fixed is not None:
            parameters[name] = QParams(
                scheme=tensor.scheme,
                scale=np.asarray(tensor.fixed.scale, np.float32),
                zero_point=np.asarray(tensor.fixed.zero_point, tensor.scheme.dtype),
            )
        else:
            parameters[name] = range_parameters(ranges[name], tensor.scheme, tensor.bounds)
    return parameters
