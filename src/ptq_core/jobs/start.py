"""The first half of every job, which touches no data: checks, preparation, plan."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import onnx_ir as ir

from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.errors import ConfigError, InputError, Location
from ptq_core.graph.model import check_writable, load_model
from ptq_core.graph.prepare import prepare
from ptq_core.graph.prepared import Prepared
from ptq_core.graph.shapes import fix_shapes
from ptq_core.jobs.choices import Device, find_target
from ptq_core.jobs.deployment import check_deployment
from ptq_core.jobs.job import Job, timed
from ptq_core.jobs.report import Report, Settings
from ptq_core.planning import (
    Plan,
    Thresholds,
    make_dynamic_plan,
    make_plan,
    make_weight_plan,
)
from ptq_core.plugins import PluginHost
from ptq_core.samples import model_inputs
from ptq_core.types import Event

_FOLDED_OPSET = 13  # what decoders are written for
_DEQUANTIZE_OPSET = 21  # DequantizeLinear of int16, and of blocks
_BYTE = 8


def prepare_job(
    model: Path,
    config: Config,
    host: PluginHost,
    settings: Settings,
    emit: Emit | None,
    methods: Collection[str],
) -> Job:
    """Load, prepare and plan, for each of the methods; what was found goes into the report."""
    full = config.full
    if full is None:
        raise ConfigError("FULL_QUANT needs a section [full_quant_param]")

    def plans(prepared: Prepared, device: Device) -> dict[str, Plan]:
        return {
            method: make_plan(
                prepared,
                device.entry.spec,
                method=method,
                per_channel=full.per_channel,
                keep_float=device.entry.keep_float,
                skip=config.common.skip_quant_node,
                skip_location=config.locate("common_quant_param", "skip_quant_node"),
            )
            for method in methods
        }

    return _job(model, config, host, settings, emit, plans)


def prepare_weight_job(
    model: Path, config: Config, host: PluginHost, settings: Settings, emit: Emit | None
) -> Job:
    """The same for weight quantization, whose one plan has no method."""
    weight, bits = config.weight, config.common.bit_num
    on_the_fly = weight.dequant_strategy is not None
    if on_the_fly:
        target = find_target(config, host).entry
        if target.spec.on_the_fly == "none":
            raise ConfigError(
                f"dequant_strategy = ON_THE_FLY: {target.name} computes nothing on weights while a "
                "model runs",
                location=config.locate("weight_quant_param", "dequant_strategy"),
                hint="leave it out: weights are decoded when the model is loaded",
            )
    opset = _FOLDED_OPSET
    if on_the_fly and (bits > _BYTE or weight.group_size):
        opset = _DEQUANTIZE_OPSET

    def plans(prepared: Prepared, device: Device) -> dict[str, Plan]:
        only = device.entry.spec.on_the_fly_operators if on_the_fly else ()
        thresholds = Thresholds(
            size=config.common.min_quant_weight_size,
            channels=config.common.min_quant_weight_channel,
            bits=bits,
            per_channel=weight.per_channel or bits == 0,
            group_size=0
            if not bits or (on_the_fly and not weight.group_size)
            else weight.group_size,
            balanced=bits > 0 and not on_the_fly,
            operators=only,
        )
        plan = make_weight_plan(
            prepared,
            thresholds,
            skip=config.common.skip_quant_node,
            skip_location=config.locate("common_quant_param", "skip_quant_node"),
        )
        return {"": plan}

    return _job(model, config, host, settings, emit, plans, opset)


def prepare_dynamic_job(
    model: Path, config: Config, host: PluginHost, settings: Settings, emit: Emit | None
) -> Job:
    """The same for dynamic quantization, whose one plan has no method either.

    Raises:
        ConfigError: the target has no dynamic quantization.
    """
    dynamic = config.dynamic

    def plans(prepared: Prepared, device: Device) -> dict[str, Plan]:
        plan = make_dynamic_plan(
            prepared,
            device.entry.spec,
            dynamic.quant_strategy,
            attention=dynamic.attention,
            convolution=dynamic.convolution,
            skip=config.common.skip_quant_node,
            skip_location=config.locate("common_quant_param", "skip_quant_node"),
        )
        return {"": plan}

    if settings.fp16:
        raise ConfigError(
            "fp16: dynamic quantization does not support float16", hint="leave out --fp16"
        )
    target = find_target(config, host).entry
    if not target.spec.dynamic_operators:
        raise ConfigError(
            f"the target {target.name} has no dynamic quantization: it computes in integers only "
            "with ranges that are known beforehand",
            location=config.locate("common_quant_param", "quant_type"),
            hint="take quant_type = FULL_QUANT for it, or the target CPU",
        )
    return _job(model, config, host, settings, emit, plans, _FOLDED_OPSET)


def _job(
    model: Path,
    config: Config,
    host: PluginHost,
    settings: Settings,
    emit: Emit | None,
    plans: Callable[[Prepared, Device], dict[str, Plan]],
    opset: int | None = None,
) -> Job:
    """Load, prepare for integers (or, with an opset, only for smaller weights), and plan."""

    def listeners(event: Event) -> None:
        if emit is not None:
            emit(event)
        host.emit(event)

    seconds: dict[str, float] = {}
    device = find_target(config, host)
    target = device.entry
    with timed("prepare", seconds, listeners):
        loaded = load_model(model)
        files = _files(model, loaded)
        if target.spec.static_shapes:
            fix_shapes(loaded, settings.input_shapes, target.name)
        prepared = prepare(
            loaded,
            opset or target.spec.minimum_opset,
            integers=opset is None,
            merge=target.spec.merge if opset is None else (),
        )
        check_deployment(config, prepared.model)
        inputs = model_inputs(
            prepared.model,
            shapes=settings.input_shapes,
            data_layout=(config.data.input_data_format if config.data else None)
            or settings.data_layout,
        )
    with timed("plan", seconds, listeners):
        made = plans(prepared, device)
    plan = next(iter(made.values()))
    report = Report(
        model=model,
        target=target.name,
        plan=plan,
        bytes_before=sum(path.stat().st_size for path in files),
        seconds=seconds,
    )
    report.notes += [*prepared.notes, *map(str, config.notes)]
    report.warnings += [*map(str, config.warnings), *device.warnings, *plan.warnings]
    _say_without_effect(config, settings, report)
    return Job(
        config=config,
        host=host,
        settings=settings,
        target=target,
        target_record=device.record,
        target_options=device.options,
        used=[("target", name) for name in (target.name, *target.aliases)],
        model_files=files,
        plans=made,
        prepared=prepared,
        inputs=inputs,
        report=report,
        listeners=listeners,
        make_plans=lambda: plans(prepared, device),
    )


def _say_without_effect(config: Config, settings: Settings, report: Report) -> None:
    weights = config.common.quant_type == "WEIGHT_QUANT"
    if settings.fp16 and not weights:
        report.warnings.append(
            "fp16 has no effect on full quantization: what stays float stays float32"
        )
    if settings.save_scales is not None and not (weights and config.common.bit_num == 0):
        report.warnings.append("save_scales has no effect: only mixed bits (bit_num=0) have scales")
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
