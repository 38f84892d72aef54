"""Devices written in TOML: the file becomes a :class:`TargetEntry`, or an error that says why not.

The keys of the file are ``name``, ``summary``, ``aliases`` and the fields of
:class:`~ptq_core.types.TargetSpec`; ``[operators.TYPE]`` tables are
:class:`~ptq_core.types.OperatorRule`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli

from ptq_core.errors import ConfigError, Location, Problem, did_you_mean
from ptq_core.types import TargetEntry, TargetSpec

_HEADER = ("name", "summary", "aliases")


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
    return _target(document, file)


def _target(document: Mapping[str, Any], file: str) -> TargetEntry:
    from pydantic import TypeAdapter, ValidationError  # 0.1 s that `ptq --help` need not pay

    problems = _unknown_keys(document, file)
    problems += [
        Problem(message=f"'{key}' is missing", location=Location(file=file))
        for key in ("name", "summary")
        if not isinstance(document.get(key), str) or not document[key]
    ]
    body = {key: value for key, value in document.items() if key not in _HEADER}
    spec: TargetSpec | None = None
    try:
        spec = TypeAdapter(TargetSpec).validate_python(body)
    except ValidationError as error:
        problems += [
            Problem(
                message=f"{'.'.join(map(str, line['loc']))}: {line['msg']}, "
                f"found {_shown(line['input'])}",
                location=Location(file=file),
            )
            for line in error.errors()
        ]
    if problems or spec is None:
        raise ConfigError(problems=problems)
    return TargetEntry(
        name=document["name"],
        summary=document["summary"],
        aliases=tuple(document.get("aliases", ())),
        spec=spec,
    )


def _shown(value: object) -> str:
    return "a table" if isinstance(value, Mapping) else repr(value)


def _unknown_keys(document: Mapping[str, Any], file: str) -> list[Problem]:
    problems: list[Problem] = []

    def visit(kind: Any, value: Any, path: str) -> None:
        if isinstance(kind, types.UnionType):
            kind = next(part for part in get_args(kind) if part is not type(None))
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            hints = get_type_hints(kind)
            allowed = [*hints, *(() if path else _HEADER)]
            for key, item in value.items():
                if key not in allowed:
                    problems.append(
                        Problem(
                            message=f"unknown key '{path}{key}'",
                            location=Location(file=file),
                            hint=did_you_mean(key, allowed),
                        )
                    )
                elif key in hints:
                    visit(hints[key], item, f"{path}{key}.")
        elif get_origin(kind) is Mapping and isinstance(value, Mapping):
            for key, item in value.items():
                visit(get_args(kind)[1], item, f"{path}{key}.")

    visit(TargetSpec, document, "")
    return problems


def is_target_file(name: str) -> bool:
    """Whether a ``target_device`` value names a file rather than an installed target."""
    return name.casefold().endswith(".toml")
