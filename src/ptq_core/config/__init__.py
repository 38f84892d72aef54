"""The configuration: one schema, two syntaxes (INI and TOML), errors with file and line.

Importing this package is cheap; pydantic comes with the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptq_core.config.ascend import expand
    from ptq_core.config.configuration import Config, resolve_path
    from ptq_core.config.input_shape import parse_input_shape
    from ptq_core.config.load import config_from_values, load_config, parse_config
    from ptq_core.config.options import unused_options, validate_options
    from ptq_core.config.render import render_config
    from ptq_core.config.templates import TEMPLATES, template

_HOMES = {
    "Config": "configuration",
    "TEMPLATES": "templates",
    "config_from_values": "load",
    "expand": "ascend",
    "load_config": "load",
    "parse_config": "load",
    "parse_input_shape": "input_shape",
    "render_config": "render",
    "resolve_path": "configuration",
    "template": "templates",
    "unused_options": "options",
    "validate_options": "options",
}

__all__ = [
    "TEMPLATES",
    "Config",
    "config_from_values",
    "expand",
    "load_config",
    "parse_config",
    "parse_input_shape",
    "render_config",
    "resolve_path",
    "template",
    "unused_options",
    "validate_options",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
