"""Which sections and keys of a document ptq knows, and what is said about the others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from ptq_core.config.document import PLUGIN_KINDS, Document, Entry, Section
from ptq_core.config.sections import (
    NO_EFFECT_KEYS,
    NO_EFFECT_SECTIONS,
    NOTED_KEYS,
    RUNNER,
    RUNNER_KEYS,
    SECTIONS,
)
from ptq_core.errors import Location, Problem, did_you_mean


@dataclass(frozen=True, slots=True)
class Recognised:
    """The document with known names only, and what was left out of it."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def recognise(document: Document) -> Recognised:
    """Sort out unknown names.

    A misspelt name is a problem; checking goes on as if it were spelt right, so that it is not
    reported as missing too.
    """
    result = Recognised(Document(document.file, document.syntax))
    sections = result.document.sections
    for name, section in document.sections.items():
        location = document.locate(name)
        kind, _, plugin = name.partition(".")
        if name in SECTIONS or name == RUNNER or (kind in PLUGIN_KINDS and plugin):
            sections[name] = section
        elif name in NO_EFFECT_SECTIONS:
            reason = NO_EFFECT_SECTIONS[name] or "ptq knows it but does not use it"
            message = f"[{name}] has no effect: {reason}"
            result.warnings.append(Problem(message=message, location=location))
        else:
            problem = _unknown_section(section.name, location)
            result.problems.append(problem)
            meant = _nearest(section.name, set(SECTIONS) - set(document.sections))
            if meant is not None:
                sections[meant] = section
    for name, section in sections.items():
        if name in SECTIONS or name == RUNNER:
            sections[name] = Section(section.name, section.line, _known_keys(name, result))
    return result


def _unknown_section(name: str, location: Location) -> Problem:
    kind, dot, _ = name.partition(".")
    if kind in PLUGIN_KINDS:
        hint = f"the options of a {kind} are in [{kind}.NAME]"
    elif dot:
        hint = did_you_mean(kind, PLUGIN_KINDS)
    else:
        hint = did_you_mean(name, (*SECTIONS, RUNNER, *NO_EFFECT_SECTIONS))
    return Problem(message=f"unknown section [{name}]", location=location, hint=hint)


def _known_keys(name: str, result: Recognised) -> dict[str, Entry]:
    section = result.document.sections[name]
    allowed = tuple(SECTIONS[name].model_fields) if name in SECTIONS else RUNNER_KEYS
    noted, note = NOTED_KEYS.get(name, ((), ""))
    entries: dict[str, Entry] = {}
    for key, entry in section.entries.items():
        location = result.document.locate(name, key)
        if key in allowed:
            entries[key] = entry
        elif key in NO_EFFECT_KEYS.get(name, ()):
            result.warnings.append(
                Problem(message=f"'{key}' has no effect here", location=location)
            )
        elif key in noted:
            result.notes.append(Problem(message=f"'{key}': {note}", location=location))
        else:
            homes = [f"[{home}]" for home, model in SECTIONS.items() if key in model.model_fields]
            hint = f"it belongs in {' or '.join(homes)}" if homes else did_you_mean(key, allowed)
            message = f"unknown key '{key}' in [{section.name}]"
            result.problems.append(Problem(message=message, location=location, hint=hint))
            meant = None if homes else _nearest(key, set(allowed) - set(section.entries))
            if meant is not None:
                entries.setdefault(meant, entry)
    return entries


def _nearest(found: str, allowed: Iterable[str]) -> str | None:
    folded = {name.casefold(): name for name in sorted(allowed)}
    near = difflib.get_close_matches(found.casefold(), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None
