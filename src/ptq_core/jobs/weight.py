"""Weight quantization: read this file top to bottom and you have read the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq_core.arithmetic import Correction
from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.emission import WeightWriter, correct_biases, correctable, corrected_weight
from ptq_core.errors import PluginError
from ptq_core.graph import operators as ops
from ptq_core.graph.model import check_writable, copy_of
from ptq_core.jobs.choices import WeightEncoding, find_reader, find_runner, find_weight_encoding
from ptq_core.jobs.corrected import measured_corrections
from ptq_core.jobs.deliver import deliver
from ptq_core.jobs.job import Job
from ptq_core.jobs.probes import Probes, compared, find_probes
from ptq_core.jobs.report import Report, Settings, StoredWeight
from ptq_core.jobs.stamp import stamp, versions
from ptq_core.jobs.start import check_output, prepare_weight_job
from ptq_core.jobs.stored import stored_weight
from ptq_core.jobs.weight_codes import BYTE, Quantize, find_steps, named, quantizer, weight_form
from ptq_core.planning import weight_values
from ptq_core.plugins import PluginHost, Registered, blame
from ptq_core.types import Event, RunnerEntry
from ptq_core.weights.quantized import QuantizedWeight, with_half_parameters
from ptq_core.weights.scales import scales_to_json

# Corrections of layers have to gain so many dB on the samples that are held back, one of so many:
# at 3 bits and fewer, a small gain on a few has turned into a loss on others.
_MARGIN = 0.5
_FEW_BITS = 2
_HELD_BACK = 3


def weight_quant(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    data: Iterable[Any] | None,
    settings: Settings,
    emit: Emit | None,
) -> Report:
    """Weight quantization: prepare, plan, find codes, write them, compare, save."""
    check_output(model, output)
    if settings.save_scales is not None:
        check_writable(settings.save_scales)
    has_data = config.data is not None and data is None
    reader = find_reader(config, host) if has_data else None
    job = prepare_weight_job(model, config, host, settings, emit)
    job.reader = reader
    encoding = find_weight_encoding(job)
    if weight_form(job) == "dequantize" and config.common.bit_num <= _FEW_BITS:
        job.report.warnings.append(
            f"ON_THE_FLY with {config.common.bit_num} bits: zero points are integers, so that one "
            "of these few codes stands for zero; decoded when the model is loaded (without "
            "dequant_strategy) the weights are closer"
        )
    runner, runner_options = find_runner(job)
    probes = find_probes(job, data)
    job.say_unused_options()
    report = job.report
    report.samples, report.generated = len(probes.kept), probes.generated

    mixed = config.common.bit_num == 0
    steps = find_steps(job, probes, runner, runner_options) if mixed else {}
    weights = _quantized(job, quantizer(job, probes, steps, runner, runner_options))
    original = copy_of(job.prepared.model) if job.prepared.widened else None
    corrections = _corrections(job, weights, probes, runner, runner_options)
    quantized = _write(job, encoding, weights, corrections, steps)
    records = [encoding.entry.record, runner.record, *([reader.record] if reader else [])]
    used = probes.kept if corrections or _measures(config) else ()
    stamp(quantized, job, versions(records), probes.sha256, len(used))

    report.verification = compared(job, quantized, original, probes, runner, runner_options)
    report.gate = settings.min_cosine
    deliver(job, quantized, output)
    if mixed and settings.save_scales is not None:
        settings.save_scales.write_text(scales_to_json(steps), encoding="utf-8")
    return report


def _measures(config: Config) -> bool:
    """Whether the result depends on the samples, which otherwise only judge it."""
    if config.common.bit_num == 0:
        return config.mixed.auto_tune and not config.mixed.scales
    return config.weight.quant_strategy == "GPTQ"


def _quantized(job: Job, quantize: Quantize) -> dict[str, QuantizedWeight]:
    """The codes of every weight in the plan."""
    values = weight_values(job.prepared.model, job.report.plan)
    plans = job.report.plan.constants
    found: dict[str, QuantizedWeight] = {}
    with job.stage("weights"):
        for done, plan in enumerate(plans, 1):
            array = ops.array_of(values[plan.tensor])
            with named(plan.tensor):
                weight = quantize(plan, array)
            found[plan.tensor] = weight
            job.listeners(Event(stage="weights", kind="advance", done=done, total=len(plans)))
    return found


def _corrections(
    job: Job,
    weights: dict[str, QuantizedWeight],
    probes: Probes,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Mapping[str, Correction]:
    """What layers lack on the samples, if there are any; the gains are put into the weights."""
    weight, bits = job.config.weight, job.config.common.bit_num
    layers = correctable(job.prepared.model, job.report.plan)
    if not weight.bias_correction or probes.generated or bits > BYTE or not layers:
        return {}

    def quantized() -> ir.Model:
        model = copy_of(job.prepared.model)
        for name, value in weight_values(model, job.report.plan).items():
            value.const_value = ir.tensor(weights[name].dequantize(), name=name)
        return model

    plan = replace(job.report.plan, weights=layers)
    found = measured_corrections(
        job, plan, quantized, probes.kept, runner, runner_options, _MARGIN, _HELD_BACK
    )
    for layer in layers:
        if layer.node in found:
            one = corrected_weight(weights[layer.tensor], found[layer.node].gain, layer.axis)
            weights[layer.tensor] = one
    return found


def _write(
    job: Job,
    encoding: WeightEncoding,
    weights: dict[str, QuantizedWeight],
    corrections: Mapping[str, Correction],
    steps: Mapping[str, float],
) -> ir.Model:
    """Put the codes into the model, in place; every weight is given up once it is written."""
    model, plan = job.prepared.model, job.report.plan
    values, stored = weight_values(model, plan), list[StoredWeight]()
    opset = model.graph.opset_imports[""]
    with job.stage("emit"):
        correct_biases(model, corrections)
        writer = WeightWriter(model, weight_form(job))
        for done, one in enumerate(plan.constants, 1):
            array, weight = ops.array_of(values[one.tensor]), weights.pop(one.tensor)
            if weight_form(job) == "folded" and job.config.weight.quant_strategy != "MAX_MIN":
                weight = with_half_parameters(weight)
            with blame(encoding.entry.record, f"encoding '{one.tensor}'"):
                encoded = encoding.codec.encode(weight.codes, weight.bits, opset)
                given = encoding.codec.decode(encoded.constants, weight.bits, weight.codes.shape)
            if not np.array_equal(given, weight.codes):
                raise PluginError(
                    f"{encoding.entry.record}: the encoding {encoding.name} does not give back the "
                    f"codes of '{one.tensor}'"
                )
            size = writer.write(values[one.tensor], one, weight, encoded, encoding.name)
            stored.append(
                stored_weight(
                    one.tensor,
                    one.readers,
                    array,
                    weight,
                    encoding=encoding.name,
                    size=size,
                    step=steps.get(one.tensor),
                )
            )
            job.listeners(Event(stage="emit", kind="advance", done=done, total=len(plan.constants)))
        too_large = writer.finish(half=job.settings.fp16)
    if too_large:
        job.report.warnings.append(
            f"too large for float16, kept as float32: {', '.join(too_large)}"
        )
    job.report.weights = tuple(stored)
    return model
