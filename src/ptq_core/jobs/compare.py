"""Two models side by side, and what a device will make of the second one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.emulation import (
    REALS,
    CheckedArithmetic,
    Pair,
    TensorComparison,
    input_codes,
    simplified,
)
from ptq_core.errors import InputError, Location, ModelError, Problem
from ptq_core.graph.model import load_model, read_model
from ptq_core.graph.operators import attribute
from ptq_core.jobs.choices import choose_runner, find_reader, folder_samples, given_options
from ptq_core.jobs.job import timed, whole_runs
from ptq_core.jobs.measured import tell_of
from ptq_core.jobs.report import Settings
from ptq_core.plugins import PluginHost, blame
from ptq_core.samples import Sample, Samples, model_inputs, samples_from_arrays
from ptq_core.target_types import Arithmetic
from ptq_core.targets import is_target_file
from ptq_core.types import Event, ModelInput

COMPARED_SAMPLES = 4
_STAGE = "compare"
_REAL_NAMES = frozenset(str(kind.numpy()) for kind in REALS)
_EMULATED_CODES = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
)


@dataclass(kw_only=True)
class ComparisonReport:
    """What came of a comparison.

    Attributes:
        model: the float model.
        quantized: the other one.
        target: the device that was emulated, None for none.
        samples: how many were compared.
        tensors: the outputs, then the others, the least alike first.
        seconds: by stages.
        warnings: what may be wrong.
        notes: what one should know.
    """

    model: Path
    quantized: Path
    target: str | None
    samples: int = 0
    tensors: tuple[TensorComparison, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_job(
    model: Path,
    quantized: Path,
    config: Config,
    host: PluginHost,
    *,
    target: str | None = None,
    data: Iterable[Any] | None = None,
    samples: int = COMPARED_SAMPLES,
    settings: Settings | None = None,
    emit: Emit | None = None,
) -> ComparisonReport:
    """Run both models on a few samples and compare tensors of the same name.

    Args:
        model: the float model.
        quantized: the model that was made of it, by ptq or by others.
        config: with the samples and the runner; nothing else of it counts.
        host: the plugins.
        target: predict what this device computes.
        data: samples, instead of the config's.
        samples: how many are compared.
        settings: shapes and what to do with bad samples.
        emit: told about progress.

    Raises:
        InputError: a model, the data or the target cannot be used, or the models do not belong
            together.
        PluginError: a plugin failed.
    """
    rest = settings or Settings()

    def listeners(event: Event) -> None:
        if emit is not None:
            emit(event)
        host.emit(event)

    device = None if target is None else _arithmetic(target, host)
    report = ComparisonReport(
        model=model, quantized=quantized, target=None if device is None else device[0]
    )
    runner = choose_runner(config, host, report.warnings)
    options = given_options(config, "runner", runner, report.warnings)
    with timed("load", report.seconds, listeners):
        floats, after = load_model(model), simplified(read_model(quantized))
        common.RemoveInitializersFromInputsPass()(floats)
        try:
            common.ShapeInferencePass()(floats)
        except Exception as error:  # noqa: BLE001 - inference is a help, the model may still run
            report.notes.append(f"shape inference of the float model failed: {error}")
        inputs = model_inputs(floats, shapes=rest.input_shapes, data_layout=rest.data_layout)
        _check_belong(inputs, after, quantized)
        if device is not None:
            _check_codes(after, quantized)
        found = _find_samples(config, host, rest, inputs, data, report)
        pair = Pair(floats, after, runner, options, None if device is None else device[1])
    with timed(_STAGE, report.seconds, listeners):
        for done in _compared(pair, found, inputs, samples, report):
            total = samples * pair.tensors
            listeners(Event(stage=_STAGE, kind="advance", done=done, total=max(done, total)))
    if not report.samples:
        raise InputError("there is no sample to compare on", hint="see --data")
    report.tensors = pair.result()
    tell_of(found, report.notes, report.warnings)
    _say_what_is_missing(report, floats, after)
    return report


def _compared(
    pair: Pair,
    found: Samples,
    inputs: Sequence[ModelInput],
    count: int,
    report: ComparisonReport,
) -> Iterator[int]:
    """Compare on so many samples; yields how many tensors are done."""

    def read() -> Iterator[Sample]:
        unseen = () if found.held_out is None else found.held_out()
        for sample in islice(chain(found.open(), unseen), count):
            report.samples += 1
            yield sample

    done = 0
    for run in whole_runs(inputs, read()):
        for _ in pair.add(run):
            done += 1
            yield done


def _say_what_is_missing(report: ComparisonReport, floats: ir.Model, after: ir.Model) -> None:
    """Warn of outputs that cannot be compared."""
    names = {value.name for value in floats.graph.outputs}
    shared = [value.name or "" for value in after.graph.outputs if value.name in names]
    if not shared:
        report.warnings.append("the models have no output of the same name")
    compared = {one.name for one in report.tensors if one.output and one.file_to_float}
    lacking = [name for name in shared if name not in compared]
    if lacking:
        report.notes.append(
            f"outputs that are no numbers of the same shape, not compared: {', '.join(lacking)}"
        )
    lost = [
        one.name for one in report.tensors if one.file_to_float and isnan(one.file_to_float.sqnr)
    ]
    if lost:
        report.warnings.append(
            f"infinite or not a number, so that nothing can be said of them: {', '.join(lost[:5])}"
        )


def _check_belong(inputs: Sequence[ModelInput], other: ir.Model, path: Path) -> None:
    """Raise ModelError unless the other model takes the same inputs."""
    known, codes = {value.name: value for value in other.graph.inputs}, input_codes(other)
    ours = {item.name: item for item in inputs}
    where = Location(file=str(path))
    problems = [
        Problem(message=f"has no input '{name}', the float model has", location=where)
        for name in ours
        if name not in known
    ]
    problems += [
        Problem(message=f"has an input '{name}', the float model has none", location=where)
        for name in known
        if name not in ours
    ]
    for name, item in ours.items():
        kind = known[name].dtype if name in known else None
        alike = item.dtype in _REAL_NAMES and (kind in REALS or name in codes)
        if kind is None or alike:
            continue
        if str(kind.numpy()) != item.dtype:
            text = f"its input '{name}' is {kind.numpy()}, the float model's {item.dtype}"
            problems.append(Problem(message=text, location=where))
    if problems:
        raise ModelError(problems=problems)


def _check_codes(model: ir.Model, path: Path) -> None:
    """Raise ModelError unless what the model quantizes gets codes that devices are emulated for."""
    where = Location(file=str(path))
    kinds: dict[ir.DataType, ir.Value | None] = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            given = node.inputs[2] if len(node.inputs) > 2 else None
            asked = ir.DataType(attribute(node, "output_dtype", 0))
            kind = (given.dtype if given is not None else None) or asked
            kinds.setdefault(kind, node.inputs[0])
    problems = [
        Problem(
            message=f"quantizes '{value.name if value else ''}' to {kind.name}, emulation knows "
            "integers of 8 and 16 bits",
            location=where,
            hint="leave --emulate out",
        )
        for kind, value in kinds.items()
        if kind is not ir.DataType.UNDEFINED and kind not in _EMULATED_CODES
    ]
    if problems:
        raise ModelError(problems=problems)


# ------------------------------------------------------------------------ what it runs with


def _arithmetic(name: str, host: PluginHost) -> tuple[str, Arithmetic]:
    """The name of the target and its arithmetic.

    Raises:
        InputError: there is no such target, or it does not say how it computes.
    """
    found = None if is_target_file(name) else host.target(name)
    if found is None or found.entry.arithmetic is None:
        known = [one.entry.name for one in host.entries("target") if one.entry.arithmetic]
        raise InputError(
            f"the target {name if found is None else found.entry.name} does not say how it "
            "computes",
            hint=f"those that do: {', '.join(known) or 'none'}",
        )
    with blame(found.record, f"making the arithmetic of {found.entry.name}"):
        made = found.entry.arithmetic()
    return found.entry.name, CheckedArithmetic(made, found.record)


def _find_samples(
    config: Config,
    host: PluginHost,
    settings: Settings,
    inputs: Sequence[ModelInput],
    data: Iterable[Any] | None,
    report: ComparisonReport,
) -> Samples:
    """The caller's samples, or those of the config's folders."""
    if data is not None:
        return samples_from_arrays(data, tuple(inputs))
    reader = find_reader(config, host)
    options = given_options(config, "preprocessor", reader, report.warnings)
    # one at least; more are read as they are asked for
    return folder_samples(config, 1, inputs, reader, options, settings, report.notes)
