"""Devices written in TOML: the file becomes a :class:`TargetEntry`, or an error that says why not.

The keys of the file are ``name``, ``summary``, ``aliases`` and the fields of
:class:`~ptq_core.target_types.TargetSpec`; ``[operators.TYPE]`` tables are
:class:`~ptq_core.target_types.OperatorRule`. Plugins read such files while ``ptq`` starts, so
this module checks them itself: a validation library would cost more than all the rest of the start.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
from collections.abc import Mapping
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli

from ptq_core.errors import ConfigError, Location, Problem, did_you_mean
from ptq_core.target_types import TargetEntry, TargetSpec

_HEADER = ("name", "summary", "aliases")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def target_from_toml(source: Traversable | Path) -> TargetEntry:
    """The target that a TOML file describes.

    Args:
        source: the file, as a path or as a resource of a package.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has unknown keys or wrong values;
            all of them at once, each with its key.
    """
    file = str(source)
    try:
        document = tomli.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the target file cannot be read: {error.strerror or error}",
            location=Location(file=file),
        ) from error
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file: {error}", location=Location(file=file)) from error
    reading = _Reading(file)
    header = {key: document.pop(key) for key in _HEADER if key in document}
    for key in ("name", "summary"):
        if not isinstance(header.get(key), str) or not header[key]:
            reading.complain("", f"'{key}' has to be given, as text")
    aliases = reading.value(tuple[str, ...], header.get("aliases", []), "aliases")
    spec = reading.value(TargetSpec, document, "")
    if reading.problems:
        raise ConfigError(problems=reading.problems)
    return TargetEntry(name=header["name"], summary=header["summary"], aliases=aliases, spec=spec)


def spec_problems(spec: object) -> list[str]:
    """Where a spec that a plugin made has values of other types than its fields say."""
    if not isinstance(spec, TargetSpec):
        return [f"found {reprlib.repr(spec)}, expected a TargetSpec"]
    reading = _Reading("")
    reading.value(TargetSpec, spec, "")
    return [problem.message for problem in reading.problems]


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of a dataclass' fields; there are many rules of one class."""
    return get_type_hints(kind)


class _Reading:
    """Turns plain values into the types of dataclasses and collects what does not fit.

    Values are those of TOML, or what a plugin has made of the types themselves.
    """

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file

    def complain(self, path: str, message: str, hint: str = "") -> None:
        text = f"{path}: {message}" if path else message
        self.problems.append(Problem(message=text, location=Location(file=self._file), hint=hint))

    def value(self, kind: Any, found: Any, path: str) -> Any:
        """``found`` as a ``kind``; None, with a problem noted, where it is none."""
        if isinstance(kind, types.UnionType):  # "X | None"; TOML has no null, objects have
            if found is None and type(None) in get_args(kind):
                return None
            choices = [part for part in get_args(kind) if part is not type(None)]
            fitting = [part for part in choices if self._fits(part, found)]
            return self.value((fitting or choices)[0], found, path)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            if isinstance(found, kind):
                found = {one.name: getattr(found, one.name) for one in dataclasses.fields(kind)}
            if isinstance(found, dict):
                return self._dataclass(kind, found, path)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal and found in arguments:
            return found
        if origin is tuple and isinstance(found, list | tuple):
            return tuple(
                self.value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(found)
            )
        if origin is Mapping and isinstance(found, Mapping):
            return {
                key: self.value(arguments[1], item, f"{path}.{key}") for key, item in found.items()
            }
        if self._fits(kind, found):
            return float(found) if kind is float else found
        self._wrong(kind, found, path)
        return None

    def _fits(self, kind: Any, found: Any) -> bool:
        if kind is float:
            return isinstance(found, int | float) and not isinstance(found, bool)
        return isinstance(kind, type) and type(found) is kind

    def _wrong(self, kind: Any, found: Any, path: str) -> None:
        origin = get_origin(kind)
        if origin is Literal:
            allowed = [str(value) for value in get_args(kind)]
            hint = did_you_mean(str(found), allowed)
            self.complain(path, f"found {found!r}, expected {' or '.join(allowed)}", hint)
            return
        if origin is tuple:
            expected = "a list"
        elif origin is Mapping or dataclasses.is_dataclass(kind):
            expected = "a table" if self._file else f"a {kind.__name__}"
        else:
            expected = _WORDS.get(kind, str(kind))
        self.complain(path, f"found {found!r}, expected {expected}")

    def _dataclass(self, kind: Any, found: dict[str, Any], path: str) -> Any:
        hints = _hints(kind)
        before = len(self.problems)
        prefix = f"{path}." if path else ""
        for key in found:
            if key not in hints:
                self.complain("", f"unknown key '{prefix}{key}'", did_you_mean(key, hints))
        for field in dataclasses.fields(kind):
            optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
            if field.name not in found and not optional:
                self.complain("", f"'{prefix}{field.name}' is missing")
        given = {
            key: self.value(hints[key], item, f"{prefix}{key}")
            for key, item in found.items()
            if key in hints
        }
        return kind(**given) if len(self.problems) == before else None


def is_target_file(name: str) -> bool:
    """Whether a ``target_device`` value names a file rather than an installed target."""
    return name.casefold().endswith(".toml")
