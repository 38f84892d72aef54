"""``ptq calibrate``: ranges by several methods in one pass, compared, and kept in a table."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli import options
from ptq_core.cli.asked import read_options
from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ptq_core.jobs import CalibrationReport, MethodReport

Methods = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel="Quantization",
        help="A way to find ranges: MAX_MIN, KL, RemovalOutlier, ... Repeatable: all in one pass. "
        "The config's if not given.",
    ),
]


def calibrate(
    context: typer.Context,
    model: options.Model,
    config: options.ConfigFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The table; MODEL_calibration.json by default."
        ),
    ] = None,
    tensorrt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the ranges of the first --method as TensorRT's calibration cache, too.",
        ),
    ] = None,
    json: Json = False,
    data: options.Data = None,
    calibrate_size: options.CalibrateSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    color: options.Color = None,
    resize: options.Resize = None,
    resize_method: options.ResizeMethod = None,
    center_crop: options.CenterCrop = None,
    target: options.Target = None,
    target_option: options.TargetOption = None,
    method: Methods = None,
    per_layer: options.PerLayer = False,
    skip: options.Skip = None,
    strict: options.Strict = False,
    skip_bad: options.SkipBad = False,
    input_shape: options.InputShape = None,
    input_data_format: options.InputDataFormat = None,
    runner: options.Runner = None,
    threads: options.Threads = None,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Find the ranges of MODEL's activations by one or more methods, and compare the methods.

    The samples are read once. Each method's model is quantized and compared with the float one, as
    by `ptq quantize`, which takes the table that is written instead of samples:

    ptq calibrate model.onnx -c full_quant.cfg --method KL --method MAX_MIN

    ptq quantize model.onnx -c full_quant.cfg --calibration model_calibration.json
    """
    from ptq_core.cli.progress import showing
    from ptq_core.jobs import calibration_job
    from ptq_core.python import default_table

    state: State = context.obj
    state.start_logging()
    asked = read_options(state, context.params, methods=True)
    host = state.host
    with showing(state) as emit:
        report = calibration_job(
            model,
            asked.config,
            host,
            methods=method or (),
            output=output if output is not None else default_table(model),
            tensorrt=tensorrt,
            settings=asked.settings,
            emit=emit,
        )
    report.warnings[:0] = host.warnings
    if json:
        given = {} if asked.shown is None else {"config": asked.shown}
        state.print_json({**_as_json(report), **given, "exit_code": 0})
    else:
        _print(state, report, config)
    return 0


def _as_json(report: CalibrationReport) -> dict[str, Any]:
    from ptq_core.cli.report import tensors_json, verification_json

    return {
        "model": str(report.model),
        "target": report.target,
        "files": [str(path) for path in report.files],
        "samples": report.samples,
        "first_sample": report.between[0],
        "last_sample": report.between[1],
        "best": report.best,
        "methods": {
            name: {
                "tensors": tensors_json(found.ranges, found.estimates),
                "verification": verification_json(found.verification),
            }
            for name, found in report.methods.items()
        },
        "seconds": {**report.seconds, "total": sum(report.seconds.values())},
        "warnings": report.warnings,
        "notes": report.notes,
    }


def _print(state: State, report: CalibrationReport, config: Path | None) -> None:
    from ptq_core.cli.report import closeness, print_remarks, seconds_line
    from ptq_core.estimates import clipped_hard

    out = state.out
    hard = {name: clipped_hard(found.estimates) for name, found in report.methods.items()}
    out.print(_table(report, hard), soft_wrap=False)
    legend = "; *: much less than with the whole range" if any(hard.values()) else ""
    out.print(f"dB: estimated signal to quantization noise{legend}")
    first, last = report.between
    out.print(f"calibrated on {report.samples} samples, from {first} to {last}")
    for name, found in report.methods.items():
        for line in closeness(found.verification):
            out.print(f"{name}: {line}")
    if report.best is not None and len(report.methods) > 1:
        out.print(f"best: {report.best} (the highest SQNR of the outputs)", style="bold")
    for path in report.files:
        out.print(f"wrote {path}", style="bold green")
    chosen = report.best or next(iter(report.methods))
    words = ["ptq", "quantize", report.model, *(() if config is None else ("-c", config))]
    words += ["--calibration", report.files[0], "--method", chosen]
    out.print(f"to go on: {shlex.join(map(str, words))}")
    out.print(seconds_line(report.seconds))
    print_remarks(out, report)


def _table(report: CalibrationReport, hard: Mapping[str, Sequence[str]]) -> Table:
    """A row for each tensor: what each method found, the worst ones marked."""
    from ptq_core.cli.state import make_table

    headings = [text for name in report.methods for text in (f"{name}\nlow", "\nhigh", "\ndB")]
    table = make_table("\ntensor", *headings)
    for column in table.columns[1:]:
        column.justify = "right"
    tensors = dict.fromkeys(name for found in report.methods.values() for name in found.ranges)
    for tensor in tensors:
        cells: list[Text | str] = []
        for name, found in report.methods.items():
            cells += _cells(found, tensor, marked=tensor in hard[name])
        table.add_row(tensor, *cells)
    return table


def _cells(found: MethodReport, tensor: str, *, marked: bool) -> list[Text | str]:
    from rich.text import Text

    one, loss = found.ranges[tensor], found.estimates.get(tensor)
    shown = "" if loss is None else f"{loss.sqnr:.1f}{'*' if marked else ' '}"
    return [f"{one.low:.4g}", f"{one.high:.4g}", Text(shown, style="bold red" if marked else "")]
