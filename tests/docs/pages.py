"""Reads the documentation: pages, fenced blocks with their markers, links, headings.

A block says in an HTML comment on the line before it what the tests do with it:

    <!-- run -->            execute it (bash, python) in the page's copy of examples/digits
    <!-- run: exit 1 -->    the same, and it ends with this exit code
    <!-- file: NAME -->     write it to this file in the page's folder
    <!-- install: DIR -->   (on a ``pip install -e``) make the distribution in DIR importable

A ``text`` block behind a block that ran is its output: every line has to be a line of the real
output, in order, whatever the numbers. ``…`` stands for anything, alone on a line for any lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARKER = re.compile(r"^<!--\s*(run|file|install|generated)\b:?\s*(.*?)\s*-->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what its marker says, and its text."""

    page: Path
    line: int
    language: str
    action: str
    argument: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Everything that is written for readers."""
    found = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "plugins").glob("*/README.md")]
    found.append(ROOT / "examples" / "digits" / "README.md")
    return sorted(found)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        start = number
        end = next(i for i in range(start + 1, len(lines)) if lines[i].rstrip() == "```")
        marker = _MARKER.match(lines[start - 1]) if start else None
        action, argument = (marker[1], marker[2]) if marker else ("", "")
        yield Block(
            page=page,
            line=start + 1,
            language=fence[1],
            action=action,
            argument=argument,
            text="\n".join(lines[start + 1 : end]) + "\n",
        )
        number = end + 1


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```\s*$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(page: Path) -> Iterator[str]:
    """Targets of the links in the prose."""
    text = _CODE_SPAN.sub("", prose(page))
    yield from _LINK.findall(text)


def code(page: Path) -> Iterator[tuple[str, str]]:
    """Lines of code: those of bash blocks and the code spans; each with where it stands."""
    for block in blocks(page):
        if block.language == "bash":
            joined = block.text.replace("\\\n", " ")
            yield from ((str(block), line) for line in joined.splitlines())
    where = str(page.relative_to(ROOT))
    yield from ((where, span) for span in _CODE_SPAN.findall(prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors that a code host gives the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+\s+(.+?)\s*$", prose(page), flags=re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        copies = [slug, *(f"{slug}-{i}" for i in range(1, 9))]
        found.add(next(copy for copy in copies if copy not in found))
    return found


def section(page: Path, heading: str) -> str:
    """The text under a heading, to the next one of its level or above."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = lines.index(heading)
    level = len(heading) - len(heading.lstrip("#"))
    for end in range(start + 1, len(lines)):
        if re.match(rf"#{{1,{level}}} ", lines[end]):
            return "\n".join(lines[start:end])
    return "\n".join(lines[start:])
