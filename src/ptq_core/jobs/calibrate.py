"""Calibrate without quantizing: several methods in one pass, compared, and kept in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptq_core import __version__
from ptq_core.arithmetic import Correction
from ptq_core.calibration import Emit
from ptq_core.calibration_table import (
    CalibrationTable,
    DataFacts,
    Figures,
    LayerCorrection,
    MethodTable,
    ModelFacts,
    OutputFigures,
    PlanFacts,
    content_sha256,
    table_text,
    tensorrt_cache,
    write_text,
)
from ptq_core.config import Config
from ptq_core.errors import ConfigError, InputError, Location, Problem
from ptq_core.estimates import TensorEstimate
from ptq_core.jobs.choices import asked_methods, find_reader, find_runner
from ptq_core.jobs.full import build
from ptq_core.jobs.job import Job
from ptq_core.jobs.measured import Measured, measure, plan_sha256
from ptq_core.jobs.report import Settings
from ptq_core.jobs.start import check_output, prepare_job
from ptq_core.planning import MAX_MIN, Plan
from ptq_core.plugins import PluginHost
from ptq_core.types import Range
from ptq_core.verification import Verification


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodReport:
    """What one method found, and what the model is worth that was quantized with it."""

    ranges: dict[str, Range]
    estimates: dict[str, TensorEstimate]
    verification: Verification

    @property
    def sqnr(self) -> float | None:
        """SQNR of the worst output in dB, None where no output was compared."""
        return min((output.sqnr for output in self.verification.outputs), default=None)


@dataclass(kw_only=True)
class CalibrationReport:
    """What a calibration did.

    Attributes:
        model: the float model's file.
        target: the device that the ranges are for.
        plan: every node with a decision.
        methods: what each found, by its name.
        table: all of it, to keep and to quantize from.
        files: what was written, the table first.
        samples: how many were used.
        between: names of the first and the last of them.
        seconds: wall time of every stage.
        notes: what the user should know.
        warnings: what the user should look at.
    """

    model: Path
    target: str
    plan: Plan
    methods: dict[str, MethodReport]
    table: CalibrationTable
    files: list[Path] = field(default_factory=list)
    samples: int
    between: tuple[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def best(self) -> str | None:
        """The method whose quantized model is closest to the float one: the highest SQNR."""
        known = {name: one.sqnr for name, one in self.methods.items() if one.sqnr is not None}
        return max(known, key=lambda name: known[name]) if known else None


def calibration_job(
    model: Path,
    config: Config,
    host: PluginHost,
    *,
    methods: Sequence[str] = (),
    data: Iterable[Any] | None = None,
    output: Path | None = None,
    tensorrt: Path | None = None,
    settings: Settings | None = None,
    emit: Emit | None = None,
) -> CalibrationReport:
    """Calibrate with several methods in one pass and compare what they give.

    Args:
        model: the float model.
        config: full quantization.
        host: the plugins.
        methods: names of calibrators; the config's own if there are none.
        data: samples, instead of the config's.
        output: where the table goes, None: it is not written.
        tensorrt: where the first method's ranges go as TensorRT's calibration cache; activations
            are not smoothed then, for TensorRT reads the model as it is.
        settings: the rest; the gate is not used.
        emit: told about progress, besides the plugins that observe.

    Raises:
        InputError: the model, the data, the config or a method cannot be used; nothing was
            written.
        PluginError: a plugin failed; nothing was written.
    """
    if config.common.quant_type != "FULL_QUANT":
        raise ConfigError(
            f"quant_type = {config.common.quant_type}: ranges are for FULL_QUANT",
            location=config.locate("common_quant_param", "quant_type"),
            hint="calibrate with a config for full quantization",
        )
    _check(model, output, tensorrt, config, host, methods)
    asked = asked_methods(config, host, methods)
    reader = find_reader(config, host) if data is None else None
    config = config if tensorrt is None else _as_it_is(config)
    job = prepare_job(model, config, host, settings or Settings(), emit, asked)
    job.reader = reader
    runner, runner_options = find_runner(job)
    measured = measure(job, data, asked, runner, runner_options)
    found: dict[str, MethodReport] = {}
    tables: dict[str, MethodTable] = {}
    for method in job.plans:
        with _told_of(method, job):
            built = build(job, method, measured, runner, runner_options)
        ranges = measured.calibration.ranges[method]
        found[method] = MethodReport(
            ranges=ranges, estimates=built.estimates, verification=built.verification
        )
        tables[method] = _method_table(
            measured.plugins[method], ranges, built.verification, built.corrections
        )
    table = _table(job, measured, tables)
    with job.stage("save"):
        files = _write(job, table, found, output, tensorrt)
    report = job.report
    return CalibrationReport(
        model=model,
        target=report.target,
        plan=report.plan,
        methods=found,
        table=table,
        files=files,
        samples=measured.calibration.samples,
        between=measured.between or ("", ""),
        seconds=report.seconds,
        notes=report.notes,
        warnings=report.warnings,
    )


def _as_it_is(config: Config) -> Config:
    """The same without smoothing."""
    if config.full is None:
        return config
    return replace(config, full=config.full.model_copy(update={"smoothing": False}))


def _check(
    model: Path,
    output: Path | None,
    tensorrt: Path | None,
    config: Config,
    host: PluginHost,
    methods: Sequence[str],
) -> None:
    """Raise everything that is wrong with the files to write and the names of the methods."""
    problems: list[Problem] = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except InputError as error:
            problems.extend(error.problems)

    for path in (output, tensorrt):
        if path is not None:
            attempt(lambda path=path: check_output(model, path))  # type: ignore[misc]
    if output is not None and tensorrt is not None and output.absolute() == tensorrt.absolute():
        problems.append(
            Problem(
                message="the table and TensorRT's cache would be the same file",
                location=Location(file=str(output)),
                hint="name two files",
            )
        )
    attempt(lambda: asked_methods(config, host, methods))
    if problems:
        raise InputError(problems=problems)


@contextmanager
def _told_of(method: str, job: Job) -> Iterator[None]:
    """Put the method's name before what is said meanwhile, where there are several."""
    report = job.report
    before = [(texts, len(texts)) for texts in (report.notes, report.warnings)]
    yield
    if len(job.plans) > 1:
        for texts, start in before:
            texts[start:] = [
                text if text.startswith(method) else f"{method}: {text}" for text in texts[start:]
            ]


def _method_table(
    plugins: tuple[str, ...],
    ranges: Mapping[str, Range],
    verification: Verification,
    corrections: Mapping[str, Correction],
) -> MethodTable:
    return MethodTable(
        plugins=plugins,
        ranges={name: (float(one.low), float(one.high)) for name, one in ranges.items()},
        verification=Figures(
            samples=verification.samples,
            held_out=verification.held_out,
            outputs=tuple(
                OutputFigures(
                    name=one.name,
                    cosine=one.cosine,
                    worst_cosine=one.worst_cosine,
                    sqnr=one.sqnr if abs(one.sqnr) < float("inf") else None,
                )
                for one in verification.outputs
            ),
        ),
        corrections={
            layer: LayerCorrection(gain=tuple(one.gain.tolist()), offset=tuple(one.offset.tolist()))
            for layer, one in corrections.items()
        },
    )


def _table(job: Job, measured: Measured, methods: dict[str, MethodTable]) -> CalibrationTable:
    full = job.config.full
    return CalibrationTable(
        ptq=__version__,
        model=ModelFacts(file=job.report.model.name, sha256=content_sha256(job.model_files)),
        plan=PlanFacts(
            target=job.target.name,
            per_channel=full is None or full.per_channel,
            skip=job.config.common.skip_quant_node,
            sha256=plan_sha256(job.report.plan),
        ),
        smoothing={name: tuple(one.tolist()) for name, one in job.smoothing.items()},
        equalization={layer: tuple(one.tolist()) for layer, one in job.divisors.items()},
        data=DataFacts(
            samples=measured.calibration.samples, sha256=measured.calibration.data_sha256
        ),
        methods=methods,
    )


def _write(
    job: Job,
    table: CalibrationTable,
    found: Mapping[str, MethodReport],
    output: Path | None,
    tensorrt: Path | None,
) -> list[Path]:
    texts: dict[Path, str] = {}
    if output is not None:
        texts[output] = table_text(table)
    if tensorrt is not None:
        method, first = next(iter(found.items()))
        ranges = _all_ranges(job.plans[method], first.ranges)
        texts[tensorrt] = tensorrt_cache(ranges, min_max=method == MAX_MIN)
        job.report.notes.append(
            f"{tensorrt} has the ranges of {method}, the first method, without smoothing"
        )
        if job.divisors:
            job.report.warnings.append(
                f"{tensorrt} has the ranges of a model with equalized channels, which TensorRT "
                "does not see: calibrate with per_channel = true for it"
            )
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _all_ranges(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges of all integer activations: also of those that take another's or a fixed one."""
    found: dict[str, Range] = {}
    for name, tensor in plan.tensors.items():
        source = plan.tensors[tensor.source]
        if source.fixed is None:
            found[name] = ranges[source.name]
        else:
            low, high = (
                source.fixed.scale * (code - source.fixed.zero_point)
                for code in (source.scheme.qmin, source.scheme.qmax)
            )
            found[name] = Range(low=low, high=high)
    return found
