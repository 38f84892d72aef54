"""Dynamic quantization: read this file top to bottom and you have read the recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import QParams, quantize, weight_parameters
from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.emission import WeightWriter, emit_dynamic, share_codes
from ptq_core.emission.weights import Form
from ptq_core.graph import operators as ops
from ptq_core.graph.model import copy_of
from ptq_core.jobs.choices import WeightEncoding, find_reader, find_runner, find_weight_encoding
from ptq_core.jobs.deliver import deliver
from ptq_core.jobs.job import Job
from ptq_core.jobs.probes import compared, find_probes
from ptq_core.jobs.report import Report, Settings, StoredWeight
from ptq_core.jobs.smoothed import smooth_dynamic
from ptq_core.jobs.stamp import stamp, versions
from ptq_core.jobs.start import check_output, prepare_dynamic_job
from ptq_core.jobs.stored import stored_weight
from ptq_core.jobs.weight_codes import named
from ptq_core.planning import weight_values
from ptq_core.plugins import PluginHost
from ptq_core.smoothing import Rounding
from ptq_core.types import Event
from ptq_core.weights.grid import quantize_weight
from ptq_core.weights.quantized import QuantizedWeight

_Codes = dict[tuple[str, int | None], tuple[NDArray[Any], QParams]]  # by tensor and axis

_BITS = 8
_FORMS: dict[Form, bool] = {"dequantize": True, "folded": False}  # of tables, and of the rest
_TOKENS = ("ACWL", "ACWC")  # strategies with a scale for each token
_MINIMUM_IR_VERSION = 7


def dynamic_quant(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    data: Iterable[Any] | None,
    settings: Settings,
    emit: Emit | None,
) -> Report:
    """Dynamic quantization: prepare, plan, smooth, find codes, write them, compare, save."""
    check_output(model, output)
    has_data = config.data is not None and data is None
    reader = find_reader(config, host) if has_data else None
    job = prepare_dynamic_job(model, config, host, settings, emit)
    job.reader = reader
    encoding = find_weight_encoding(job)
    runner, runner_options = find_runner(job)
    probes = find_probes(job, data)
    job.say_unused_options()
    report = job.report
    report.samples, report.generated = len(probes.kept), probes.generated

    original = copy_of(job.prepared.model) if job.prepared.widened else None
    tokens = config.dynamic.quant_strategy in _TOKENS
    if config.dynamic.smoothing and not probes.generated:
        rounding: Rounding = "token" if tokens else "tensor"
        smooth_dynamic(job, probes.kept, rounding, runner, runner_options)
    quantized = _write(job, encoding, tokens=tokens)
    records = [encoding.entry.record, runner.record, *([reader.record] if reader else [])]
    used = len(probes.kept) if job.smoothing else 0
    stamp(quantized, job, versions(records), probes.sha256, used)

    report.verification = compared(job, quantized, original, probes, runner, runner_options)
    report.gate = settings.min_cosine
    deliver(job, quantized, output)
    return report


def _write(job: Job, encoding: WeightEncoding, *, tokens: bool) -> ir.Model:
    """Put integers and what quantizes activations into the model, in place."""
    model, plan = job.prepared.model, job.report.plan
    stored: dict[str, StoredWeight] = {}
    with job.stage("weights"):
        codes = _quantized_layers(job, encoding.name, stored)
        emit_dynamic(model, plan, codes, tokens=tokens)
        _write_constants(job, encoding, codes, stored)
        model.ir_version = max(model.ir_version or 0, _MINIMUM_IR_VERSION)
    job.report.weights = tuple(stored.values())
    return model


def _quantized_layers(job: Job, encoding: str, stored: dict[str, StoredWeight]) -> _Codes:
    """The codes of every layer's weights."""
    plan = job.report.plan
    layers = {(one.tensor, one.axis): one for one in plan.weights}
    names = {node.key: node.name for node in plan.nodes}
    values = weight_values(job.prepared.model, plan)
    codes: _Codes = {}
    for done, ((tensor, axis), one) in enumerate(layers.items(), 1):
        array = ops.array_of(values[tensor])
        with named(tensor):
            params = weight_parameters(array, one.scheme, axis)
        codes[tensor, axis] = quantize(array, params), params
        weight = _as_weight(*codes[tensor, axis])
        stored[tensor] = stored_weight(
            tensor,
            tuple(names[layer.node] for layer in plan.weights if layer.tensor == tensor),
            array,
            weight,
            encoding=encoding,
            size=weight.codes.nbytes + weight.scale.nbytes,
        )
        job.listeners(Event(stage="weights", kind="advance", done=done, total=len(layers)))
    return codes


def _write_constants(
    job: Job, encoding: WeightEncoding, codes: _Codes, stored: dict[str, StoredWeight]
) -> None:
    """Tables, which stay integers in memory; and weights that are decoded when they are loaded."""
    model, plan = job.prepared.model, job.report.plan
    tied = {tensor: (array, params) for (tensor, _), (array, params) in codes.items()}
    for form, tables in _FORMS.items():
        values = weight_values(model, plan)
        writer = WeightWriter(model, form)
        for one in plan.constants:
            if one.table != tables:
                continue
            array = ops.array_of(values[one.tensor])
            with named(one.tensor):
                weight = (
                    _as_weight(*tied[one.tensor])
                    if one.tensor in tied
                    else quantize_weight(array, _BITS, one.axes, strategy="MSE", correct=False)
                )
            opset = model.graph.opset_imports[""]
            encoded = encoding.codec.encode(weight.codes, weight.bits, opset)
            size = writer.write(values[one.tensor], one, weight, encoded, encoding.name)
            stored[one.tensor] = stored_weight(
                one.tensor, one.readers, array, weight, encoding=encoding.name, size=size
            )
    share_codes(model)
    writer.finish()


def _as_weight(codes: NDArray[Any], params: QParams) -> QuantizedWeight:
    shape = [1] * codes.ndim
    if params.axis is not None:
        shape[params.axis] = -1
    scale = np.asarray(params.scale.reshape(shape), np.float32)
    return QuantizedWeight(
        codes=codes,
        bits=_BITS,
        shape=codes.shape,
        scale=scale,
        offset=np.zeros_like(scale),
        zero_point=np.zeros(scale.shape, np.int64),
        variance=np.ones(scale.shape),
        mean=np.zeros(scale.shape),
    )
