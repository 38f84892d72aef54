"""The command ``ptq`` itself: which subcommands there are, ours and those of plugins."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ptq_core import __version__
from ptq_core.cli import (
    calibrate,
    check,
    compare,
    config,
    converter_lite,
    pack,
    plan,
    plugins,
    quantize,
    targets,
)
from ptq_core.cli.state import NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import InputError, PluginError, Problem, did_you_mean

if TYPE_CHECKING:
    from ptq_core.plugins import Registered
    from ptq_core.types import CommandEntry


def root() -> Any:
    """The command with all its subcommands, to be invoked with a State as ``obj``."""
    app = typer.Typer(cls=_Root, add_completion=False, rich_markup_mode="rich")
    app.callback(invoke_without_command=True)(_root)
    app.command("quantize", short_help="Quantize a model.")(quantize.quantize)
    app.command("calibrate", short_help="Find ranges, compare methods, keep them in a table.")(
        calibrate.calibrate
    )
    app.command("plan", short_help="Show what would become of every node.")(plan.plan)
    app.command("check", short_help="Check a quantized model by a device's rules.")(check.check)
    app.command("compare", short_help="Two models side by side; what a device will compute.")(
        compare.compare
    )
    app.command("pack", short_help="Put a model into an archive.")(pack.pack)
    app.command("unpack", short_help="Give back the model in an archive.")(pack.unpack)
    app.command("converter_lite", short_help="The same, told as converter_lite is told.")(
        converter_lite.converter_lite
    )
    for group in (config.commands, plugins.commands, targets.commands):
        app.add_typer(group)
    return typer.main.get_command(app)


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> None:
    """Make float32 ONNX models smaller and faster: post-training quantization.

    Exit codes: 0 done, 1 done but a quality gate was missed, 2 bad input (nothing was written),
    3 a plugin failed, 4 internal error, 130 interrupted.
    """
    if version:
        typer.echo(f"ptq {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


class _Root(TyperGroup):
    """Knows the commands of plugins too; its help is plain text, for rich takes 0.1 s to import."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.rich_markup_mode = None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return found or _Foreign(_find(ctx.obj, cmd_name, list(self.commands)))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        super().format_commands(ctx, formatter)
        offered = [
            one for one in ctx.obj.host.entries("command") if one.entry.name not in self.commands
        ]
        if offered:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(
                    [
                        (one.entry.name, f"{one.entry.summary} ({one.record.name})")
                        for one in offered
                    ]
                )


class _Foreign(TyperCommand):
    """A plugin's command; all words after its name are its own affair."""

    def __init__(self, registered: Registered[CommandEntry]) -> None:
        super().__init__(registered.entry.name, add_help_option=False)
        self._registered = registered

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return args

    def invoke(self, ctx: Any) -> int:
        from ptq_core.plugins import blame

        registered = self._registered
        with (
            blame(registered.record, f"running the command '{self.name}'"),
            contextlib.redirect_stdout(ctx.find_root().obj.stdout),  # also under --json
        ):
            code: Any
            try:
                code = registered.entry.factory()(ctx.args)
            except SystemExit as done:  # a command line made with argparse or click
                code = 0 if done.code is None else done.code
                if isinstance(code, str):
                    sys.stderr.write(code + "\n")
                    code = 1
        if not isinstance(code, int):
            raise PluginError(
                f"{registered.record}: the command '{self.name}' returned {code!r}, "
                "expected its exit code"
            )
        return code


def _find(state: State, name: str, ours: list[str]) -> Registered[CommandEntry]:
    try:
        return state.host.command(name)
    except InputError as error:
        names = [*ours, *(one.entry.name for one in state.host.entries("command"))]
        found = [
            Problem(message=problem.message, hint=did_you_mean(name, names))
            if problem.message.startswith("no command")
            else problem
            for problem in error.problems
        ]
        raise InputError(problems=found) from None
