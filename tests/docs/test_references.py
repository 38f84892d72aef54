"""Links resolve, and nothing is mentioned that the command line does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptq_core.cli.app import root
from tests.docs.pages import DOCS, ROOT, anchors, code, links, pages

PAGES = pages()

_FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
_CALL = re.compile(r"(?:^|[\s(`$/])ptq((?: [a-z_]+\b(?![=./:]))*)")
# Words that begin the command lines of other tools, whose flags are their own.
_OTHERS = (
    "pip",
    "python -m pip",
    "python -m venv",
    "git",
    "make",
    "pytest",
    "python -m pytest",
    "trtexec",
)
_ALSO = {"--help", "--without-pip"}  # of every command; of `python -m venv`


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of ``ptq`` with the words that call it."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


TREE = dict(commands(root()))


def flags(command: Any) -> set[str]:
    return {flag for one in command.params for flag in one.opts if flag.startswith("-")}


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_index_leads_everywhere() -> None:
    index = DOCS / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    codes = DOCS / "reference" / "checks" / "README.md"  # an index of its own
    linked |= {(codes.parent / link.partition("#")[0]).resolve() for link in links(codes)}
    missing = [_id(page) for page in DOCS.rglob("*.md") if page not in {index, *linked}]
    assert codes.resolve() in linked
    assert not [page for page in missing if "decisions" not in page]
    assert DOCS / "decisions" in linked


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_and_flags_exist(page: Path) -> None:
    known = set().union(*map(flags, TREE.values())) | _ALSO
    wrong = []
    for where, line in code(page):
        if line.strip().startswith(_OTHERS):
            continue
        wrong += [f"{where}: {flag}" for flag in _FLAG.findall(line) if flag not in known]
        for call in _CALL.findall(line):
            words = tuple(call.split())
            # what follows a command that has no further commands is its arguments
            depth = next((n for n in range(len(words), 0, -1) if words[:n] in TREE), 0)
            if len(words) > depth and (depth == 0 or getattr(TREE[words[:depth]], "commands", {})):
                wrong.append(f"{where}: ptq {' '.join(words)}")
    assert not wrong


def test_the_checks_find_what_is_wrong() -> None:
    assert _FLAG.findall("ptq quantize --skip a --no-such-flag=3") == ["--skip", "--no-such-flag"]
    assert _CALL.findall("`ptq nosuch thing`") == [" nosuch thing"]
    assert ("nosuch",) not in TREE
    assert ("config", "new") in TREE
