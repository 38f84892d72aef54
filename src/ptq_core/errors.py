"""What can go wrong, how it is told, and the exit code that follows.

Every error carries one or more :class:`Problem`: what was found and what was expected, where, and
what to do next. A stage that can find several problems collects them and raises once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    GATE_MISSED = 1  # the job is done and its output kept, but a quality gate failed
    BAD_INPUT = 2  # the config, the model, the data or the command line; nothing was written
    PLUGIN_FAILED = 3
    INTERNAL = 4  # a defect of ptq
    INTERRUPTED = 130  # 128 + SIGINT, as shells expect


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a problem is; every part is optional."""

    file: str | None = None
    line: int | None = None
    section: str | None = None
    node: str | None = None
    tensor: str | None = None

    def __str__(self) -> str:
        parts = []
        if self.file is not None:
            parts.append(self.file if self.line is None else f"{self.file}:{self.line}")
        if self.section is not None:
            parts.append(f"[{self.section}]")
        if self.node is not None:
            parts.append(f"node '{self.node}'")
        if self.tensor is not None:
            parts.append(f"tensor '{self.tensor}'")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: what was found and expected, where, and what to do next."""

    message: str
    location: Location = field(default_factory=Location)
    hint: str = ""

    def __str__(self) -> str:
        where = str(self.location)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class PtqError(Exception):
    """Base of all errors that ptq raises on purpose.

    Args:
        message: what was found and what was expected.
        location: where.
        hint: what to do next.
        problems: instead of the three above, several problems at once.
    """

    code = "PTQ000"
    exit_code = ExitCode.INTERNAL

    def __init__(
        self,
        message: str = "",
        *,
        location: Location | None = None,
        hint: str = "",
        problems: Iterable[Problem] = (),
    ) -> None:
        given = tuple(problems)
        self.problems: tuple[Problem, ...] = given or (
            Problem(message=message, location=location or Location(), hint=hint),
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InputError(PtqError):
    """Something the user gave cannot be used."""

    code = "PTQ001"
    exit_code = ExitCode.BAD_INPUT


class ConfigError(InputError):
    """The configuration: its syntax, its keys, its values, or how they go together."""

    code = "PTQ100"


class ModelError(InputError):
    """The model: unreadable, not float, nothing to quantize."""

    code = "PTQ200"


class DataError(InputError):
    """The calibration data: missing, unreadable, of the wrong size or not finite."""

    code = "PTQ300"


class NumericError(InputError):
    """A number that arithmetic cannot use, such as a range that is not finite."""

    code = "PTQ500"


class PluginError(PtqError):
    """A plugin failed, or gave back something that its contract forbids."""

    code = "PTQ400"
    exit_code = ExitCode.PLUGIN_FAILED


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """A sentence that suggests the nearest of the allowed names, or names a few of them.

    Returns "" where nothing is allowed. Case is ignored when comparing.
    """
    names = list(allowed)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(found.casefold(), folded, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{folded[near[0]]}'?"
    if not names:
        return ""
    shown = ", ".join(names[:8])
    return f"there are: {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
