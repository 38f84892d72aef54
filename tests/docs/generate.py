"""Writes the tables of docs/reference from the code: ``python -m tests.docs.generate``.

A table stands between ``<!-- generated: KIND ARGUMENTS -->`` and ``<!-- end -->``. Some tables have
a last column that is written by hand; it is kept, by the first column of its row. The tests compare
the files with what this module would write, and want every cell filled.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ptq_core import api, errors, target_types, types
from ptq_core.checks import CODES
from ptq_core.cli.app import root
from ptq_core.cli.plugins import entry_options
from ptq_core.config import sections
from ptq_core.plugins import discover
from ptq_core.target_types import TargetEntry
from ptq_core.targets import target_from_toml
from tests.docs.pages import DOCS, ROOT

_BLOCK = re.compile(r"<!-- generated: (.+?) -->\n(.*?)<!-- end -->", re.S)
CHECKS = DOCS / "reference" / "checks"
_WIDTH = 140  # of lines of text
_UNTITLED = "…"  # a cell that a person has to fill

Row = Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Headings and rows; ``by_hand``: rows lack their last cell, which is kept from the file."""

    headings: Row
    rows: list[Row]
    by_hand: bool = False


def main() -> None:
    """Rewrite the pages; those of new codes are made."""
    for code in CODES:
        page = CHECKS / f"{code}.md"
        page.write_text(f"<!-- generated: check {code} -->\n<!-- end -->\n", encoding="utf-8")
    for page in generated_pages():
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


def generated_pages() -> list[Path]:
    """The pages that have such tables."""
    return [
        page
        for page in sorted((*DOCS.rglob("*.md"), *(ROOT / "plugins").glob("*/README.md")))
        if "<!-- generated:" in page.read_text(encoding="utf-8")
    ]


def render(text: str) -> str:
    """The page with its tables made anew."""

    def replace(match: re.Match[str]) -> str:
        kind, *arguments = match[1].split()
        if kind in _TEXTS:
            text = _TEXTS[kind](*arguments)
        else:
            text = _markdown(_TABLES[kind](*arguments), match[2])
        return f"<!-- generated: {match[1]} -->\n{text}<!-- end -->"

    return _BLOCK.sub(replace, text)


def tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """The rows of each generated table in a page, without heading."""
    for match in _BLOCK.finditer(text):
        if match[1].split()[0] in _TEXTS:
            continue
        yield match[1], [_cells(line) for line in match[2].splitlines()[2:] if line]


def _markdown(table: Table, before: str) -> str:
    kept = {cells[0]: cells[-1] for cells in map(_cells, before.splitlines()) if cells}
    lines = [_line(table.headings), "|" + "---|" * len(table.headings)]
    for row in table.rows:
        cells = list(row)
        if table.by_hand:
            last = kept.get(cells[0], "") if len(cells) < len(table.headings) else cells.pop()
            cells.append(kept.get(cells[0]) or last or _UNTITLED)
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Row) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


# ------------------------------------------------------------------------------ configuration


def _config(name: str) -> Table:
    """The keys of a section; a value's description is what its own error message expects."""
    model = sections.SECTIONS[name]
    rows = [
        (f"`{key}`", _expected(model, key), _key_default(model, key)) for key in model.model_fields
    ]
    return Table(("key", "value", "default", "meaning"), rows, by_hand=True)


def _expected(model: type[sections.SectionModel], key: str) -> str:
    wrong = object()
    try:
        model.model_validate({key: wrong})
    except ValueError as error:
        found = [one for one in error.errors() if one["loc"] == (key,)]  # type: ignore[attr-defined]
        return str(found[0]["ctx"]["error"]).removeprefix("expected ")
    raise AssertionError(f"{key} takes anything")


def _key_default(model: type[sections.SectionModel], key: str) -> str:
    field = model.model_fields[key]
    value = field.get_default()
    if field.is_required():
        return "required"
    if value is None or value in ((), {}) or not _accepts(model, key, value):
        return "not set"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _accepts(model: type[sections.SectionModel], key: str, value: Any) -> bool:
    """Whether the value could be written; a default that could not stands for its absence."""
    try:
        model.model_validate({key: value})
    except ValueError as error:
        return not [one for one in error.errors() if one["loc"] == (key,)]  # type: ignore[attr-defined]
    return True


def _no_effect() -> Table:
    rows = []
    for name, keys in sections.NO_EFFECT_KEYS.items():
        rows += [(f"`[{name}]`", f"`{key}`", "warning: has no effect") for key in keys]
    for name, (keys, why) in sections.NOTED_KEYS.items():
        rows.append((f"`[{name}]`", ", ".join(f"`{key}`" for key in keys), f"note: {why}"))
    for name, why in sections.NO_EFFECT_SECTIONS.items():
        rows.append(
            (f"`[{name}]`", "the whole section", f"warning: {why or 'known, but not used'}")
        )
    return Table(("section", "keys", "what is said"), rows)


def _options(kind: str, name: str) -> Table:
    """The options of an installed entry, as ``ptq plugins show`` lists them."""
    entry = discover().find(kind, name).entry  # type: ignore[arg-type]
    rows = [
        (
            f"`{one.name}`",
            one.type.replace(" | ", " or "),
            one.default if one.default in ("not set", "required") else f"`{one.default}`",
            one.doc.replace("``", "`"),
        )
        for one in entry_options(entry)
    ]
    return Table(("key", "type", "default", "meaning"), rows)


# ------------------------------------------------------------------------------- command line


def _command(*words: str) -> Table:
    """The arguments and options of a command; what they mean begins as their help."""
    command: Any = root()
    for word in words[1:]:  # the first one is "ptq"
        command = command.commands[word]
    rows = []
    for one in command.params:
        argument = one.param_type_name == "argument"
        names = [one.metavar] if argument else one.opts
        value = "" if argument or one.is_flag or one.count else one.metavar or "VALUE"
        rows.append(
            (
                ", ".join(f"`{name}`" for name in names),
                f"`{value}`" if value else "",
                one.help or "",
            )
        )
    return Table(("argument", "value", "meaning"), rows, by_hand=True)


# ------------------------------------------------------------------------------------ the API


def _fields(name: str) -> Table:
    """The fields of a dataclass of the API, explained by its docstring."""
    kind = getattr(api, name)
    docs = _attribute_docs(kind)
    rows = [
        (
            f"`{field.name}`",
            _field_type(str(field.type)),
            _field_default(field),
            docs.get(field.name, ""),
        )
        for field in dataclasses.fields(kind)
    ]
    if not any(row[-1] for row in rows):
        return Table(("field", "type", "default"), [row[:-1] for row in rows])
    by_hand = not all(row[-1] for row in rows)
    return Table(("field", "type", "default", "meaning"), rows, by_hand=by_hand)


def _field_type(annotation: str) -> str:
    if annotation.startswith("Literal["):
        return annotation[len("Literal[") : -1].replace("'", "`").replace("`, `", "` or `")
    return f"`{annotation}`"


def _field_default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    return f"`{value.__name__}`" if isinstance(value, type) else f"`{value!r}`"


def _attribute_docs(kind: type) -> dict[str, str]:
    text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {key: value.replace("``", "`") for key, value in found.items()}


def _methods(name: str) -> Table:
    """The methods of a protocol."""
    rows = [
        (f"`{key}{_signature(member)}`", inspect.cleandoc(member.__doc__ or "").partition("\n")[0])
        for key, member in vars(getattr(types, name, None) or getattr(target_types, name)).items()
        if inspect.isfunction(member) and not key.startswith("_")
    ]
    return Table(("method", "what it does"), [(a, b.replace("``", "`")) for a, b in rows])


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.name != "self"]
    return str(signature.replace(parameters=parameters)).replace("'", "")


# --------------------------------------------------------------------------- errors, operators


def _errors() -> Table:
    def walk(kind: type[errors.PtqError]) -> Iterator[type[errors.PtqError]]:
        yield kind
        for one in kind.__subclasses__():
            if one.__module__ == errors.__name__:
                yield from walk(one)

    rows = [
        (
            f"`{kind.code}`",
            f"`{kind.__name__}`",
            str(int(kind.exit_code)),
            inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        )
        for kind in walk(errors.PtqError)
    ]
    return Table(("code", "class", "exit code", "what it is about"), sorted(rows))


def _exit_codes() -> Table:
    rows = [(str(int(code)), f"`{code.name}`") for code in errors.ExitCode]
    return Table(("exit code", "name", "meaning"), rows, by_hand=True)


def _operators() -> Table:
    """The rules of cpu.toml; how onnxruntime runs them is written by hand."""
    spec = target_from_toml(
        ROOT / "plugins" / "ptq-target-cpu" / "src" / "ptq_target_cpu" / "cpu.toml"
    ).spec
    rows = []
    for name, rule in spec.operators.items():
        needs = [
            f"`{key}` = {' or '.join(map(str, values))}" for key, values in rule.attributes.items()
        ]
        if rule.same_parameters:
            needs.append("scale and zero point of its input")
        if rule.fixed_output:
            fixed = rule.fixed_output
            needs.append(f"scale {fixed.scale:g}, zero point {fixed.zero_point}")
        result = "" if rule.quantize == "never" else rule.output.replace("_", " ")
        rows.append(
            (
                f"`{name}`",
                rule.quantize,
                result,
                "yes" if rule.per_channel else "",
                ", ".join(rule.fuse),
                "; ".join(needs),
            )
        )
    headings = ("operator", "integer", "result", "scale per channel", "merges", "conditions")
    return Table((*headings, "onnxruntime runs it as"), rows, by_hand=True)


def _rules(name: str) -> Table:
    """The rules of a target's TOML file, operators that have the same one together."""
    (spec,) = (one.spec for one in _targets() if one.name == name)
    found: dict[str, list[str]] = {}
    for op_type, rule in spec.operators.items():
        found.setdefault(_rule(rule), []).append(f"`{op_type}`")
    return Table(("operators", "rule"), [(", ".join(names), rule) for rule, names in found.items()])


def _rule(rule: target_types.OperatorRule) -> str:
    if rule.quantize == "never":
        return f"float: {rule.reason}"
    said = "integers" if rule.quantize == "always" else f"integers, {rule.quantize} integers"
    if rule.per_channel:
        said += ", weights with a scale per output channel"
    if rule.two_activations:
        said += ", two activations as well"
    if rule.fuse:
        said += f"; merges {' and '.join(rule.fuse)} behind it"
    for key, values in rule.attributes.items():
        said += f"; `{key}` = {' or '.join(map(str, values))}"
    if rule.same_parameters:
        said += "; scale and zero point of its input"
    if rule.fixed_output:
        fixed = rule.fixed_output
        said += f"; scale 1/{1 / fixed.scale:g}, zero point {fixed.zero_point}"
    return said


# ------------------------------------------------------------------------- rules of `ptq check`


def _targets() -> list[TargetEntry]:
    """Our targets; their rules of `ptq check` are in their TOML files."""
    names = ("cpu", "nvgpu", "dsp", "ascend")
    folders = [(ROOT / "plugins" / f"ptq-target-{name}" / "src", name) for name in names]
    return [target_from_toml(src / f"ptq_target_{name}" / f"{name}.toml") for src, name in folders]


def _checks() -> Table:
    """Every code, and how severe it is on which target."""
    targets = _targets()
    rows = []
    for code, found in CODES.items():
        rules = [one.spec.checks.get(code) for one in targets]
        severities = ["" if rule is None else rule.severity for rule in rules]
        rows.append((f"[`{code}`]({code}.md)", *severities, found.title))
    return Table(("code", *(one.name for one in targets), "what it is"), rows)


def _check(code: str) -> str:
    """What there is to say of one code: a whole page."""
    found = CODES[code]
    rows = [
        (f"`{one.name}`", rule.severity, rule.because)
        for one in _targets()
        if (rule := one.spec.checks.get(code)) is not None
    ]
    table = "None of our targets has this rule; a target written in TOML can.\n"
    if rows:
        table = _markdown(Table(("target", "severity", "what happens there"), rows), "")
    heading = f"# {code}: {found.title}"
    explanation, fix = (
        textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
        for text in (found.explanation, f"To mend it: {found.fix}")
    )
    return f"{heading}\n\n{explanation}\n\n{table}\n{fix}\n"


_TEXTS: dict[str, Callable[..., str]] = {"check": _check}

_TABLES: dict[str, Callable[..., Table]] = {
    "checks": _checks,
    "config": _config,
    "no-effect": _no_effect,
    "options": _options,
    "command": _command,
    "fields": _fields,
    "methods": _methods,
    "errors": _errors,
    "exit-codes": _exit_codes,
    "operators": _operators,
    "rules": _rules,
}

if __name__ == "__main__":
    main()
