"""What both syntaxes are read into: sections, their keys with line numbers, and what went wrong.

A :class:`Document` knows nothing about which sections and keys exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ptq_core.errors import Location, Problem

Syntax = Literal["ini", "toml"]

ABOVE_SECTIONS = "write its section, for example [common_quant_param], above it"
PLUGIN_KINDS = ("calibrator", "target", "preprocessor", "runner", "encoding")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's value and where it stands."""

    value: Any
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A section as written; ``[calibrator.KL]`` is named ``calibrator.KL``."""

    name: str
    line: int | None = None
    entries: dict[str, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class Document:
    """The sections of one configuration, by :func:`section_key`."""

    file: str | None = None
    syntax: Syntax = "ini"
    sections: dict[str, Section] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def open_section(self, name: str, line: int | None) -> Section:
        """The section of this name; sections of one name merge."""
        return self.sections.setdefault(section_key(name), Section(name, line))

    def add(self, section: Section, key: str, value: Any, line: int | None) -> None:
        """Enter a key; a second value for it is a problem."""
        first = section.entries.get(key)
        if first is None:
            section.entries[key] = Entry(value, line)
            return
        lines = f", on lines {first.line} and {line}" if line is not None else ""
        self.complain(
            f"'{key}' is set twice{lines}", line=line, section=section.name, hint="keep one of them"
        )

    def complain(
        self, message: str, *, line: int | None = None, section: str | None = None, hint: str = ""
    ) -> None:
        """Note a problem; reading goes on."""
        location = Location(file=self.file, line=line, section=section)
        self.problems.append(Problem(message=message, location=location, hint=hint))

    def locate(self, section: str, key: str | None = None) -> Location:
        """Where a key stands, else its section, else the file."""
        found = self.sections.get(section_key(section))
        if found is None:
            return Location(file=self.file)
        entry = found.entries.get(key) if key is not None else None
        line = found.line if entry is None else entry.line
        return Location(file=self.file, line=line, section=found.name)


def section_key(name: str) -> str:
    """A section's identity: plugin names ignore case, other names do not."""
    kind, dot, plugin = name.partition(".")
    if dot and kind.strip() in PLUGIN_KINDS:
        return f"{kind.strip()}.{plugin.strip().casefold()}"
    return name


def document_from_tables(
    tables: Mapping[Any, Any],
    *,
    file: str | None = None,
    lines: Mapping[tuple[str, ...], int] | None = None,
) -> Document:
    """A document from nested mappings, as TOML and Python give them.

    ``{"calibrator": {"KL": {...}}}`` and ``{"calibrator.KL": {...}}`` are the same section. A value
    of None means that the key is not set.
    """
    document = Document(file, "toml")

    def line_of(*path: str) -> int | None:
        # a key of an inline table has no line of its own
        for length in range(len(path), 0, -1):
            if lines and path[:length] in lines:
                return lines[path[:length]]
        return None

    def fill(section: Section, table: Mapping[Any, Any], *path: str) -> None:
        for key, value in table.items():
            if value is not None:
                document.add(section, str(key), value, line_of(*path, str(key)))

    for outer, table in tables.items():
        name = str(outer)
        line = line_of(name)
        if isinstance(table, list) and table and all(isinstance(t, Mapping) for t in table):
            document.complain(f"[[{name}]] is a list", line=line, hint=f"write [{name}], once")
            table = table[0]
        if not isinstance(table, Mapping):
            document.complain(
                f"'{name}' stands above the first section", line=line, hint=ABOVE_SECTIONS
            )
            continue
        nested: dict[Any, Any] = {}
        if name in PLUGIN_KINDS:
            nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
        own = {key: value for key, value in table.items() if key not in nested}
        if own or not nested:
            fill(document.open_section(name, line), own, name)
        for plugin, options in nested.items():
            section = document.open_section(f"{name}.{plugin}", line_of(name, str(plugin)))
            fill(section, options, name, str(plugin))
    return document
