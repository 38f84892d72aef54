"""The reference says what the code says, and leaves nothing out."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from ptq_core import api, errors, hookspecs
from ptq_core.checks import CODES
from ptq_core.config import sections
from ptq_core.plugins import State, discover, make_host
from ptq_core.python import quantize
from tests.docs import generate
from tests.docs.pages import DOCS, ROOT, Block, blocks, prose, section
from tests.docs.test_references import TREE, flags

REFERENCE = DOCS / "reference"
HOOKS = [
    name for name, _ in inspect.getmembers(hookspecs, inspect.isfunction) if name[:4] == "ptq_"
]


def _read(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", generate.generated_pages(), ids=lambda page: page.name)
def test_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == generate.render(text), "run: python -m tests.docs.generate"


@pytest.mark.parametrize("page", generate.generated_pages(), ids=lambda page: page.name)
def test_tables_explain_every_row(page: Path) -> None:
    for marker, rows in generate.tables(page.read_text(encoding="utf-8")):
        assert rows, marker
        assert not [row[0] for row in rows if row[-1] in ("", "…")], marker


def test_every_section_has_its_table() -> None:
    found = set(re.findall(r"<!-- generated: config (\w+) -->", _read("config.md")))
    assert found == set(sections.SECTIONS)
    assert f"## `[{sections.RUNNER}]`" in _read("config.md")


def test_every_option_of_our_plugins_has_its_row() -> None:
    found = set(re.findall(r"<!-- generated: options (\w+ \w+) -->", _read("config.md")))
    kinds = ("calibrator", "preprocessor", "runner", "target", "encoding")
    with_options = {
        f"{kind} {one.entry.name}"
        for kind in kinds
        for one in discover().entries(kind)  # type: ignore[call-overload]
        if list(generate.entry_options(one.entry))
    }
    assert found == with_options


@pytest.mark.parametrize("words", TREE, ids=" ".join)
def test_every_command_and_flag_is_documented(words: tuple[str, ...]) -> None:
    page = REFERENCE / "command-line.md"
    text = section(page, f"## `{' '.join(('ptq', *words))}`") if words else _read(page.name)
    missing = [flag for flag in flags(TREE[words]) if f"`{flag}`" not in text]
    assert not missing


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented_with_its_signature(hook: str) -> None:
    signature = inspect.signature(getattr(hookspecs, hook))
    heading = f"## `{hook}{signature}`".replace("'", "")
    assert heading in _read("hooks.md").splitlines()


def test_no_other_hook_is_documented() -> None:
    assert sorted(re.findall(r"^## `(ptq_\w+)", _read("hooks.md"), re.M)) == sorted(HOOKS)


EXAMPLES = [block for block in blocks(REFERENCE / "hooks.md") if block.action == "file"]


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: block.argument)
def test_example_of_a_hook_is_admitted(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", plugin)  # dataclasses look their module up
    exec(compile(block.text, block.argument, "exec"), vars(plugin))  # the page's own program
    (record,) = make_host({"example": plugin}).records
    assert (record.state, record.error) == (State.ACTIVE, "")


def test_there_is_an_example_of_every_hook() -> None:
    assert all(any(f"def {hook}(" in block.text for block in EXAMPLES) for hook in HOOKS)


def test_every_name_of_the_api_has_its_heading() -> None:
    found = re.findall(r"^#+ `(\w+)`?", _read("api.md"), re.M)
    assert set(api.__all__) <= set(found)


def test_every_error_code_and_exit_code_is_explained() -> None:
    codes = {
        kind.code
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if hasattr(kind, "code")
    }
    page = REFERENCE / "errors.md"
    headings = set(re.findall(r"^## (PTQ\d+)", prose(page), re.M))
    assert headings == codes
    assert "<!-- generated: exit-codes -->" in _read(page.name)


def test_every_code_of_check_has_its_page() -> None:
    folder = REFERENCE / "checks"
    pages = {page.stem for page in folder.glob("*.md")} - {"README"}
    assert pages == set(CODES)
    for code in CODES:
        text = (folder / f"{code}.md").read_text(encoding="utf-8")
        assert text.startswith(f"<!-- generated: check {code} -->\n# {code}: ")


def test_metadata_is_what_is_written(tmp_path: Path) -> None:
    digits = ROOT / "examples" / "digits"
    output = tmp_path / "out.onnx"
    quantize(digits / "digits.onnx", output, config=digits / "full_quant.toml")
    model = onnx.load(output)
    written = {prop.key for prop in model.metadata_props}
    assert set(re.findall(r"^\| `(ptq\.\w+)` \|", _read("metadata.md"), re.M)) == written
    assert model.producer_name == "ptq"


def test_changelog_is_about_this_version() -> None:
    from ptq_core import __version__

    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == __version__
