"""Follow the tutorials and how-tos from top to bottom, and read every piece of config in them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ptq_core.api import target_from_toml
from ptq_core.config import parse_config
from ptq_core.config.ini import read_ini
from ptq_core.target_types import TargetEntry
from tests.docs.pages import ROOT, Block, blocks, pages
from tests.docs.running import Reader

ALL = [block for page in pages() for block in blocks(page)]
RUN = sorted({block.page for block in ALL if block.action in ("run", "file")})
CONFIGS = [block for block in ALL if block.language in ("ini", "toml")]

# A target's mandatory keys, for blocks that show only some of its rules.
_TARGET = """
name = "T"
summary = "completed by the tests"
activation = { dtype = "uint8" }
weight = { dtype = "int8", symmetric = true }
"""


def _name(where: Path | Block) -> str:
    return str(where.relative_to(ROOT) if isinstance(where, Path) else where)


@pytest.mark.parametrize("page", RUN, ids=_name)
def test_page_happens_as_told(page: Path, tmp_path: Path) -> None:
    Reader(tmp_path).follow(page)


@pytest.mark.parametrize("block", CONFIGS, ids=_name)
def test_config_is_accepted(block: Block, tmp_path: Path) -> None:
    if block.language == "ini":
        written = read_ini(block.text)
        _check_config(block, {name: set(s.entries) for name, s in written.sections.items()})
        return
    tables = tomllib.loads(block.text)
    if "project" in tables:
        assert tables["project"]["entry-points"]["ptq"]
    elif "operators" in tables or "activation" in tables:
        _check_target(block, tables, tmp_path)
    else:
        _check_config(block, {name: set(table) for name, table in tables.items()})


def _check_config(block: Block, written: dict[str, set[str]]) -> None:
    """Fragments are completed with what is mandatory; ConfigError says what is wrong."""
    syntax = "ini" if block.language == "ini" else "toml"
    text = block.text
    if "quant_type" not in written.get("common_quant_param", ()):
        job = 'quant_type = "FULL_QUANT"' if syntax == "toml" else "quant_type=FULL_QUANT"
        header = "[common_quant_param]\n"
        text = (
            text.replace(header, header + job + "\n")
            if header in text
            else header + job + "\n" + text
        )
    if "full_quant_param" not in written:
        text += "\n[full_quant_param]\n"
    config = parse_config(text, file=str(block), syntax=syntax, has_data=True)
    assert set(written) <= {name for name, _ in config.locations}


def _check_target(block: Block, tables: dict[str, object], tmp_path: Path) -> None:
    missing = [line for line in _TARGET.splitlines() if line and line.split()[0] not in tables]
    path = tmp_path / "target.toml"
    path.write_text("\n".join(missing) + "\n" + block.text, encoding="utf-8")
    assert isinstance(target_from_toml(path), TargetEntry), block


def test_every_python_block_runs_or_is_a_file() -> None:
    idle = [
        str(block)
        for block in ALL
        if block.language == "python"
        and not block.action
        and {"tutorial", "how-to"} & set(block.page.parts)
    ]
    assert not idle
