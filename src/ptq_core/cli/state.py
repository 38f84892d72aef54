"""What the parts of one command line share: options that every command takes, plugins, consoles."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ptq_core.plugins import PluginHost

# Nothing is wrapped where no terminal is: file names and node names stay whole for grep.
_UNLIMITED = 10_000


@dataclass
class State:
    """What this command line asked for, whatever the command.

    Attributes:
        json: one JSON object on stdout, everything else on stderr.
        verbose: 0; 1 for stages and notes; 2 for details too.
        no_plugin: plugins to leave out.
        no_plugins: leave out all that do not ship inside core.
        stdout: where results go; kept, because prints are redirected under ``json``.
        saved: a result was written, so that an interrupt can tell.
    """

    json: bool = False
    verbose: int = 0
    no_plugin: list[str] = field(default_factory=list)
    no_plugins: bool = False
    stdout: IO[str] = field(default_factory=lambda: sys.stdout)
    saved: bool = False

    @cached_property
    def host(self) -> PluginHost:
        """The installed plugins, found at the first use."""
        from ptq_core.plugins import discover

        return discover(disabled=self.no_plugin, autoload=not self.no_plugins)

    @cached_property
    def out(self) -> Console:
        """For people: stdout, or stderr where stdout belongs to JSON."""
        return make_console(sys.stderr) if self.json else make_console(self.stdout)

    @cached_property
    def err(self) -> Console:
        """For what went wrong."""
        return make_console(sys.stderr)

    def print_json(self, value: dict[str, Any]) -> None:
        """Put the one object on stdout."""
        import json

        self.stdout.write(json.dumps(finite(value), indent=2) + "\n")
        self.stdout.flush()

    def start_logging(self) -> None:
        """With -v, log lines go to stderr: ours, and those of libraries and plugins."""
        if self.verbose:
            form = "%(levelname).1s %(relativeCreated)7d ms  %(name)s: %(message)s"
            logging.basicConfig(level=logging.INFO, format=form, stream=sys.stderr)
            logging.getLogger("ptq").setLevel(logging.DEBUG if self.verbose > 1 else logging.INFO)


def make_console(file: IO[str]) -> Console:
    """A console that takes text as it is: names may hold brackets and colons."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            # the job goes on: its result is a file, and only nobody is listening any more
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())

    console = Quiet(file=file, markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


def make_table(*headings: str) -> Table:
    """A table without lines."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


# ----------------------------------------------------------------- options that every command takes


def _add_verbose(context: typer.Context, value: int) -> int:
    context.find_root().obj.verbose += value
    return value


def _add_no_plugin(context: typer.Context, value: list[str] | None) -> list[str] | None:
    context.find_root().obj.no_plugin += value or []
    return value


def _add_no_plugins(context: typer.Context, value: bool) -> bool:
    context.find_root().obj.no_plugins |= value
    return value


_PANEL = "In every command"

# Their callbacks put them into the State; the commands that declare them need not look at them.
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        callback=_add_verbose,
        show_default=False,
        metavar="",
        rich_help_panel=_PANEL,
        help="Log what is done to stderr; -vv: every tensor's range too.",
    ),
]
NoPlugin = Annotated[
    list[str] | None,
    typer.Option(
        "--no-plugin",
        metavar="NAME",
        callback=_add_no_plugin,
        is_eager=True,
        rich_help_panel=_PANEL,
        help="Leave this plugin out. Repeatable.",
    ),
]
NoPlugins = Annotated[
    bool,
    typer.Option(
        "--no-plugins",
        callback=_add_no_plugins,
        is_eager=True,
        rich_help_panel=_PANEL,
        help="Leave out all plugins that do not ship inside core.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on stdout, everything else on stderr."),
]
