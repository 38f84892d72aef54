"""The first half of every job, which touches no data: checks, preparation, plan."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.errors import ConfigError, InputError, Location
from ptq_core.graph.model import check_writable, load_model
from ptq_core.graph.prepare import prepare
from ptq_core.jobs.choices import (
    find_target,
    named_at,
)
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
    model: Path, config: Config, host: PluginHost, settings: Settings, emit: Emit | None
) -> Job:
    """Load, prepare and plan; what was found goes into the report."""

    def listeners(event: Event) -> None:
        if emit is not None:
            emit(event)
        host.emit(event)

    full = config.full
    if full is None:
        raise ConfigError("FULL_QUANT needs a section [full_quant_param]")
    seconds: dict[str, float] = {}
    target, record = find_target(config, host)
    with named_at(config, "full_quant_param", "activation_quant_method"):
        method = host.calibrator(full.activation_quant_method).entry.name
    with timed("prepare", seconds, listeners):
        loaded = load_model(model)
        before = _file_bytes(model, loaded)
        prepared = prepare(loaded, target.spec.minimum_opset)
        inputs = model_inputs(
            prepared.model,
            shapes=settings.input_shapes,
            data_layout=(config.data.input_data_format if config.data else None)
            or settings.data_layout,
        )
    with timed("plan", seconds, listeners):
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
    return Job(
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


def check_output(model: Path, output: Path) -> None:
    """Raise InputError if the result cannot be written there, or would replace the model."""
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
