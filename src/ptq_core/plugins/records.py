"""What the host knows about plugins, as frozen data: records, states, and entries with an owner."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Literal, TypeAlias, TypeVar

from ptq_core.target_types import TargetEntry
from ptq_core.types import (
    CalibratorEntry,
    CommandEntry,
    EncodingEntry,
    PreprocessorEntry,
    RunnerEntry,
)

Entry: TypeAlias = (
    CalibratorEntry | PreprocessorEntry | TargetEntry | RunnerEntry | EncodingEntry | CommandEntry
)
Kind: TypeAlias = Literal["calibrator", "preprocessor", "target", "runner", "encoding", "command"]

# Each kind of entry: the hook that offers it, and the class that the hook has to yield.
KINDS: Mapping[Kind, tuple[str, type[Entry]]] = {
    "calibrator": ("ptq_calibrators", CalibratorEntry),
    "preprocessor": ("ptq_preprocessors", PreprocessorEntry),
    "target": ("ptq_targets", TargetEntry),
    "runner": ("ptq_runners", RunnerEntry),
    "encoding": ("ptq_encodings", EncodingEntry),
    "command": ("ptq_commands", CommandEntry),
}


class State(StrEnum):
    """What became of a plugin."""

    ACTIVE = "active"
    DISABLED = "disabled"  # switched off by the user; its code was not imported
    INCOMPATIBLE = "incompatible"  # needs another plugin API; its hooks were not called
    BROKEN = "broken"  # raised, or offered something that its contract forbids


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginRecord:
    """One plugin: where it comes from, its state and the reason, and what it offers.

    Attributes:
        name: the distribution's name; the plugin's identity.
        entry_point: the entry point's name, unique within the distribution.
        version: the distribution's version.
        module: what the entry point names: ``module`` or ``module:attribute``.
        location: the module's file once imported, the distribution's folder before.
        built_in: ships inside core.
        state: what became of it.
        api_version: the plugin API that it was written for, None if that was not found out.
        error: why it is not active, in one line; "" if it is.
        exception: what the plugin raised, if that is why.
        entries: what it offers, by kind; empty unless it is active.
    """

    name: str
    entry_point: str
    version: str
    module: str = ""
    location: str = ""
    built_in: bool = False
    state: State = State.ACTIVE
    api_version: tuple[int, int] | None = None
    error: str = ""
    exception: BaseException | None = field(default=None, compare=False, repr=False)
    entries: Mapping[Kind, tuple[Entry, ...]] = field(default_factory=dict, hash=False, repr=False)

    def __str__(self) -> str:
        name = f"{self.name} ({self.entry_point})" if self.built_in else self.name
        return f"plugin '{name}' {self.version}".rstrip()

    @property
    def switch(self) -> str:
        """The name that ``--no-plugin`` takes to leave out this plugin and not all of core's."""
        return self.entry_point if self.built_in else self.name


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True, kw_only=True, slots=True)
class Registered(Generic[E]):
    """An entry and the plugin that offers it."""

    entry: E
    record: PluginRecord

    @property
    def qualified(self) -> str:
        """``plugin:NAME``, which finds this entry whatever else is installed."""
        return f"{self.record.name}:{self.entry.name}"


def folded(name: str) -> str:
    """A plugin's name as names are compared: case, and which of ``- _ .`` is used, do not count."""
    return re.sub(r"[-_.]+", "-", name.strip()).casefold()


def spellings(entry: Entry) -> frozenset[str]:
    """The entry's name and aliases, as look-up compares them."""
    return frozenset(name.casefold() for name in (entry.name, *entry.aliases))
