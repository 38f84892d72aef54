"""From a file, a text or values to a :class:`Config`: read, recognise, validate, cross-check.

Every stage adds its problems to one list, so that the user sees all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from ptq_core.config import checks, effects, values
from ptq_core.config.configuration import Config
from ptq_core.config.document import Document, Section, document_from_tables
from ptq_core.config.ini import read_ini
from ptq_core.config.recognise import recognise
from ptq_core.config.sections import (
    RUNNER,
    AscendContext,
    CommonQuantParam,
    DataPreprocessParam,
    DynamicQuantParam,
    FullQuantParam,
    MixedBitWeightQuantParam,
    SectionModel,
    WeightQuantParam,
)
from ptq_core.config.toml import read_toml
from ptq_core.errors import ConfigError, Location, Problem

Model = TypeVar("Model", bound=SectionModel)


def load_config(path: Path, *, has_data: bool = False, target: str | None = None) -> Config:
    """The configuration in this file; ``.toml`` is TOML, any other suffix is INI.

    Args:
        path: the file.
        has_data: the caller has samples or a stored calibration table, so that nothing is
            missing where the config names no data.
        target: the device that the command line names.

    Raises:
        ConfigError: the file cannot be read, or everything that is wrong in it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the config cannot be read: {error.strerror or error}",
            location=Location(file=str(path)),
            hint="give the path of an INI or TOML file; 'ptq config new' writes one",
        ) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"byte {raw[error.start]:#04x} is not UTF-8",
            location=Location(file=str(path), line=line),
            hint="save the config as UTF-8 text",
        ) from error
    syntax: Literal["ini", "toml"] = "toml" if path.suffix.lower() == ".toml" else "ini"
    return parse_config(text, file=str(path), syntax=syntax, has_data=has_data, target=target)


def parse_config(
    text: str,
    *,
    file: str,
    syntax: Literal["ini", "toml"],
    has_data: bool = False,
    target: str | None = None,
) -> Config:
    """The configuration in this text; ``file`` is its name in errors. See :func:`load_config`."""
    document = (read_toml if syntax == "toml" else read_ini)(text, file=file)
    return _config(document, source=Path(file), has_data=has_data, target=target)


def config_from_values(
    sections: Mapping[str, Mapping[str, Any]],
    *,
    has_data: bool = False,
    target: str | None = None,
) -> Config:
    """The configuration in these sections; a key whose value is None is not set.

    Errors name sections and keys. See :func:`load_config`.
    """
    document = document_from_tables(sections)
    return _config(document, source=None, has_data=has_data, target=target)


def _config(
    document: Document, *, source: Path | None, has_data: bool, target: str | None
) -> Config:
    if document.problems and not document.sections:  # nothing was read: TOML's syntax error
        raise ConfigError(problems=document.problems)
    known = recognise(document)
    document, problems = known.document, [*document.problems, *known.problems]
    broken: set[tuple[str, str]] = set()

    def read(model: type[Model], section: str) -> Model:
        return _validated(model, section, document, problems, broken)

    draft = checks.Draft(
        document=document,
        common=read(CommonQuantParam, "common_quant_param"),
        weight=read(WeightQuantParam, "weight_quant_param"),
        mixed=read(MixedBitWeightQuantParam, "mixed_bit_weight_quant_param"),
        full=read(FullQuantParam, "full_quant_param"),
        data=read(DataPreprocessParam, "data_preprocess_param"),
        dynamic=read(DynamicQuantParam, "dynamic_quant_param"),
        ascend=read(AscendContext, "ascend_context"),
        broken=frozenset(broken),
        has_data=has_data,
        target=target,
    )
    runner = _runner(document, problems)
    problems += checks.errors(draft)
    if problems:
        raise ConfigError(problems=sorted(problems, key=_line))
    warnings = [*known.warnings, *effects.warnings(draft)]
    notes = [*known.notes, *effects.notes(draft)]
    present = document.sections
    return Config(
        common=draft.common,
        weight=draft.weight,
        mixed=draft.mixed,
        full=draft.full if "full_quant_param" in present else None,
        data=draft.data if "data_preprocess_param" in present else None,
        dynamic=draft.dynamic,
        ascend=draft.ascend if "ascend_context" in present else None,
        runner=runner,
        target=checks.device(draft),
        plugin_options=_plugin_options(document),
        source=source,
        warnings=tuple(sorted(warnings, key=_line)),
        notes=tuple(sorted(notes, key=_line)),
        locations=_locations(document),
    )


def _line(problem: Problem) -> int:
    return problem.location.line or 0


# ------------------------------------------------------------------------------------- values


def _validated(
    model: type[Model],
    name: str,
    document: Document,
    problems: list[Problem],
    broken: set[tuple[str, str]],
) -> Model:
    """The section; a key with a wrong value is a problem, counts as broken and has its default."""
    section = document.sections.get(name, Section(name))
    given = {key: entry.value for key, entry in section.entries.items() if entry.value is not None}
    wrong = set(section.entries) - set(given)
    try:
        model.model_validate(given)
    except ValidationError as error:
        for detail in error.errors():
            key = str(detail["loc"][0])
            if detail["type"] == "missing":
                continue  # checks.errors says so
            wrong.add(key)
            cause = detail.get("ctx", {}).get("error", detail["msg"])
            message = f"{key} = {values.shown(given[key])}: {cause}"
            problems.append(Problem(message=message, location=document.locate(name, key)))
    broken |= {(name, key) for key in wrong}
    usable = {key: value for key, value in given.items() if key not in wrong}
    if model is CommonQuantParam and "quant_type" not in usable:
        broken.add((name, "quant_type"))
        usable["quant_type"] = "WEIGHT_QUANT"  # never seen: without a job nothing is returned
    return model.model_validate(usable)


def _runner(document: Document, problems: list[Problem]) -> str | None:
    section = document.sections.get(RUNNER)
    entry = section.entries.get("name") if section else None
    if entry is None or entry.value is None:
        return None
    try:
        return values.text(entry.value)
    except ValueError as error:
        message = f"name = {values.shown(entry.value)}: {error}"
        problems.append(Problem(message=message, location=document.locate(RUNNER, "name")))
        return None


def _plugin_options(document: Document) -> dict[tuple[str, str], dict[str, Any]]:
    options = {}
    for name, section in document.sections.items():
        kind, dot, plugin = name.partition(".")
        if dot:
            given = {key: entry.value for key, entry in section.entries.items()}
            options[kind, plugin] = given
    return options


def _locations(document: Document) -> dict[tuple[str, str | None], Location]:
    found: dict[tuple[str, str | None], Location] = {}
    for name, section in document.sections.items():
        found[name, None] = document.locate(name)
        found |= {(name, key): document.locate(name, key) for key in section.entries}
    return found
