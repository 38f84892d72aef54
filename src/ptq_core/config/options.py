"""A plugin's options: the keys of ``[kind.NAME]`` become its own frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ptq_core.config import values
from ptq_core.config.configuration import Config
from ptq_core.config.sections import DataPreprocessParam
from ptq_core.errors import ConfigError, Location, PluginError, Problem, did_you_mean

_DATA = "data_preprocess_param"
# keys that core itself acts on, whatever reads the files
_CORE_KEYS = frozenset(("calibrate_path", "calibrate_size", "input_type", "input_data_format"))


def validate_options(
    options_type: type,
    kind: str,
    name: str,
    config: Config,
    *,
    aliases: Collection[str] = (),
) -> tuple[Any, tuple[Problem, ...]]:
    """The options of one plugin entry, and warnings about keys without effect.

    INI gives text, which is converted to the field's type; lists are ``[a, b]`` or ``a,b``. A
    preprocessor also takes the fields that are named like keys of ``[data_preprocess_param]`` from
    there.

    Args:
        options_type: the entry's frozen dataclass.
        kind: ``calibrator``, ``target``, ``preprocessor``, ``runner`` or ``encoding``.
        name: the entry's name.
        config: the configuration.
        aliases: other spellings of the name, under which options count too.

    Raises:
        ConfigError: unknown keys, wrong values, missing keys, all at once.
    """
    problems: list[Problem] = []
    try:
        hints = get_type_hints(options_type, include_extras=True)
    except (NameError, TypeError) as error:
        raise PluginError(f"the options of {kind} {name} cannot be read: {error}") from error
    fields = {field.name: field for field in dataclasses.fields(options_type) if field.init}
    given = _given(kind, (name, *aliases), config)
    if kind == "preprocessor" and config.data is not None:
        for key in sorted(config.data.model_fields_set & set(fields)):
            if key in given:
                message = f"'{key}' is set here and in [{_DATA}]"
                problems.append(Problem(message=message, location=given[key][1], hint="keep one"))
            given[key] = (getattr(config.data, key), config.locate(_DATA, key))
    built: dict[str, Any] = {}
    for key, (value, location) in given.items():
        if key not in fields:
            hint = did_you_mean(key, fields) or f"{name} has no options"
            message = f"unknown key '{key}' for {kind} {name}"
            problems.append(Problem(message=message, location=location, hint=hint))
            continue
        try:
            built[key] = _converted(hints[key], value)
        except ValueError as error:
            message = f"{key} = {values.shown(value)}: {error}"
            problems.append(Problem(message=message, location=location))
    section = config.locate(f"{kind}.{name}")
    for key, field in fields.items():
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if key not in given and not has_default:
            hint = f"add {key} to [{kind}.{name}]"
            message = f"{kind} {name} needs '{key}'"
            problems.append(Problem(message=message, location=section, hint=hint))
    if problems:
        raise ConfigError(problems=problems)
    try:
        options = options_type(**built)
    except ValueError as error:  # the dataclass's own check
        raise ConfigError(f"options of {kind} {name}: {error}", location=section) from error
    unused = _unused_data_keys(fields, name, config) if kind == "preprocessor" else ()
    return options, tuple(unused)


def unused_options(config: Config, used: Collection[tuple[str, str]]) -> tuple[Problem, ...]:
    """Warnings about option sections of plugins that the job does not use.

    Args:
        config: the configuration.
        used: kind and name (aliases too) of every entry in use.
    """
    names = {(kind, name.casefold()) for kind, name in used}
    return tuple(
        Problem(
            message=f"[{kind}.{name}] has no effect: the job does not use this {kind}",
            location=config.locate(f"{kind}.{name}"),
        )
        for kind, name in config.plugin_options
        if (kind, name) not in names
    )


def _given(kind: str, names: Collection[str], config: Config) -> dict[str, tuple[Any, Location]]:
    given: dict[str, tuple[Any, Location]] = {}
    sections: dict[str, Mapping[str, Any]] = {
        name.casefold(): config.plugin_options.get((kind, name.casefold()), {}) for name in names
    }
    problems = []
    for name, options in sections.items():
        for key, value in options.items():
            location = config.locate(f"{kind}.{name}", key)
            if key in given:
                message = f"'{key}' is set here and in [{given[key][1].section}], which is the same"
                problems.append(Problem(message=message, location=location, hint="keep one"))
            given[key] = (value, location)
    if problems:
        raise ConfigError(problems=problems)
    return given


def _unused_data_keys(fields: Collection[str], name: str, config: Config) -> Iterator[Problem]:
    if config.data is None:
        return
    for key in DataPreprocessParam.model_fields:
        if key in config.data.model_fields_set and key not in _CORE_KEYS and key not in fields:
            message = f"'{key}' has no effect with input_type = {name}"
            yield Problem(message=message, location=config.locate(_DATA, key))


def _converted(hint: Any, value: Any) -> Any:
    """The value in the field's type; ValueError says what was expected."""
    # what a dataclass or a model allows is its own matter; pydantic refuses a setting for it
    own = dataclasses.is_dataclass(hint) or hasattr(hint, "model_fields")
    adapter = TypeAdapter[Any](hint, config=None if own else ConfigDict(allow_inf_nan=False))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        failure = error
    for other in _other_readings(hint, value):
        try:
            return adapter.validate_python(other)
        except ValidationError as error:
            failure = error
    details = failure.errors()
    messages = dict.fromkeys(
        str(detail.get("ctx", {}).get("error", detail["msg"])) for detail in details
    )
    raise ValueError("; ".join(messages).replace("Input should be", "expected"))


def _other_readings(hint: Any, value: Any) -> Iterator[Any]:
    """What text may also mean: one of the allowed words in another case or numbers, or a list."""
    if not isinstance(value, str):
        return
    wanted = value.strip().casefold()
    yield from (word for word in _allowed(hint) if str(word).casefold() == wanted)
    inner = value.strip().removeprefix("[").removesuffix("]")
    if _takes_list(hint):
        yield values.split_list(inner) if inner.strip() else []


def _allowed(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for part in get_args(hint):
            yield from _allowed(part)


def _takes_list(hint: Any) -> bool:
    sequence = (list, tuple, set, frozenset)
    return (
        hint in sequence
        or get_origin(hint) in sequence
        or any(_takes_list(part) for part in get_args(hint))
    )
