"""The first half of every job, which touches no data: checks, preparation, plan."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.errors import ConfigError, InputError, Location
from ptq_core.graph.model import check_writable, load_model
from ptq_core.graph.prepare import prepare
from ptq_core.jobs.choices import find_target
from ptq_core.jobs.job import Job, timed
from ptq_core.jobs.report import Report, Settings
from ptq_core.planning import make_plan
from ptq_core.plugins import PluginHost
from ptq_core.samples import (
    model_inputs,
)
from ptq_core.types import (
    Event,
)


def prepare_job(
    model: Path,
    config: Config,
    host: PluginHost,
    settings: Settings,
    emit: Emit | None,
    methods: Collection[str],
) -> Job:
    """Load, prepare and plan, for each of the methods; what was found goes into the report."""

    def listeners(event: Event) -> None:
        if emit is not None:
            emit(event)
        host.emit(event)

    full = config.full
    if full is None:
        raise ConfigError("FULL_QUANT needs a section [full_quant_param]")
    seconds: dict[str, float] = {}
    target, record = find_target(config, host)
    with timed("prepare", seconds, listeners):
        loaded = load_model(model)
        files = _files(model, loaded)
        prepared = prepare(loaded, target.spec.minimum_opset)
        inputs = model_inputs(
            prepared.model,
            shapes=settings.input_shapes,
            data_layout=(config.data.input_data_format if config.data else None)
            or settings.data_layout,
        )
    with timed("plan", seconds, listeners):
        plans = {
            method: make_plan(
                prepared,
                target.spec,
                method=method,
                per_channel=full.per_channel,
                skip=config.common.skip_quant_node,
                skip_location=config.locate("common_quant_param", "skip_quant_node"),
            )
            for method in methods
        }
    plan = next(iter(plans.values()))
    report = Report(
        model=model,
        target=target.name,
        plan=plan,
        bytes_before=sum(path.stat().st_size for path in files),
        seconds=seconds,
    )
    report.notes += [*prepared.notes, *map(str, config.notes)]
    report.warnings += [*map(str, config.warnings), *plan.warnings]
    _say_not_built(config, report)
    return Job(
        config=config,
        host=host,
        settings=settings,
        target=target,
        target_record=record,
        model_files=files,
        plans=plans,
        prepared=prepared,
        inputs=inputs,
        report=report,
        listeners=listeners,
    )


def _say_not_built(config: Config, report: Report) -> None:
    if config.common.debug_info_save_path:
        report.warnings.append(
            "debug_info_save_path: debug reports are not available in this version"
        )


def check_output(model: Path, output: Path) -> None:
    """Raise InputError if the result cannot be written there, or would replace the model."""
    check_writable(output)
    if output.exists() and model.exists() and output.samefile(model):
        raise InputError(
            "the output is the model itself, which would be lost",
            location=Location(file=str(output)),
            hint="choose another output with -o",
        )


def _files(model: Path, loaded: ir.Model) -> tuple[Path, ...]:
    """The model's own file, then those with its external data."""
    data = {
        Path(value.const_value.path)
        for value in loaded.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return model, *sorted(data)
