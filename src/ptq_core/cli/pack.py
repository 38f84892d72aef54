"""``ptq pack`` and ``ptq unpack``: archives for distribution and over-the-air updates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose

if TYPE_CHECKING:
    from rich.table import Table

    from ptq_core.archive import PackedTensor, PackReport

_SIZES = ("bytes_before", "bytes_after")


def pack(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, quantized or not.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The archive; MODEL.ptqz by default."),
    ] = None,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Put MODEL and its external data into an archive, entropy-coded.

    Nothing is lost: `ptq unpack` gives the same bytes back. In Python, ptq_core.load(FILE) gives
    the model to a runtime without writing it.

    ptq pack model.onnx -o model.ptqz
    """
    from ptq_core.archive import pack as pack_model
    from ptq_core.cli.progress import showing

    state: State = context.obj
    state.start_logging()
    with showing(state) as emit:
        report = pack_model(model, output, host=state.host, progress=emit)
    if json:
        state.print_json({**_as_json(report), "warnings": state.host.warnings, "exit_code": 0})
    else:
        _print(state, report)
    return 0


def unpack(
    context: typer.Context,
    archive: Annotated[
        Path, typer.Argument(metavar="FILE", help="An archive that `ptq pack` made.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="MODEL", help="The model; FILE.onnx by default."),
    ] = None,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Write the model in an archive, and its external data, byte for byte as they were packed.

    ptq unpack model.ptqz -o model.onnx
    """
    from ptq_core.archive import unpack as unpack_model
    from ptq_core.cli.progress import showing
    from ptq_core.cli.report import size

    state: State = context.obj
    state.start_logging()
    with showing(state) as emit:
        report = unpack_model(archive, output, host=state.host, progress=emit)
    if json:
        state.print_json(
            {
                "archive": str(report.archive),
                "files": [str(path) for path in report.files],
                "bytes_before": report.bytes_before,
                "bytes_after": report.bytes_after,
                "seconds": report.seconds,
                "warnings": state.host.warnings,
                "exit_code": 0,
            }
        )
        return 0
    for path in report.files:
        state.out.print(f"wrote {path}", style="bold green")
    state.out.print(
        f"{size(report.bytes_before)} -> {size(report.bytes_after)} in {report.seconds:.2f} s"
    )
    _print_warnings(state)
    return 0


def _as_json(report: PackReport) -> dict[str, Any]:
    coded = _coded(report)
    return {
        "model": str(report.model),
        "archive": str(report.archive),
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "codes": {
            "elements": sum(one.elements for one in coded),
            "bytes": sum(one.bytes_after for one in coded),
            "entropy_bytes": _entropy_bytes(coded),
        },
        "tensors": [dataclasses.asdict(one) for one in report.tensors],
        "seconds": report.seconds,
        "notes": report.notes,
    }


def _coded(report: PackReport) -> list[PackedTensor]:
    return [one for one in report.tensors if one.entropy is not None]


def _entropy_bytes(coded: list[PackedTensor]) -> float:
    return sum(one.elements * (one.entropy or 0.0) / 8 for one in coded)


def _print(state: State, report: PackReport) -> None:
    from ptq_core.cli.report import size

    out = state.out
    out.print(_table(report), soft_wrap=False)
    coded = _coded(report)
    least = _entropy_bytes(coded)
    if least:
        after = sum(one.bytes_after for one in coded)
        out.print(f"integers: {size(after)}, {after / least - 1:+.2%} to their entropy")
    out.print(f"wrote {report.archive}", style="bold green")
    before, after = report.bytes_before, report.bytes_after
    ratio = f"{before / after:.2f} times smaller" if after <= before else "not smaller"
    out.print(f"{size(before)} -> {size(after)}, {ratio}, in {report.seconds:.2f} s")
    _print_warnings(state)
    for text in report.notes:
        out.print(f"note: {text}", style="dim")


def _print_warnings(state: State) -> None:
    for text in state.host.warnings:
        state.out.print(f"warning: {text}", style="yellow")


def _table(report: PackReport) -> Table:
    """A row for each way in which constants were stored in the model."""
    from ptq_core.cli.report import size
    from ptq_core.cli.state import make_table

    table = make_table("stored as", "elements", "bits each", "entropy", "before", "after")
    for column in table.columns[1:]:
        column.justify = "right"
    groups: dict[str, list[PackedTensor]] = {}
    for one in report.tensors:
        groups.setdefault(one.stored_as, []).append(one)
    for name, group in groups.items():
        elements = sum(one.elements for one in group)
        before, after = (sum(getattr(one, when) for one in group) for when in _SIZES)
        coded = [one for one in group if one.entropy is not None]
        counted = sum(one.elements for one in coded)
        table.add_row(
            name,
            f"{elements:,}" if elements else "",
            f"{after * 8 / elements:.2f}" if elements else "",
            f"{_entropy_bytes(coded) * 8 / counted:.2f}" if counted else "",
            size(before),
            size(after),
        )
    return table
