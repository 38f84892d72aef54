"""``ptq check``: what a device will not take, or not take well, in a quantized model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli.options import Target
from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import ExitCode, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ptq_core.checks import Checked
    from ptq_core.target_types import Finding

_SHOWN = 5  # places of one code; -v shows all
_DEFAULT = "CPU"


def check(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="The quantized ONNX file, by ptq or by others."),
    ] = None,
    target: Target = None,
    explain: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Say what a code means and how it is mended; no MODEL."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 at warnings too.")] = False,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Check a quantized MODEL by the rules of a device. It is not changed.

    Errors are what the device refuses or computes wrongly, warnings what it computes slower or less
    accurately than it could. Exit codes: 0 no errors, 1 errors, 2 bad input.
    """
    from ptq_core.checks import inspect_model
    from ptq_core.jobs import named_target

    state: State = context.obj
    state.start_logging()
    if (model is None) == (explain is None):
        raise InputError("expected either a MODEL or --explain CODE", hint="see ptq check --help")
    if explain is not None:
        return _explain(state, explain)
    if model is None:
        raise AssertionError
    entry = named_target(target or _DEFAULT, state.host)
    checked = inspect_model(model, entry)
    errors, warnings = (_count(checked.findings, one) for one in ("error", "warning"))
    code = ExitCode.GATE_MISSED if errors or (strict and warnings) else ExitCode.DONE
    if json:
        found = [dataclasses.asdict(one) for one in checked.findings]
        state.print_json(
            {
                "model": str(model),
                "target": entry.name,
                "operators": checked.operators,
                "findings": found,
                "counts": {"error": errors, "warning": warnings},
                "warnings": state.host.warnings,
                "exit_code": int(code),
            }
        )
    else:
        _print(state, checked, entry.name)
    return code


def _count(findings: Iterable[Finding], severity: str) -> int:
    return sum(one.severity == severity for one in findings)


def print_findings(out: Console, findings: Iterable[Finding], *, every: bool = False) -> None:
    """Findings by code, errors first, each code's in the order of the graph; ``every`` place."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for one in sorted(findings, key=lambda one: (one.severity != "error", one.code)):
        groups.setdefault((one.severity, one.code, one.because + one.fix), []).append(one)
    for (severity, code, _), found in groups.items():
        times = f" ({len(found)} times)" if len(found) > 1 else ""
        style = "bold red" if severity == "error" else "bold yellow"
        out.print(f"{severity} {code}{_title(code)}{times}", style=style)
        shown = found if every else found[:_SHOWN]
        for one in shown:
            out.print(f"  {_place(one)}{one.message}")
        if len(found) > len(shown):
            out.print(f"  and {len(found) - len(shown)} more (-v shows all)")
        out.print(f"  because: {found[0].because}")
        out.print(f"  fix: {found[0].fix}")


def counted(findings: Sequence[Finding]) -> str:
    """How many errors and warnings."""
    return ", ".join(_number(_count(findings, one), one) for one in ("error", "warning"))


def _print(state: State, checked: Checked, target: str) -> None:
    out = state.out
    print_findings(out, checked.findings, every=state.verbose > 0)
    for text in state.host.warnings:
        out.print(f"warning: {text}", style="yellow")
    looked = f"{_number(checked.operators, 'quantized operator')} checked"
    if not checked.findings:
        out.print(f"clean for {target}: {looked}", style="bold green")
    else:
        out.print(f"{counted(checked.findings)} for {target}: {looked}", style="bold")
    if not checked.operators:
        text = "nothing computes with integers: only weights are quantized, or nothing is"
        out.print(text, style="yellow")


def _title(code: str) -> str:
    from ptq_core.checks import CODES, rule_code

    found = CODES.get(rule_code(code))  # a target's own codes are not there
    return "" if found is None else f": {found.title}"


def _place(finding: Finding) -> str:
    parts = [f"node '{finding.node}'"] if finding.node else []
    if finding.tensor and finding.tensor != finding.node:
        parts.append(f"tensor '{finding.tensor}'")
    return f"{', '.join(parts)}: " if parts else ""


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _explain(state: State, name: str) -> int:
    from ptq_core.checks import explain, rule_code

    code, found = rule_code(name.upper()), explain(name)
    rules: list[dict[str, Any]] = [
        {"target": one.entry.name, **dataclasses.asdict(one.entry.spec.checks[code])}
        for one in state.host.entries("target")
        if code in one.entry.spec.checks
    ]
    if state.json:
        value = {"code": code, **dataclasses.asdict(found), "targets": rules, "exit_code": 0}
        state.print_json(value)
        return 0
    state.out.print(f"{code}: {found.title}", style="bold")
    state.out.print(found.explanation)
    for rule in rules:
        state.out.print(f"{rule['severity']} on {rule['target']}: {rule['because']}")
    state.out.print(f"fix: {found.fix}")
    return 0
