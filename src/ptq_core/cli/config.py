"""``ptq config new`` and ``ptq config check``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import ConfigError, InputError, Location, Problem, PtqError

if TYPE_CHECKING:
    from ptq_core.config import Config
    from ptq_core.plugins import PluginHost

commands = typer.Typer(name="config", help="Write and check configs.")


class Syntax(StrEnum):
    """How a config is written."""

    ini = "ini"
    toml = "toml"


@commands.command("new")
def new(
    context: typer.Context,
    template: Annotated[
        str,
        typer.Argument(
            metavar="TEMPLATE",
            help="full_quant, fixed_bit_weight_quant, mixed_bit_weight_quant or dynamic_quant.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write it there, not to stdout."),
    ] = None,
    syntax: Annotated[
        Syntax | None,
        typer.Option("--format", help="By FILE's suffix, else ini.", case_sensitive=False),
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="For this device.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    verbose: Verbose = 0,
) -> int:
    """Write a commented config to start from."""
    from ptq_core.config import template as make

    state: State = context.obj
    toml_file = output is not None and output.suffix.casefold() == ".toml"
    chosen = syntax or (Syntax.toml if toml_file else Syntax.ini)
    text = make(template, chosen.value, target)
    if output is None:
        state.stdout.write(text)
        return 0
    where = Location(file=str(output))
    if (chosen is Syntax.toml) != toml_file:
        raise InputError(
            f"--format {chosen.value}, but a file of this name is read as "
            f"{'toml' if toml_file else 'ini'}",
            location=where,
            hint="the suffix .toml means TOML, any other INI",
        )
    if output.exists() and not force:
        raise InputError("there is such a file", location=where, hint="--force replaces it")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", location=where) from error
    state.out.print(f"wrote {output}")
    return 0


@commands.command("check")
def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The config.")],
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Check a config: everything that is wrong with it, and what has no effect.

    Also checked: that the plugins it names are installed, and that they take the options that it
    gives them. Its folders need not exist.
    """
    from ptq_core.config import load_config

    state: State = context.obj
    config = load_config(file)
    problems, warnings = _with_plugins(config, state.host)
    if problems:
        raise ConfigError(problems=problems)
    warnings = [*config.warnings, *warnings]
    notes = [*config.notes, *_notes(config)]
    if json:
        state.print_json(
            {
                "config": str(file),
                "quant_type": config.common.quant_type,
                "target": config.target,
                "warnings": [str(one) for one in warnings],
                "notes": [str(one) for one in notes],
                "exit_code": 0,
            }
        )
        return 0
    state.out.print(f"{file}: {config.common.quant_type} for {config.target}, no problems found")
    for one in warnings:
        state.out.print(f"warning: {one}", style="yellow")
    for one in notes:
        state.out.print(f"note: {one}", style="dim")
    return 0


def _with_plugins(config: Config, host: PluginHost) -> tuple[list[Problem], list[Problem]]:
    """Problems with the plugins that the config names and their options, and warnings."""
    from ptq_core.config import unused_options, validate_options
    from ptq_core.jobs import find_target

    problems: list[Problem] = []
    warnings: list[Problem] = []
    used: list[tuple[str, str]] = []

    def attempt(do: Callable[[], Any], where: Location) -> Any:
        try:
            return do()
        except PtqError as error:
            problems.extend(_located(error, where))
            return None

    where = config.locate("full_quant_param", "target_device")
    device = attempt(lambda: find_target(config, host), where)
    if device is not None:
        used += [("target", name) for name in (device.entry.name, *device.entry.aliases)]
    for kind, name, where in _named(config):
        used.append((kind, name))  # its options have an effect, installed or not
        found = attempt(lambda kind=kind, name=name: host.find(kind, name), where)  # type: ignore[misc]
        if found is None:
            continue
        entry = found.entry
        result = attempt(
            lambda kind=kind, entry=entry: validate_options(  # type: ignore[misc]
                entry.options, kind, entry.name, config, aliases=entry.aliases
            ),
            where,
        )
        used.append((kind, entry.name))
        warnings += result[1] if result is not None else ()
    if config.common.quant_type == "FULL_QUANT":
        warnings += unused_options(config, used)
    return problems, warnings


def _named(config: Config) -> Iterator[tuple[Any, str, Location]]:
    """The plugins besides the device that the job would use: kind, name, and where it stands."""
    if config.common.quant_type == "FULL_QUANT" and config.full is not None:
        where = config.locate("full_quant_param", "activation_quant_method")
        yield "calibrator", config.full.activation_quant_method, where
        if config.data is not None and config.data.input_type is not None:
            where = config.locate("data_preprocess_param", "input_type")
            yield "preprocessor", config.data.input_type, where
    if config.runner is not None:
        yield "runner", config.runner, config.locate("runner", "name")


def _located(error: PtqError, where: Location) -> Iterator[Problem]:
    for problem in error.problems:
        located = problem.location if str(problem.location) else where
        yield Problem(message=problem.message, location=located, hint=problem.hint)


def _notes(config: Config) -> Iterator[Problem]:
    from ptq_core.config import resolve_path

    for name, folder in (config.data.calibrate_path if config.data is not None else {}).items():
        path, note = resolve_path(config, folder)
        where = config.locate("data_preprocess_param", "calibrate_path")
        if note:
            yield Problem(message=note, location=where)
        elif not path.exists():
            yield Problem(message=f"the folder for '{name}' is not there: {path}", location=where)
