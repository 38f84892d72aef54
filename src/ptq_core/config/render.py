"""The other way round: a :class:`Config` as text, to show what a command line means."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ptq_core.config import values
from ptq_core.config.configuration import Config
from ptq_core.config.document import Syntax
from ptq_core.config.ini import read_ini
from ptq_core.config.sections import RUNNER, SECTIONS, SectionModel
from ptq_core.errors import ConfigError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_INI_SECTION = re.compile(r'[^\s\[\]"]([^\[\]\r\n]*[^\s\[\]])?')


def render_config(config: Config, syntax: Syntax) -> str:
    """The config as text: what was set, and what is mandatory. Reading it gives the same config.

    A device that only the command line named is written where the syntax has a place for it, else
    as a comment.

    Raises:
        ConfigError: a value that INI cannot hold (several lines, a double quote).
    """
    return "\n\n".join(_blocks(config, syntax)) + "\n"


def _blocks(config: Config, syntax: Syntax) -> Iterator[str]:
    has_place = config.target.casefold() == "cpu" or config.ascend is not None
    for name, model in _models(config).items():
        keys = [key for key in type(model).model_fields if key in model.model_fields_set]
        settings = {key: getattr(model, key) for key in keys}
        if name == "full_quant_param" and config.common.quant_type == "FULL_QUANT":
            if not has_place:
                settings.setdefault("target_device", config.target)
            has_place = True
        if name == "ascend_context":
            settings |= _ascend(settings)
        if settings or name in ("full_quant_param", "data_preprocess_param", "ascend_context"):
            yield _block(_header(name, syntax), settings, syntax)
    if config.runner is not None:
        yield _block(f"[{RUNNER}]", {"name": config.runner}, syntax)
    for kind, name in config.plugin_options:
        written = (config.locate(f"{kind}.{name}").section or f"{kind}.{name}").partition(".")[2]
        options = config.plugin_options[kind, name]
        yield _block(_header(f"{kind}.{written.strip()}", syntax), options, syntax)
    if not has_place:
        yield f"# on the command line: --target {config.target}"


def _models(config: Config) -> dict[str, SectionModel]:
    found = (
        config.common,
        config.weight,
        config.mixed,
        config.full,
        config.data,
        config.dynamic,
        config.ascend,
    )
    return {name: model for name, model in zip(SECTIONS, found, strict=True) if model is not None}


def _ascend(settings: Mapping[str, Any]) -> dict[str, str]:
    """The values with a grammar of their own, as text in that grammar."""
    texts = {}
    if "input_shape" in settings:
        shapes = settings["input_shape"].items()
        texts["input_shape"] = ";".join(
            f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes
        )
    if "dynamic_dims" in settings:
        texts["dynamic_dims"] = ";".join(
            ",".join(
                "[" + ",".join(f"{lo}~{hi}" if lo != hi else f"{lo}" for lo, hi in profile) + "]"
                for profile in group
            )
            for group in settings["dynamic_dims"]
        )
    return texts


def _block(header: str, settings: Mapping[str, Any], syntax: Syntax) -> str:
    return "\n".join((header, *(assignment(key, settings[key], syntax) for key in settings)))


def _header(section: str, syntax: Syntax) -> str:
    kind, dot, name = section.partition(".")
    if syntax == "toml":
        return f"[{kind}{dot}{_toml_key(name) if dot else ''}]"
    if not _INI_SECTION.fullmatch(section):
        raise ConfigError(f"INI cannot hold a section named {section!r}", hint="use TOML")
    return f"[{section}]"


def assignment(key: str, value: Any, syntax: Syntax) -> str:
    """One line that sets the key."""
    if syntax == "toml":
        return f"{_toml_key(key)} = {_toml_value(value)}"
    text = _ini_value(value)
    if not _reads_back(key, value, text):
        raise ConfigError(
            f"INI cannot hold {key} = {value!r}", hint="use TOML for names with such characters"
        )
    return f"{key}={text}"


# ------------------------------------------------------------------------------------------ INI


def _ini_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return _ini_value([f"{name}:{folder}" for name, folder in value.items()])
    if isinstance(value, list | tuple):
        parts = [_ini_value(element) for element in value]
        if parts and all(isinstance(element, str) for element in value):
            return ",".join(f'"{part}"' if "," in part else part for part in parts)
        return f"[{', '.join(parts)}]"
    text = str(value)
    return f'"{text}"' if "#" in text else text


def _reads_back(key: str, value: Any, text: str) -> bool:
    """Whether this line of INI means this value: INI has no escapes, so some text has no form."""
    document = read_ini(f"[section]\n{key}={text}")
    entry = document.sections["section"].entries.get(key)
    if document.problems or entry is None:
        return False
    if isinstance(value, Mapping):
        return entry.value != "" and _folders(entry.value) == dict(value)
    if isinstance(value, list | tuple):
        found = values.split_list(entry.value.removeprefix("[").removesuffix("]"))
        return not value or found == [str(_plain(element)) for element in value]
    return bool(entry.value == str(_plain(value)))


def _folders(text: str) -> dict[str, str] | None:
    try:
        return values.folders(text)
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


# ----------------------------------------------------------------------------------------- TOML


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml_text(key)


def _toml_text(text: str) -> str:
    # a JSON string is a TOML basic string but for DEL, which TOML wants escaped
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml_key(str(key))} = {_toml_value(v)}" for key, v in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(element) for element in value)}]"
    return _toml_text(str(value))
