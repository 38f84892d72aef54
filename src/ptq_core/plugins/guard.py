"""A target with functions that name their plugin for what they raise and for what they give."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from ptq_core.errors import InputError, PluginError
from ptq_core.plugins.host import blame
from ptq_core.plugins.records import PluginRecord, Registered
from ptq_core.target_types import (
    Deployment,
    ExtraFile,
    Finding,
    NodeFacts,
    Severity,
    TargetEntry,
    TargetSpec,
)
from ptq_core.targets import spec_problems


def guarded(found: Registered[TargetEntry]) -> TargetEntry:
    """The target, to be used instead of the plugin's own.

    Its functions raise a PluginError where the plugin's raise or give something else than
    :class:`~ptq_core.target_types.TargetEntry` says; a ValueError of ``lower`` becomes an
    InputError, for it tells the user what cannot be had. ``arithmetic`` is left as it is: its
    results are checked where they are used.
    """
    guard = _Guard(found)
    names = ("configure", "keep_float", "lower", "check")
    given: dict[str, Any] = {
        name: getattr(guard, name) for name in names if getattr(found.entry, name) is not None
    }
    return dataclasses.replace(found.entry, **given)


class _Guard:
    """The functions of one target."""

    def __init__(self, found: Registered[TargetEntry]) -> None:
        self._entry: Any = found.entry  # a function that is None is not asked
        self._record: PluginRecord = found.record

    def configure(self, spec: TargetSpec, options: object) -> TargetSpec:
        with blame(self._record, f"configuring {self._entry.name}"):
            made: TargetSpec = self._entry.configure(spec, options)
        if problems := spec_problems(made):
            raise self._wrong(f"configure gave a wrong spec: {'; '.join(problems)}")
        return made

    def keep_float(self, facts: NodeFacts) -> str | None:
        with blame(self._record, f"asking {self._entry.name} about a {facts.op_type}"):
            reason = self._entry.keep_float(facts)
        if reason is None or (isinstance(reason, str) and reason):
            return reason
        raise self._wrong(
            f"keep_float gave {_shown(reason)} for a {facts.op_type}, expected a reason as text, "
            "or None"
        )

    def lower(self, model: bytes | Path, deployment: Deployment) -> tuple[ExtraFile, ...]:
        name = self._entry.name
        with blame(self._record, f"making the files for {name}"):
            try:
                files = tuple(self._entry.lower(model, deployment))
            except ValueError as error:
                raise InputError(f"no files for {name}: {error}") from error
        seen: set[str] = set()
        for one in files:
            if problem := _file_problem(one, seen):
                raise self._wrong(f"lower gave {problem}")
            seen.add(one.name)
        return files

    def check(self, model: bytes | Path) -> Iterator[Finding]:
        with blame(self._record, f"checking the model for {self._entry.name}"):
            found: Iterable[object] = list(self._entry.check(model))
        for one in found:
            if not isinstance(one, Finding):
                raise self._wrong(f"check gave {_shown(one)}, expected a Finding")
            if problem := _finding_problem(one):
                raise self._wrong(f"check gave a Finding whose {problem}")
            yield one

    def _wrong(self, what: str) -> PluginError:
        return PluginError(
            f"{self._record}, target {self._entry.name}: {what}",
            hint=f"use --no-plugin {self._record.switch} to leave it out",
        )


def _file_problem(found: object, seen: set[str]) -> str:
    """Why this is no file to write beside the model, "" where it is one."""
    if not isinstance(found, ExtraFile):
        return f"{_shown(found)}, expected an ExtraFile"
    name = found.name
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        return f"a file called {name!r}, expected a name without folder"
    if name in seen:
        return f"two files called '{name}'"
    if not isinstance(found.content, bytes) or not isinstance(found.summary, str):
        kinds = f"{type(found.content).__name__} and {type(found.summary).__name__}"
        return f"'{name}' with content and summary of {kinds}, expected bytes and str"
    return ""


def _finding_problem(found: Finding) -> str:
    """Which field is wrong, "" where none is."""
    for one in dataclasses.fields(found):
        value = getattr(found, one.name)
        if not isinstance(value, str):
            return f"{one.name} is {_shown(value)}, expected text"
    if found.severity not in get_args(Severity):
        return f"severity is {_shown(found.severity)}, expected error or warning"
    return ""


def _shown(found: object) -> str:
    return reprlib.repr(found)
