"""``ptq targets list``, ``show``, ``check`` and ``new``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli.plugins import entry_options
from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import ConfigError, InputError, Location, Problem

if TYPE_CHECKING:
    from ptq_core.jobs import Device, Report
    from ptq_core.target_types import OperatorRule, TargetEntry
    from ptq_core.types import QScheme

commands = typer.Typer(name="targets", help="Devices: show them, write one, try it out.")

_Target = Annotated[str, typer.Argument(metavar="TARGET", help="A device's name, or a TOML file.")]
_FUNCTIONS = {
    "keep_float": "keeps nodes in float for reasons that rules cannot state",
    "lower": "writes further files for its toolchain",
    "check": "has further rules for `ptq check`",
    "arithmetic": "has its integer arithmetic at hand, for `ptq compare --emulate`",
}


@commands.command("list")
def list_targets(
    context: typer.Context,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """List the devices that are installed."""
    from ptq_core.cli.state import make_table

    state: State = context.obj
    found = state.host.entries("target")
    if json:
        targets = [
            {
                "name": one.entry.name,
                "aliases": list(one.entry.aliases),
                "summary": one.entry.summary,
                "plugin": one.record.name,
                "version": one.record.version,
            }
            for one in found
        ]
        state.print_json({"targets": targets, "warnings": state.host.warnings, "exit_code": 0})
        return 0
    table = make_table("target", "activations", "weights", "plugin", "what it is")
    for one in found:
        spec = one.entry.spec
        table.add_row(
            one.entry.name,
            spec.activation.dtype,
            spec.weight.dtype,
            f"{one.record.name} {one.record.version}",
            one.entry.summary,
        )
    state.out.print(table, soft_wrap=False)
    for text in state.host.warnings:
        state.out.print(f"warning: {text}", style="yellow")
    return 0


@commands.command("show")
def show(
    context: typer.Context,
    target: _Target,
    toml: Annotated[
        bool, typer.Option("--toml", help="As a TOML file, to make another device from.")
    ] = False,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Show what a device needs: number formats, every operator, its rules for `ptq check`."""
    state: State = context.obj
    entry = _find(state, target).entry
    if json:
        state.print_json({**_as_json(entry), "exit_code": 0})
    elif toml:
        from ptq_core.target_text import target_to_toml

        state.stdout.write(target_to_toml(entry))
    else:
        _print(state, entry)
    return 0


@commands.command("check")
def check(
    context: typer.Context,
    target: _Target,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Check a device: is its data plausible, and does a small network pass through it?

    The network is quantized for the device, compared with its float form, and checked by the
    device's own rules.
    """
    from ptq_core.jobs import arithmetic_problems, data_problems, trial
    from ptq_core.plugins import blame

    state: State = context.obj
    device = _find(state, target)
    entry, where = device.entry, Location(file=target)
    problems = list(data_problems(entry))
    report: Report | None = None
    if not problems:
        try:
            report = trial(entry, state.host, target)
        except InputError as error:  # a plugin that fails is told as such
            problems += error.problems
    if report is not None:
        problems += _result_problems(report)
    if entry.arithmetic is not None and device.record is not None:
        with blame(device.record, f"making the arithmetic of {entry.name}"):
            arithmetic = entry.arithmetic()
        problems += arithmetic_problems(arithmetic, device.record)
    if problems:
        raise ConfigError(
            problems=[
                dataclasses.replace(one, location=one.location if str(one.location) else where)
                for one in problems
            ]
        )
    warnings = [] if report is None else report.warnings
    if json:
        state.print_json({"target": entry.name, "warnings": warnings, "exit_code": 0})
        return 0
    state.out.print(f"{entry.name}: no problems found", style="bold green")
    if report is not None and report.verification is not None:
        state.out.print(
            f"a network of random numbers: {report.plan.count('integer')} operators in integers, "
            f"cosine {report.verification.cosine or 0.0:.6f}"
        )
    for text in warnings:
        state.out.print(f"warning: {text}", style="yellow")
    return 0


@commands.command("new")
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What users will write.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="By default NAME.toml."),
    ] = None,
    like: Annotated[
        str | None, typer.Option("--from", metavar="TARGET", help="Start from this device's data.")
    ] = None,
    package: Annotated[
        bool, typer.Option("--package", help="A folder with a plugin around it, to be published.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Write a device as a TOML file to start from."""
    from ptq_core.target_text import new_package, new_target, target_to_toml

    state: State = context.obj
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?", name):
        raise InputError(
            f"'{name}' is no name for a device",
            hint="letters and digits, - and _ between them, such as MY_NPU",
        )
    if like is None:
        text = new_target(name)
    else:
        entry = _find(state, like).entry
        text = target_to_toml(dataclasses.replace(entry, name=name, aliases=()))
        code = [what for key, what in _FUNCTIONS.items() if getattr(entry, key) is not None]
        if code:
            state.out.print(f"note: only data is taken over. {entry.name} also {'; '.join(code)}")
    slug = name.lower().replace("_", "-")
    if package:
        folder = output or Path(f"ptq-target-{slug}")
        files = {folder / path: content for path, content in new_package(name, text).items()}
    else:
        files = {output or Path(f"{name.lower()}.toml"): text}
    existing = [path for path in files if path.exists()]
    if existing and not force:
        problems = [
            Problem(
                message="there is such a file",
                location=Location(file=str(path)),
                hint="--force replaces it",
            )
            for path in existing
        ]
        raise InputError(problems=problems)
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"cannot be written: {error.strerror}", location=Location(file=str(path))
            ) from error
        state.out.print(f"wrote {path}")
    if package:
        state.out.print(f"next: pip install -e {folder}, then ptq targets check {name}")
    else:
        (path,) = files
        state.out.print(f"next: ptq targets check {path}, then --target {path}")
    return 0


def _find(state: State, target: str) -> Device:
    """The device of this name or in this file."""
    from ptq_core.config import config_from_values
    from ptq_core.jobs import find_target

    values = {"common_quant_param": {"quant_type": "FULL_QUANT"}, "full_quant_param": {}}
    return find_target(config_from_values(values, has_data=True, target=target), state.host)


def _result_problems(report: Report) -> list[Problem]:
    """What a trial has shown."""
    found = [
        Problem(
            message=f"the trial's result breaks its own rule {one.code}: {one.message}",
            location=Location(node=one.node or None, tensor=one.tensor or None),
            hint=one.fix,
        )
        for one in report.findings
    ]
    if not report.passed and report.verification is not None:
        found.append(
            Problem(
                message="the trial's result is far from its float form: cosine "
                f"{report.verification.cosine or 0.0:.4f}, expected at least {report.gate:g}",
                hint="are the types and ranges of codes, and fixed parameters, as they should be?",
            )
        )
    return found


# --------------------------------------------------------------------------------------- showing


def _as_json(entry: TargetEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "aliases": list(entry.aliases),
        "spec": dataclasses.asdict(entry.spec),
        "options": [dataclasses.asdict(one) for one in entry_options(entry)],
        "functions": [name for name in _FUNCTIONS if getattr(entry, name) is not None],
    }


def _print(state: State, entry: TargetEntry) -> None:
    from ptq_core.cli.state import make_table

    out, spec = state.out, entry.spec
    also = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
    out.print(f"{entry.name}{also}: {entry.summary}", style="bold")
    opset = f"{spec.minimum_opset} to {spec.maximum_opset or 'any'}"
    facts = {
        "activations": _scheme(spec.activation),
        "weights": _scheme(spec.weight),
        "biases": "int32" if spec.bias == "int32" else "float",
        "opset": opset,
        "shapes": "static only" if spec.static_shapes else "any",
        "dynamic quantization": ", ".join(spec.dynamic_operators) or "no",
    }
    for name, text in facts.items():
        out.print(f"  {name:<21} {text}")
    for name, text in _FUNCTIONS.items():
        if getattr(entry, name) is not None:
            out.print(f"  it {text}")
    options = list(entry_options(entry))
    if options:
        out.print(f"  keys of [target.{entry.name}]:")
    for option in options:
        out.print(f"  {option.name}: {option.type} = {option.default}")
        if option.doc:
            out.print(f"      {option.doc}", style="dim")
    table = make_table("operator", "integer", "result", "conditions")
    for name, rule in spec.operators.items():
        result = "" if rule.quantize == "never" else rule.output.replace("_", " ")
        table.add_row(name, rule.quantize, result, "; ".join(_conditions(rule)))
    out.print(table, soft_wrap=False)
    if spec.checks:
        table = make_table("rule", "severity", "what happens otherwise")
        for code, one in sorted(spec.checks.items()):
            table.add_row(code, one.severity, one.because)
        out.print(table, soft_wrap=False)


def _scheme(scheme: QScheme) -> str:
    form = "symmetric" if scheme.symmetric else "with a zero point"
    return f"{scheme.dtype}, {form}, {scheme.qmin} to {scheme.qmax}"


def _conditions(rule: OperatorRule) -> list[str]:
    """A rule's details in words."""
    found = []
    if rule.per_channel:
        found.append("scale per channel")
    if rule.same_parameters:
        found.append("scale and zero point of its input")
    if rule.two_activations:
        found.append("two activations, too")
    if rule.fuse:
        found.append(f"merges {', '.join(rule.fuse)}")
    for name, values in rule.attributes.items():
        found.append(f"{name} = {' or '.join(map(str, values))}")
    if rule.fixed_output is not None:
        fixed = rule.fixed_output
        found.append(f"scale {fixed.scale:g}, zero point {fixed.zero_point}")
    if rule.reason:
        found.append(rule.reason)
    return found
