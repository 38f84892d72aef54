"""The TOML syntax: the same sections and keys as in INI, with TOML's own types."""

from __future__ import annotations

import re

import tomli

from ptq_core.config.document import Document, document_from_tables

_AT_LINE = re.compile(r"\s*\(at (?:line (\d+), column \d+|end of document)\)")
_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_NO_BRACKETS = re.compile(r""""(?:\\.|[^"\\])*"|'[^']*'|#.*|[^\[\]{}]""")
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=.*")
_PART = re.compile(_KEY)


def read_toml(text: str, *, file: str | None = None) -> Document:
    """The document in this text; problems of syntax are in it, not raised."""
    text = text.removeprefix("\ufeff")
    try:
        tables = tomli.loads(text)
    except (ValueError, RecursionError) as error:  # integers of 4300 digits, 400 nested brackets
        document = Document(file, "toml")
        document.complain(
            f"not TOML: {_AT_LINE.sub('', str(error)).strip()}",
            line=_error_line(text, str(error)),
            hint="text needs quotes in TOML; a file with another suffix than .toml is read as INI",
        )
        return document
    return document_from_tables(tables, file=file, lines=_lines(text))


def _error_line(text: str, message: str) -> int | None:
    match = _AT_LINE.search(message)
    if match is None:
        return None
    return int(match[1]) if match[1] else len(text.rstrip().split("\n"))


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Line of each table and key; tomli does not tell.

    A line outside of brackets that looks like a table or a key is one. Only text in multi-line
    strings can mislead, and only to a wrong line in a message.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    depth = 0
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        header, key = _HEADER.fullmatch(line), _DOTTED.fullmatch(line)
        if depth == 0 and header:
            table = _path(header[1])
            found.setdefault(table, number)
        elif depth == 0 and key:
            path = (*table, *_path(key[1]))
            for length in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
        brackets = _NO_BRACKETS.sub("", line)
        depth += sum(1 if bracket in "[{" else -1 for bracket in brackets)
    return found


def _path(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))
