"""From what was written (INI text, TOML's types, Python values) to a key's value.

Every function here raises ValueError with what was expected; the caller adds key, value and place.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_DRIVE = re.compile(r"(.+):\s*([A-Za-z]:[\\/].*)", re.DOTALL)
_BARE_DRIVE = re.compile(r"[A-Za-z]:\\.*", re.DOTALL)
_SHOWN = 60  # characters of a value that an error message repeats


def shown(value: Any) -> str:
    """A value as an error message repeats it."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = f"a huge {type(value).__name__}"
    if not text.isprintable() or text != text.strip() or not text:
        text = repr(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def boolean(value: Any) -> bool:
    """``true`` or ``false`` in any case."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise ValueError("expected true or false")


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A whole number, both ends included."""

    def convert(value: Any) -> int:
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"expected a whole number from {low} to {high}")

    return convert


def _number(value: Any) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            return None
    return value if isinstance(value, float) and math.isfinite(value) else None


def open_interval(low: float, high: float) -> Callable[[Any], float]:
    """A number strictly between both ends."""

    def convert(value: Any) -> float:
        number = _number(value)
        if number is None or not low < number < high:
            raise ValueError(f"expected a number above {low:g} and below {high:g}")
        return number

    return convert


def choice(names: Iterable[str], **spellings: str) -> Callable[[Any], str]:
    """One of the names, in any case; ``spellings`` are further ways to write one."""
    allowed = tuple(names)
    folded = {name.casefold(): name for name in allowed}
    folded |= {other.casefold(): name for other, name in spellings.items()}

    def convert(value: Any) -> str:
        if isinstance(value, str) and value.strip().casefold() in folded:
            return folded[value.strip().casefold()]
        first = ", ".join(allowed[:-1])
        raise ValueError(
            f"expected {first} or {allowed[-1]}" if first else f"expected {allowed[0]}"
        )

    return convert


def text(value: Any) -> str:
    """Text that is not blank: a name, or a path."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, str) and path.strip():
        return path.strip()
    raise ValueError("expected text")


def split_list(value: str) -> list[str]:
    """The elements between commas, trimmed; a comma in double quotes does not separate."""
    parts = [""]
    quoted = False
    for character in value:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def names(value: Any) -> tuple[str, ...]:
    """Names: an array, or one text with commas between them."""
    parts = split_list(value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("expected names with ',' between them")  # noqa: TRY004
    stripped = tuple(part.strip() if isinstance(part, str) else "" for part in parts)
    if not all(stripped):
        place = next(index for index, part in enumerate(stripped, start=1) if not part)
        raise ValueError(
            f"expected names with ',' between them; number {place} is empty or no text"
        )
    return stripped


def vector(value: Any) -> tuple[float, ...]:
    """One or three numbers: ``[m]`` for GRAY, ``[m1, m2, m3]`` for colours."""
    expected = "expected [m] or [m1, m2, m3] with finite numbers"
    if isinstance(value, str):
        inner = value.strip()
        if not (inner.startswith("[") and inner.endswith("]")):
            raise ValueError(expected)
        value = inner[1:-1].split(",")
    if not isinstance(value, list | tuple):
        raise ValueError(expected)  # noqa: TRY004
    numbers = [_number(element) for element in value]
    found = tuple(number for number in numbers if number is not None)
    if len(found) != len(numbers) or len(found) not in (1, 3):
        raise ValueError(expected)
    return found


def folders(value: Any) -> dict[str, str]:
    r"""The folder of each input: a table, or ``name:folder,name2:folder2``.

    A name may hold ``:``, so the last one separates, unless it belongs to a Windows drive as in
    ``x:C:\data``. A table needs no such rule.
    """
    if isinstance(value, Mapping):
        if not value or not all(_is_text(part) for pair in value.items() for part in pair):
            raise ValueError('expected a table like { input = "folder" }')
        return {text(name): text(folder) for name, folder in value.items()}
    if not isinstance(value, str):
        raise ValueError("expected name:folder for each input, with ',' between them")  # noqa: TRY004
    found: dict[str, str] = {}
    for part in split_list(value):
        name, folder = _name_and_folder(part)
        if not name or not folder:
            raise ValueError(
                f"expected name:folder for each input, with ',' between them; "
                f"'{shown(part)}' is not (name is the input's name in the model)"
            )
        if name in found:
            raise ValueError(f"input '{name}' is there twice")
        found[name] = folder
    return found


def _name_and_folder(part: str) -> tuple[str, str]:
    if _BARE_DRIVE.fullmatch(part):
        return "", part
    drive = _DRIVE.fullmatch(part)
    name, folder = (drive[1], drive[2]) if drive else part.rpartition(":")[::2]
    return name.strip(), folder.strip()


def _is_text(value: Any) -> bool:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    return isinstance(path, str) and bool(path.strip())
