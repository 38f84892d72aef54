"""``ptq plugins list`` and ``ptq plugins show``."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from ptq_core.plugins import PluginRecord
    from ptq_core.plugins.records import Entry

commands = typer.Typer(name="plugins", help="What is installed.")

_STYLES = {"active": "green", "disabled": "dim", "incompatible": "red", "broken": "red"}
_ATTRIBUTE = re.compile(r"(\w+):\s*(.*)")


@commands.command("list")
def list_plugins(
    context: typer.Context,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """List all plugins: state, version, and what each offers, or why it does not."""
    from rich.text import Text

    from ptq_core.cli.state import make_table

    state: State = context.obj
    host = state.host
    if json:
        found = [_as_json(record) for record in host.records]
        state.print_json({"plugins": found, "warnings": host.warnings, "exit_code": 0})
        return 0
    table = make_table("plugin", "version", "state", "offers")
    for record in host.records:
        table.add_row(
            _name(record),
            record.version,
            Text(record.state, style=_STYLES[record.state]),
            record.error or _offers(record),
        )
    state.out.print(table, soft_wrap=False)
    for text in host.warnings:
        state.out.print(f"warning: {text}", style="yellow")
    return 0


@commands.command("show")
def show_plugin(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A plugin, or something that one offers.")
    ],
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Show one plugin: where it comes from, what it offers, and the options of that."""
    state: State = context.obj
    records = _find(state, name)
    if json:
        found = [_as_json(record, options=True) for record in records]
        state.print_json({"plugins": found, "exit_code": 0})
        return 0
    for record in records:
        _print(state, record)
    return 0


def _find(state: State, name: str) -> list[PluginRecord]:
    """The plugins of this name, else those that offer something of this name."""
    from ptq_core.plugins.records import folded, spellings

    records = state.host.records
    found = [r for r in records if folded(name) in (folded(r.name), folded(r.entry_point))]
    found = found or [
        record
        for record in records
        if any(name.casefold() in spellings(entry) for _, entry in _entries(record))
    ]
    if not found:
        names = [one.switch for one in records]
        names += [entry.name for record in records for _, entry in _entries(record)]
        raise InputError(f"no plugin '{name}' is installed", hint=did_you_mean(name, names))
    return found


def _entries(record: PluginRecord) -> Iterator[tuple[str, Entry]]:
    for kind, entries in record.entries.items():
        for entry in entries:
            yield kind, entry


def _name(record: PluginRecord) -> str:
    return f"{record.name} ({record.entry_point})" if record.built_in else record.name


def _offers(record: PluginRecord) -> str:
    return ", ".join(f"{kind} {entry.name}" for kind, entry in _entries(record)) or "nothing"


def _as_json(record: PluginRecord, *, options: bool = False) -> dict[str, Any]:
    offered = []
    for kind, entry in _entries(record):
        one: dict[str, Any] = {
            "kind": kind,
            "name": entry.name,
            "summary": entry.summary,
            "aliases": entry.aliases,
        }
        if options:
            one["options"] = [dataclasses.asdict(option) for option in entry_options(entry)]
        offered.append(one)
    return {
        "name": record.name,
        "entry_point": record.entry_point,
        "version": record.version,
        "state": str(record.state),
        "built_in": record.built_in,
        "api_version": record.api_version,
        "module": record.module,
        "location": record.location,
        "error": record.error,
        "offers": offered,
    }


def _print(state: State, record: PluginRecord) -> None:
    out = state.out
    out.print(f"{_name(record)} {record.version}", style="bold")
    out.print(f"  state     {record.state}", style=_STYLES[record.state])
    if record.error:
        out.print(f"  reason    {record.error}")
    if record.api_version is not None:
        out.print(f"  API       {'.'.join(map(str, record.api_version))}")
    out.print(f"  module    {record.module}")
    out.print(f"  location  {record.location}")
    for kind, entry in _entries(record):
        also = f" (also {', '.join(entry.aliases)})" if entry.aliases else ""
        out.print(f"\n{kind} {entry.name}{also}: {entry.summary}")
        found = list(entry_options(entry))
        if found:
            out.print(f"  keys of [{kind}.{entry.name}]:")
        for option in found:
            out.print(f"  {option.name}: {option.type} = {option.default}")
            if option.doc:
                out.print(f"      {option.doc}", style="dim")


# ---------------------------------------------------------------------------------- options


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One key that an entry takes.

    Attributes:
        name: the key.
        type: in words.
        default: as text, ``required`` where there is none.
        doc: from the docstring of the options.
    """

    name: str
    type: str
    default: str
    doc: str


def entry_options(entry: Entry) -> Iterator[Option]:
    """The options of an entry, whatever its kind."""
    options = getattr(entry, "options", None)
    if not dataclasses.is_dataclass(options) or not isinstance(options, type):
        return
    docs = _attribute_docs(options)
    try:
        hints = get_type_hints(options)
    except (NameError, TypeError):  # names that exist for type checkers only
        hints = {}
    for one in dataclasses.fields(options):
        if one.init:
            yield Option(
                name=one.name,
                type=_in_words(hints.get(one.name, one.type)),
                default=_default(one),
                doc=docs.get(one.name, ""),
            )


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default_factory is not dataclasses.MISSING:
        return repr(one.default_factory())
    if one.default is dataclasses.MISSING:
        return "required"
    return "not set" if one.default is None else repr(one.default)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    parts = get_args(hint)
    if type(None) in parts:  # that it may be left out is what its default says
        return " | ".join(_in_words(part) for part in parts if part is not type(None))
    return str(hint).replace("typing.", "")


def _attribute_docs(options: type) -> dict[str, str]:
    """The text of each field in the section ``Attributes:`` of the class's docstring."""
    lines = inspect.cleandoc(options.__doc__ or "").splitlines()
    docs: dict[str, str] = {}
    name = ""
    inside = False
    for line in lines:
        if line and not line.startswith(" "):
            inside = line.strip() == "Attributes:"
        elif inside and line.strip():
            found = _ATTRIBUTE.fullmatch(line.strip())
            indent = len(line) - len(line.lstrip())
            if found and indent <= 4:
                name = found[1]
                docs[name] = found[2]
            elif name:
                docs[name] += " " + line.strip()
    return docs
