"""Full quantization: read this file top to bottom and you have read the product."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq_core import __version__
from ptq_core.arithmetic import QParams, range_parameters
from ptq_core.calibration import Calibration, Emit, Method, calibrate, fixed_batch
from ptq_core.config import Config, render_config, unused_options
from ptq_core.diagnosis import node_errors
from ptq_core.emission import emit as emit_model
from ptq_core.errors import ConfigError
from ptq_core.graph.model import runnable, save_model
from ptq_core.jobs.choices import (
    find_methods,
    find_reader,
    find_runner,
    find_samples,
)
from ptq_core.jobs.job import Job
from ptq_core.jobs.report import Report, Settings
from ptq_core.jobs.start import check_output, prepare_job
from ptq_core.planning import Plan
from ptq_core.plugins import PluginHost, Registered
from ptq_core.samples import (
    Sample,
    Samples,
    fixed_batches,
)
from ptq_core.types import (
    Range,
    RunnerEntry,
)
from ptq_core.verification import check_model, verify

_VERIFIED_SAMPLES = 8


def run(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    *,
    data: Iterable[Any] | None = None,
    settings: Settings | None = None,
    emit: Emit | None = None,
) -> Report:
    """Do the job that the config asks for.

    Args:
        model: the float model.
        output: where the result goes.
        config: what to do.
        host: the plugins.
        data: samples, instead of the config's.
        settings: the rest.
        emit: told about progress, besides the plugins that observe.

    Raises:
        InputError: the model, the data or the config cannot be used; nothing was written.
        PluginError: a plugin failed; nothing was written.
    """
    if config.common.quant_type != "FULL_QUANT":
        raise _not_available(config)
    return full_quant(model, output, config, host, data, settings or Settings(), emit)


def _not_available(config: Config) -> ConfigError:
    return ConfigError(
        f"quant_type = {config.common.quant_type} is not available in version {__version__}",
        location=config.locate("common_quant_param", "quant_type"),
        hint="this version does FULL_QUANT",
    )


def full_quant(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    data: Iterable[Any] | None,
    settings: Settings,
    emit: Emit | None,
) -> Report:
    """Full quantization: prepare, plan, calibrate, emit, verify, save."""
    check_output(model, output)
    reader = find_reader(config, host) if data is None else None
    job = prepare_job(model, config, host, settings, emit)
    job.reader = reader
    report, prepared, plan = job.report, job.prepared, job.report.plan
    samples = find_samples(job, data)
    runner, runner_options = find_runner(job)
    methods = find_methods(job)
    report.warnings += map(str, unused_options(config, job.used))

    with job.stage("calibrate"):
        found, probes = _calibrate(job, samples, methods, runner, runner_options)
    report.samples, report.ranges = found.samples, found.ranges
    parameters = tensor_parameters(plan, found.ranges)
    _note_degenerate(plan, found.ranges, report)

    with job.stage("emit"):
        floats = prepared.model.clone()
        quantized = emit_model(prepared, plan, parameters, job.target.spec)
        _stamp(quantized, job, found, [*methods.values()], runner)

    with job.stage("verify"), runnable(quantized) as after:
        check_model(after)
        with runnable(floats) if prepared.widened else nullcontext(model) as before:
            report.verification = verify(
                before,
                after,
                plan,
                probes,
                runner,
                runner_options,
                held_out=samples.held_out is not None,
            )
    report.gate = settings.min_cosine
    if not report.passed:
        report.suspects = node_errors(floats, quantized, plan, probes[:2], runner, runner_options)
    if report.verification.unexpected:
        report.warnings.append(
            "planned in integers, but run in float by the runtime: "
            + ", ".join(report.verification.unexpected)
        )

    with job.stage("save"):
        report.files = save_model(quantized, output)
    report.bytes_after = sum(path.stat().st_size for path in report.files)
    report.notes += samples.notes
    report.warnings += samples.warnings
    if samples.skipped:
        report.warnings.append(
            f"samples skipped: {len(samples.skipped)}; " + "; ".join(samples.skipped[:3])
        )
    return report


def plan_job(
    model: Path, config: Config, host: PluginHost, settings: Settings | None = None
) -> Report:
    """What full quantization would do with every node; touches no data and writes nothing."""
    if config.common.quant_type != "FULL_QUANT":
        raise _not_available(config)
    return prepare_job(model, config, host, settings or Settings(), None).report


def tensor_parameters(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, QParams]:
    """Scale and zero point of every tensor in the plan that is its own source."""
    parameters: dict[str, QParams] = {}
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


def _calibrate(
    job: Job,
    samples: Samples,
    methods: Mapping[str, Method],
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> tuple[Calibration, list[Sample]]:
    """The ranges, and the samples to verify with: unseen ones where there are any."""
    kept: list[Sample] = []
    original = samples.open

    def remembering() -> Iterator[Sample]:
        kept.clear()  # of an earlier pass
        for sample in original():
            if samples.held_out is None and len(kept) < _VERIFIED_SAMPLES:
                kept.append(sample)
            yield sample

    found = calibrate(
        job.prepared.model,
        job.report.plan.watched(),
        replace(samples, open=remembering),
        job.inputs,
        methods,
        runner,
        runner_options,
        job.listeners,
    )
    if samples.held_out is not None:
        for sample in samples.held_out():
            kept.append(sample)
            if len(kept) == _VERIFIED_SAMPLES:
                break
    fixed = fixed_batch(job.inputs)
    if fixed is not None:
        kept = [
            Sample(name=", ".join(dict.fromkeys(batch.names)), feeds=batch.feeds)
            for batch in fixed_batches(iter(kept), fixed)
        ]
    return found, kept


def _note_degenerate(plan: Plan, ranges: Mapping[str, Range], report: Report) -> None:
    flat = [name for name in plan.watched() if ranges[name].low == ranges[name].high == 0.0]
    if flat:
        report.warnings.append(
            "always zero in the calibration data, quantized as if in [0, 1]: " + ", ".join(flat)
        )


def _stamp(
    model: ir.Model,
    job: Job,
    found: Calibration,
    methods: Iterable[Method],
    runner: Registered[RunnerEntry],
) -> None:
    """Say in the file what made it; nothing that differs between runs on the same inputs."""
    records = {method.entry.record for method in methods} | {runner.record}
    if job.reader is not None:
        records.add(job.reader.record)
    if job.target_record is not None:
        records.add(job.target_record)
    plugins = sorted({f"{record.name}=={record.version}" for record in records})
    # what executes the model, and with how many threads, is no part of what is computed
    options = job.config.plugin_options.items()
    computed = {key: value for key, value in options if key[0] != "runner"}
    config = render_config(replace(job.config, runner=None, plugin_options=computed), "toml")
    model.producer_name, model.producer_version = "ptq", __version__
    model.metadata_props.update(
        {
            "ptq.version": __version__,
            "ptq.job": job.config.common.quant_type,
            "ptq.target": job.target.name,
            "ptq.plugins": ", ".join(plugins),
            "ptq.config_sha256": hashlib.sha256(config.encode()).hexdigest(),
            "ptq.data_sha256": found.data_sha256,
            "ptq.samples": str(found.samples),
        }
    )
