"""The INI syntax of the original tool's config files, with line numbers.

What that tool accepts means the same here. Beyond it: comments may be indented or follow a value
(a blank, then ``#``), values may hold ``=``, tabs count as blanks, and quotes keep a blank, a comma
or a ``#`` in a value.
"""

from __future__ import annotations

import re

from ptq_core.config.document import ABOVE_SECTIONS, Document, Section

_LINE_END = re.compile(r"\r\n|\r|\n")
_HEADER = re.compile(r"\[([^\[\]]*)\]\s*(?:#.*)?")


def read_ini(text: str, *, file: str | None = None) -> Document:
    """The document in this text; problems of syntax are in it, not raised."""
    document = Document(file, "ini")
    section: Section | None = None
    for number, raw in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = _header(document, line, number)
        else:
            _assignment(document, section, line, number)
    return document


def _header(document: Document, line: str, number: int) -> Section:
    match = _HEADER.fullmatch(line)
    if match is None or not match[1].strip():
        # go on under the name that was probably meant, so that its keys are checked too
        name = re.split(r"[\]#=]", line.lstrip("["))[0].strip()
        document.complain(
            f"'{line}' is not a section header", line=number, hint=f"write [{name or 'section'}]"
        )
        return document.open_section(name, number) if name else Section(name, number)
    return document.open_section(match[1].strip(), number)


def _assignment(document: Document, section: Section | None, line: str, number: int) -> None:
    where = section.name if section is not None else None
    key, equals, rest = line.partition("=")
    key = key.strip()
    if not equals or not key:
        hint = "comments begin with '#'" if line.startswith((";", "//")) else ""
        document.complain(
            f"'{line}': expected key=value",
            line=number,
            section=where,
            hint=hint or "write key=value",
        )
        return
    value = _value(rest)
    if value is None:
        document.complain(
            f"'{key}': a double quote is not closed",
            line=number,
            section=where,
            hint="add the other",
        )
    elif not value:
        document.complain(
            f"'{key}' has no value",
            line=number,
            section=where,
            hint="give it one, or remove the line: then the default holds",
        )
    if section is None:
        document.complain(
            f"'{key}' stands above the first section", line=number, hint=ABOVE_SECTIONS
        )
    else:
        # a key without a usable value was still written: it must not be called missing too
        document.add(section, key, value or None, number)


def _value(text: str) -> str | None:
    """The value without comment and surrounding quotes; None if a quote stays open."""
    quoted = False
    end = len(text)
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == "#" and not quoted and index and text[index - 1].isspace():
            end = index
            break
    if quoted:
        return None
    value = text[:end].strip()
    if len(value) > 1 and value[0] == value[-1] == '"' and value.count('"') == 2:
        return value[1:-1].strip()
    return value
