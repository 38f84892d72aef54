"""The recipes: read this file top to bottom and you have read the product.

``full_quant`` is the stages of full quantization in their order; ``plan_job`` stops before any
data is touched.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq_core import __version__
from ptq_core.arithmetic import QParams, range_parameters
from ptq_core.calibration import Calibration, Emit, Method, calibrate, fixed_batch
from ptq_core.config import Config, render_config, resolve_path, unused_options, validate_options
from ptq_core.diagnosis import NodeError, node_errors
from ptq_core.emission import emit as emit_model
from ptq_core.errors import ConfigError, DataError, InputError, Location, Problem
from ptq_core.graph.model import check_writable, load_model, runnable, save_model
from ptq_core.graph.prepare import prepare
from ptq_core.graph.prepared import Prepared
from ptq_core.planning import MAX_MIN, Plan, make_plan
from ptq_core.plugins import PluginHost, PluginRecord, Registered
from ptq_core.samples import (
    Sample,
    Samples,
    fixed_batches,
    model_inputs,
    samples_from_arrays,
    samples_from_files,
)
from ptq_core.targets import is_target_file, target_from_toml
from ptq_core.types import (
    Event,
    Layout,
    ModelInput,
    PreprocessorEntry,
    Range,
    RunnerEntry,
    TargetEntry,
)
from ptq_core.verification import Verification, check_model, verify

_VERIFIED_SAMPLES = 8
_PREFERRED_RUNNERS = ("onnxruntime", "reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run may be told besides its config.

    Attributes:
        min_cosine: smallest acceptable mean cosine similarity of any output, None for no gate.
        strict: fewer samples than asked for are an error.
        skip_bad: samples that cannot be used are left out and counted.
        input_shapes: shapes for inputs that the model leaves open.
        data_layout: layout of 4-D BIN data; None: the config's, else the model's own.
    """

    min_cosine: float | None = None
    strict: bool = False
    skip_bad: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    data_layout: Layout | None = None


@dataclass(kw_only=True)
class Report:
    """What a run did.

    Attributes:
        model: the float model's file.
        files: what was written, the model first; empty for a plan.
        bytes_before: size of the float model's files.
        bytes_after: size of what was written.
        target: the device.
        plan: every node with a decision.
        samples: how many samples were used in calibration.
        ranges: of every calibrated tensor.
        verification: how close the result is, None for a plan.
        suspects: where a quality gate was missed, the nodes that lose most.
        gate: the gate's cosine, None where there was none.
        seconds: wall time of every stage.
        notes: what the user should know.
        warnings: what the user should look at.
    """

    model: Path
    target: str
    plan: Plan
    files: list[Path] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    samples: int = 0
    ranges: dict[str, Range] = field(default_factory=dict)
    verification: Verification | None = None
    suspects: tuple[NodeError, ...] = ()
    gate: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the quality gate, if there is one, was met."""
        if self.gate is None or self.verification is None:
            return True
        cosine = self.verification.cosine
        return cosine is not None and cosine >= self.gate


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
    _check_output(model, output)
    reader = _reader(config, host) if data is None else None
    job = _prepare_job(model, config, host, settings, emit)
    job.reader = reader
    report, prepared, plan = job.report, job.prepared, job.report.plan
    samples = _samples(job, data)
    runner, runner_options = _runner(job)
    methods = _methods(job)
    _warn_unused(job)

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
            f"{len(samples.skipped)} samples skipped: " + "; ".join(samples.skipped[:3])
        )
    return report


def plan_job(
    model: Path, config: Config, host: PluginHost, settings: Settings | None = None
) -> Report:
    """What full quantization would do with every node; touches no data and writes nothing."""
    if config.common.quant_type != "FULL_QUANT":
        raise _not_available(config)
    return _prepare_job(model, config, host, settings or Settings(), None).report


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


# ------------------------------------------------------------------------------------ stages


@dataclass(kw_only=True)
class _Job:
    """What the stages of one run share."""

    config: Config
    host: PluginHost
    settings: Settings
    target: TargetEntry
    target_record: PluginRecord | None
    prepared: Prepared
    inputs: tuple[ModelInput, ...]
    report: Report
    reader: Registered[PreprocessorEntry] | None = None
    used: list[tuple[str, str]] = field(default_factory=list)
    listeners: Emit

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell the listeners."""
        with _timed(name, self.report.seconds, self.listeners):
            yield


@contextmanager
def _timed(name: str, seconds: dict[str, float], emit: Emit) -> Iterator[None]:
    start = time.perf_counter()
    emit(Event(stage=name, kind="start"))
    yield
    seconds[name] = time.perf_counter() - start
    emit(Event(stage=name, kind="end"))


def _prepare_job(
    model: Path, config: Config, host: PluginHost, settings: Settings, emit: Emit | None
) -> _Job:
    def listeners(event: Event) -> None:
        if emit is not None:
            emit(event)
        host.emit(event)

    full = config.full
    if full is None:
        raise ConfigError("FULL_QUANT needs a section [full_quant_param]")
    seconds: dict[str, float] = {}
    target, record = find_target(config, host)
    with _named_at(config, "full_quant_param", "activation_quant_method"):
        method = host.calibrator(full.activation_quant_method).entry.name
    with _timed("prepare", seconds, listeners):
        loaded = load_model(model)
        before = _file_bytes(model, loaded)
        prepared = prepare(loaded, target.spec.minimum_opset)
        inputs = model_inputs(
            prepared.model,
            shapes=settings.input_shapes,
            data_layout=(config.data.input_data_format if config.data else None)
            or settings.data_layout,
        )
    with _timed("plan", seconds, listeners):
        plan = make_plan(
            prepared,
            target.spec,
            method=method,
            per_channel=full.per_channel,
            skip=config.common.skip_quant_node,
            skip_location=config.locate("common_quant_param", "skip_quant_node"),
        )
    report = Report(
        model=model, target=target.name, plan=plan, bytes_before=before, seconds=seconds
    )
    report.notes += [*prepared.notes, *map(str, config.notes)]
    report.warnings += [*map(str, config.warnings), *plan.warnings]
    _say_not_built(config, report)
    return _Job(
        config=config,
        host=host,
        settings=settings,
        target=target,
        target_record=record,
        prepared=prepared,
        inputs=inputs,
        report=report,
        listeners=listeners,
    )


def find_target(config: Config, host: PluginHost) -> tuple[TargetEntry, PluginRecord | None]:
    """The device: an installed one, or the TOML file that ``target_device`` names."""
    if is_target_file(config.target):
        path, _ = resolve_path(config, config.target)
        return target_from_toml(path), None
    with _named_at(config, "full_quant_param", "target_device"):
        found = host.target(config.target)
    return found.entry, found.record


@contextmanager
def _named_at(config: Config, section: str, key: str) -> Iterator[None]:
    """Add to a failing look-up where the config names what was looked up."""
    try:
        yield
    except InputError as error:
        location = config.locate(section, key)
        if location.file is None:  # it comes from a command line or from Python
            raise
        raise InputError(
            problems=[replace(problem, location=location) for problem in error.problems]
        ) from None


def _say_not_built(config: Config, report: Report) -> None:
    full = config.full
    if full is not None and full.bias_correction:
        asked = "bias_correction" in full.model_fields_set
        text = "bias_correction is not available in this version; the job runs without it"
        (report.warnings if asked else report.notes).append(text)
    if config.common.debug_info_save_path:
        report.warnings.append(
            "debug_info_save_path: debug reports are not available in this version"
        )


def _check_output(model: Path, output: Path) -> None:
    check_writable(output)
    if output.exists() and model.exists() and output.samefile(model):
        raise InputError(
            "the output is the model itself, which would be lost",
            location=Location(file=str(output)),
            hint="choose another output with -o",
        )


def _file_bytes(model: Path, loaded: ir.Model) -> int:
    data = {
        Path(value.const_value.path)
        for value in loaded.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return model.stat().st_size + sum(path.stat().st_size for path in data)


def _reader(config: Config, host: PluginHost) -> Registered[PreprocessorEntry]:
    """What reads the config's samples; their folders exist. Asked before any work is done."""
    if config.data is None or config.data.input_type is None:
        raise ConfigError("there is no data: give [data_preprocess_param], --data or data=")
    location = config.locate("data_preprocess_param", "calibrate_path")
    missing = [
        Problem(
            message=f"calibrate_path: '{resolve_path(config, text)[0]}' does not exist",
            location=location,
        )
        for text in config.data.calibrate_path.values()
        if not resolve_path(config, text)[0].exists()
    ]
    if missing:
        raise DataError(problems=missing)
    with _named_at(config, "data_preprocess_param", "input_type"):
        return host.preprocessor(config.data.input_type)


def _samples(job: _Job, data: Iterable[Any] | None) -> Samples:
    config, reader = job.config, job.reader
    if reader is None or config.data is None:
        return samples_from_arrays(() if data is None else data, job.inputs)
    options, warnings = validate_options(
        reader.entry.options,
        "preprocessor",
        reader.entry.name,
        config,
        aliases=reader.entry.aliases,
    )
    job.used.append(("preprocessor", reader.entry.name))
    job.report.warnings += map(str, warnings)
    folders = {}
    for name, text in config.data.calibrate_path.items():
        folders[name], note = resolve_path(config, text)
        if note:
            job.report.notes.append(note)
    for item in job.inputs:
        if len(item.shape) == 4 and item.data_layout is not None:
            job.report.notes.append(
                f"input '{item.name}': the model takes {item.layout}, "
                f"{reader.entry.name} buffers are read as {item.data_layout}"
                if reader.entry.name == "BIN"
                else f"input '{item.name}': the model takes {item.layout}"
            )
    return samples_from_files(
        folders,
        config.data.calibrate_size,
        job.inputs,
        reader,
        options,
        strict=job.settings.strict,
        skip_bad=job.settings.skip_bad,
        location=config.locate("data_preprocess_param", "calibrate_path"),
    )


def _runner(job: _Job) -> tuple[Registered[RunnerEntry], Any]:
    """The runner that the config names, else the best that is installed."""
    config, host = job.config, job.host
    if config.runner is not None:
        runner = host.runner(config.runner)
    else:
        installed = {one.entry.name: one for one in host.entries("runner")}
        name = next((name for name in _PREFERRED_RUNNERS if name in installed), None)
        runner = host.runner(name or _PREFERRED_RUNNERS[0])
        if name != _PREFERRED_RUNNERS[0]:
            job.report.warnings.append(
                f"runner '{runner.entry.name}' is used, which is slow; "
                "pip install ptq-runner-onnxruntime"
            )
    options, _ = validate_options(
        runner.entry.options, "runner", runner.entry.name, config, aliases=runner.entry.aliases
    )
    job.used.append(("runner", runner.entry.name))
    return runner, options


def _methods(job: _Job) -> dict[str, Method]:
    """The calibrators that the plan names, with their options."""
    methods = {}
    names = {tensor.method for tensor in job.report.plan.watched().values()}
    for name in sorted(name for name in names if name is not None):
        full = job.config.full
        asked = full.activation_quant_method if full is not None else MAX_MIN
        entry = job.host.calibrator(asked if name != MAX_MIN else MAX_MIN)
        options, _ = validate_options(
            entry.entry.options,
            "calibrator",
            entry.entry.name,
            job.config,
            aliases=entry.entry.aliases,
        )
        job.used.append(("calibrator", entry.entry.name))
        methods[name] = Method(entry=entry, options=options)
    return methods


def _warn_unused(job: _Job) -> None:
    job.report.warnings += map(str, unused_options(job.config, job.used))


def _calibrate(
    job: _Job,
    samples: Samples,
    methods: Mapping[str, Method],
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> tuple[Calibration, list[Sample]]:
    """The ranges, and the samples to verify with: unseen ones where there are any."""
    kept: list[Sample] = []
    original = samples.open

    def remembering() -> Iterator[Sample]:
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
    job: _Job,
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
