"""``ptq plan``: what would become of every node, before any data is touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli.asked import (
    refuse_beside_config,
    values_of_job,
    with_skip,
    with_target_options,
)
from ptq_core.cli.options import (
    Bits,
    Dynamic,
    InputShape,
    Method,
    PerLayer,
    Skip,
    Target,
    TargetOption,
)
from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose

if TYPE_CHECKING:
    from ptq_core.jobs import Report

_STYLES = {"integer": "green", "fused": "green", "float": "yellow", "guarded": "yellow",
           "weights": "green", "dynamic": "green"}  # fmt: skip


def plan(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The float32 ONNX file.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "-c",
            "--config",
            metavar="FILE",
            help="What to do; full quantization for CPUs if not given.",
        ),
    ] = None,
    json: Json = False,
    bits: Bits = None,
    dynamic: Dynamic = None,
    target: Target = None,
    target_option: TargetOption = None,
    method: Method = None,
    per_layer: PerLayer = False,
    skip: Skip = None,
    input_shape: InputShape = None,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Show what quantization would do with every node of MODEL, and why. Needs no data."""
    from ptq_core.config import config_from_values, load_config, parse_input_shape
    from ptq_core.jobs import Settings, plan_job

    state: State = context.obj
    state.start_logging()
    if config is not None:
        refuse_beside_config(
            config,
            {
                "--method": method,
                "--per-layer": per_layer,
                "--bits": bits is not None,
                "--dynamic": dynamic,
            },
        )
        job = with_skip(load_config(config, has_data=True, target=target), skip or ())
    else:
        values = values_of_job(bits, dynamic, method, per_layer=per_layer, skip=skip or ())
        job = config_from_values(values, has_data=True, target=target)
    job = with_target_options(job, target_option or ())
    shapes = {} if input_shape is None else parse_input_shape(input_shape, option="--input-shape")
    report = plan_job(model, job, state.host, Settings(input_shapes=shapes))
    report.warnings += state.host.warnings
    if json:
        state.print_json(_as_json(report))
    else:
        _print(state, report)
    return 0


def _as_json(report: Report) -> dict[str, Any]:
    from ptq_core.cli.report import counts, node_json

    return {
        "model": str(report.model),
        "target": report.target,
        "nodes": [node_json(node) for node in report.plan.nodes],
        "counts": counts(report.plan),
        "warnings": report.warnings,
        "notes": report.notes,
        "exit_code": 0,
    }


def _print(state: State, report: Report) -> None:
    from rich.text import Text

    from ptq_core.cli.report import described_counts, print_remarks
    from ptq_core.cli.state import make_table

    table = make_table("node", "type", "decision", "reason")
    for node in report.plan.nodes:
        decision = Text(node.decision, style=_STYLES.get(node.decision, "dim"))
        table.add_row(node.name, node.op_type, decision, node.reason)
    state.out.print(table, soft_wrap=False)
    state.out.print(f"for {report.target}: {described_counts(report.plan)}")
    print_remarks(state.out, report)
