"""Two models side by side, and what a device will make of the second one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from ptq_core.calibration import Emit, fixed_batch
from ptq_core.config import Config, resolve_path, validate_options
from ptq_core.emulation import (
    REALS,
    CheckedArithmetic,
    Pair,
    TensorComparison,
    input_codes,
    simplified,
)
from ptq_core.errors import InputError, Location, ModelError, Problem
from ptq_core.graph.model import load_model
from ptq_core.jobs.choices import find_reader
from ptq_core.jobs.job import timed
from ptq_core.jobs.report import Settings
from ptq_core.plugins import PluginHost, Registered, blame
from ptq_core.samples import (
    Sample,
    Samples,
    fixed_batches,
    model_inputs,
    samples_from_arrays,
    samples_from_files,
)
from ptq_core.target_types import Arithmetic
from ptq_core.targets import is_target_file
from ptq_core.types import Event, ModelInput, RunnerEntry

COMPARED_SAMPLES = 4
_STAGE = "compare"
_RUNNERS = ("onnxruntime", "reference")  # the first that is installed
_REAL_NAMES = frozenset(str(kind.numpy()) for kind in REALS)


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
    runner, options = _find_runner(config, host)
    with timed("load", report.seconds, listeners):
        floats, after = load_model(model), simplified(_load_any(quantized))
        common.RemoveInitializersFromInputsPass()(floats)
        try:
            common.ShapeInferencePass()(floats)
        except Exception as error:  # noqa: BLE001 - inference is a help, the model may still run
            report.notes.append(f"shape inference of the float model failed: {error}")
        inputs = model_inputs(floats, shapes=rest.input_shapes, data_layout=rest.data_layout)
        _check_belong(inputs, after, quantized)
        found = _find_samples(config, host, rest, inputs, data)
        pair = Pair(floats, after, runner, options, None if device is None else device[1])
    done, total = 0, samples * pair.tensors
    with timed(_STAGE, report.seconds, listeners):
        for sample in islice(_runs(found, inputs), samples):
            report.samples += 1
            for _ in pair.add(sample):
                done += 1
                listeners(Event(stage=_STAGE, kind="advance", done=done, total=total))
    if not report.samples:
        raise InputError("there is no sample to compare on", hint="see --data")
    report.tensors = pair.result()
    report.notes += found.notes
    report.warnings += found.warnings
    if not any(one.file_to_float for one in report.tensors if one.output):
        report.warnings.append("the models have no output of the same name")
    return report


def _load_any(path: Path) -> ir.Model:
    """The model in the file, quantized or not."""
    where = Location(file=str(path))
    try:
        model = ir.load(path)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", location=where) from error
    except (DecodeError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"is not an ONNX model: {error}", location=where) from error
    if not len(model.graph):
        raise ModelError("is not an ONNX model: it has no graph", location=where)
    return model


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


def _find_runner(config: Config, host: PluginHost) -> tuple[Registered[RunnerEntry], Any]:
    installed = {one.entry.name for one in host.entries("runner")}
    best = next((name for name in _RUNNERS if name in installed), _RUNNERS[0])
    runner = host.runner(config.runner or best)
    entry = runner.entry
    options, _ = validate_options(
        entry.options, "runner", entry.name, config, aliases=entry.aliases
    )
    return runner, options


def _find_samples(
    config: Config,
    host: PluginHost,
    settings: Settings,
    inputs: Sequence[ModelInput],
    data: Iterable[Any] | None,
) -> Samples:
    """The caller's samples, or those of the config's folders."""
    if data is not None:
        return samples_from_arrays(data, tuple(inputs))
    reader = find_reader(config, host)
    assert config.data is not None
    entry = reader.entry
    options, _ = validate_options(
        entry.options, "preprocessor", entry.name, config, aliases=entry.aliases
    )
    paths = config.data.calibrate_path
    return samples_from_files(
        {name: resolve_path(config, text)[0] for name, text in paths.items()},
        1,  # more are read as they are asked for
        inputs,
        reader,
        options,
        skip_bad=settings.skip_bad,
        location=config.locate("data_preprocess_param", "calibrate_path"),
    )


def _runs(samples: Samples, inputs: Sequence[ModelInput]) -> Iterator[Sample]:
    """All samples, grouped where the model's batch is fixed."""

    def read() -> Iterator[Sample]:
        yield from samples.open()
        if samples.held_out is not None:
            yield from samples.held_out()

    rows = fixed_batch(inputs)
    if rows is None:
        yield from read()
        return
    for batch in fixed_batches(read(), rows):
        yield Sample(name=", ".join(dict.fromkeys(batch.names)), feeds=batch.feeds)
