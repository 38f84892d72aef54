"""``ptq compare``: two models side by side, and what a device will make of the second one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli import options
from ptq_core.cli.asked import refuse_beside_config
from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from ptq_core.config import Config
    from ptq_core.emulation import Likeness, TensorComparison
    from ptq_core.jobs import Settings
    from ptq_core.jobs.compare import ComparisonReport

_SHOWN = 15  # tensors in the table; -v shows all
_Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[INPUT:]DIR",
        rich_help_panel="Data (instead of a config)",
        help="Compare on the files of this folder; once for each input of the model.",
    ),
]


def compare(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float32 ONNX file.")],
    quantized: Annotated[
        Path, typer.Argument(metavar="QUANTIZED", help="What was made of it, by ptq or by others.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            "-c", "--config", metavar="FILE", help="Whose samples to compare on; INI or TOML."
        ),
    ] = None,
    emulate: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Predict what this device computes, with its own rounding and saturation.",
        ),
    ] = None,
    json: Json = False,
    samples: Annotated[
        int, typer.Option(min=1, max=65535, help="How many samples to compare on.")
    ] = 4,
    data: _Data = None,
    mean: options.Mean = None,
    std: options.Std = None,
    color: options.Color = None,
    resize: options.Resize = None,
    resize_method: options.ResizeMethod = None,
    center_crop: options.CenterCrop = None,
    skip_bad: options.SkipBad = False,
    input_shape: options.InputShape = None,
    input_data_format: options.InputDataFormat = None,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Compare QUANTIZED with FLOAT, tensor by tensor, on a few samples.

    With --emulate it is executed with a device's integer arithmetic, too:

    ptq compare model.onnx model_int8.onnx --emulate DSP -c full_quant.cfg

    ptq compare model.onnx model_int8.onnx --data pictures --mean 127.5 --std 127.5 --resize 224x224
    """
    from ptq_core.cli.progress import showing
    from ptq_core.jobs.compare import compare_job

    state: State = context.obj
    state.start_logging()
    asked, settings = _read(context, state)
    with showing(state) as emit:
        report = compare_job(
            model,
            quantized,
            asked,
            state.host,
            target=emulate,
            samples=samples,
            settings=settings,
            emit=emit,
        )
    report.warnings[:0] = state.host.warnings
    if json:
        state.print_json({**comparison_json(report), "exit_code": 0})
    else:
        _print(state, report)
    return 0


def _read(context: typer.Context, state: State) -> tuple[Config, Settings]:
    """The config with the samples, given or meant by the flags."""
    from ptq_core.cli.data import DataFlags, config_from_flags
    from ptq_core.cli.pictures import PictureFlags
    from ptq_core.config import load_config, parse_input_shape
    from ptq_core.jobs import Settings
    from ptq_core.python import full_quant_values

    params = context.params
    names = ("mean", "std", "color", "resize", "resize_method", "center_crop")
    given = {name: None if params[name] is None else str(params[name]) for name in names}
    flags = DataFlags(data=tuple(params["data"] or ()), pictures=PictureFlags(**given))
    shapes, layout = params["input_shape"], params["input_data_format"]
    settings = Settings(
        skip_bad=params["skip_bad"],
        input_shapes=parse_input_shape(shapes, option="--input-shape") if shapes else {},
        data_layout=None if layout is None else str(layout),  # type: ignore[arg-type]
    )
    if params["config"] is not None:
        config = Path(params["config"])
        refuse_beside_config(config, dict.fromkeys(flags.given(), True))
        return load_config(config), settings
    if not flags.data:
        raise InputError(
            "there is no data to compare on",
            hint="give --data DIR, a folder of samples, or -c CONFIG",
        )
    values = full_quant_values()
    model = Path(params["model"])
    return config_from_flags(flags, model, state, values, target=None, settings=settings), settings


def comparison_json(report: ComparisonReport) -> dict[str, Any]:
    """The report as JSON's types; numbers may still be infinite."""
    return {
        "model": str(report.model),
        "quantized": str(report.quantized),
        "target": report.target,
        "samples": report.samples,
        "tensors": [
            {
                "name": one.name,
                "output": one.output,
                "file_to_float": _likeness_json(one.file_to_float),
                "device_to_file": _likeness_json(one.device_to_file),
                "device_to_float": _likeness_json(one.device_to_float),
                "steps": one.steps,
                "differing": one.differing,
            }
            for one in report.tensors
        ],
        "seconds": {**report.seconds, "total": sum(report.seconds.values())},
        "warnings": report.warnings,
        "notes": report.notes,
    }


def _likeness_json(one: Likeness | None) -> dict[str, float] | None:
    return None if one is None else {"cosine": one.cosine, "sqnr": one.sqnr}


# ------------------------------------------------------------------------------- for people


def _print(state: State, report: ComparisonReport) -> None:
    from ptq_core.cli.report import seconds_line

    inner = [one for one in report.tensors if not one.output]
    shown = inner if state.verbose else inner[:_SHOWN]
    if shown:
        state.out.print(_table(shown, emulated=report.target is not None), soft_wrap=False)
    if len(inner) > len(shown):
        state.out.print(f"and {len(inner) - len(shown)} more that are no worse; -v shows all")
    for one in report.tensors:
        if one.output:
            for line in _output_lines(one, report.target):
                state.out.print(line)
    unit = "sample" if report.samples == 1 else "samples"
    state.out.print(f"compared on {report.samples} {unit}")
    state.out.print(seconds_line(report.seconds))
    for text in dict.fromkeys(report.warnings):
        state.out.print(f"warning: {text}", style="yellow")
    for text in dict.fromkeys(report.notes):
        state.out.print(f"note: {text}", style="dim")


def _table(tensors: list[TensorComparison], *, emulated: bool) -> Table:
    from ptq_core.cli.state import make_table

    headings = ["tensor", "cosine", "file to float"]
    if emulated:
        headings = ["tensor", "steps", "codes that differ", "device to file", "device to float",
                    "file to float"]  # fmt: skip
    table = make_table(*headings)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in tensors:
        if emulated:
            share = "" if one.differing is None else f"{one.differing:.2%}"
            cells = ["" if one.steps is None else str(one.steps), share]
            cells += map(_decibels, (one.device_to_file, one.device_to_float, one.file_to_float))
        else:
            likeness = one.file_to_float
            cells = ["" if likeness is None else f"{likeness.cosine:.6f}", _decibels(likeness)]
        table.add_row(one.name, *cells)
    return table


def _decibels(one: Likeness | None) -> str:
    if one is None:
        return ""
    if math.isnan(one.sqnr):
        return "no number"
    return "equal" if one.sqnr == float("inf") else f"{one.sqnr:.1f} dB"


def _output_lines(one: TensorComparison, target: str | None) -> Iterator[str]:
    texts = {
        "the file to the float model": one.file_to_float,
        f"{target} to the float model": one.device_to_float,
        f"{target} to the file": one.device_to_file,
    }
    for what, likeness in texts.items():
        if likeness is not None:
            close = f"cosine {likeness.cosine:.6f}, SQNR {_decibels(likeness)}"
            yield f"output {one.name}: {what}: {close}"
