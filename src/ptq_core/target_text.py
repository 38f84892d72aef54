"""A target as a TOML file: the text that :func:`ptq_core.targets.target_from_toml` reads back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ptq_core.target_types import TargetEntry

_TABLES = ("operators", "accepts", "checks")  # of the spec; the rest stands above them


def target_to_toml(entry: TargetEntry) -> str:
    """The target's data; what has its default is left out, and functions cannot be written."""
    lines = [f"name = {_value(entry.name)}", f"summary = {_value(entry.summary)}"]
    if entry.aliases:
        lines.append(f"aliases = {_value(entry.aliases)}")
    lines.append("")
    spec = entry.spec
    lines += _fields(spec, skip=_TABLES)
    for name, rule in spec.operators.items():
        lines += ["", f"[operators.{name}]", *_fields(rule)]
    if not spec.operators:
        lines += ["", "[operators]"]
    accepted = list(_fields(spec.accepts))
    if accepted:
        lines += ["", "[accepts]", *accepted]
    for code, check in spec.checks.items():
        lines += ["", f"[checks.{code}]", *_fields(check)]
    return "\n".join(lines) + "\n"


def _fields(value: Any, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """A line for every field that has not its default."""
    for name, found in _written(value).items():
        if name not in skip:
            yield f"{name} = {_value(found)}"


def _written(value: Any) -> dict[str, Any]:
    return {
        one.name: getattr(value, one.name)
        for one in dataclasses.fields(value)
        if not _is_default(one, getattr(value, one.name))
    }


def _is_default(one: dataclasses.Field[Any], found: Any) -> bool:
    if one.default_factory is not dataclasses.MISSING:
        return bool(found == one.default_factory())
    return one.default is not dataclasses.MISSING and bool(found == one.default)


def _value(value: Any) -> str:
    """A TOML value; dataclasses and mappings as inline tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # all of it: a scheme reads better whole, and a fixed output has no defaults
        value = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML's basic strings have the same escapes
    return json.dumps(value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


# ------------------------------------------------------------------------------- to start from

_NEW = """# What {name} needs from a quantized model. `ptq targets check FILE` tries it out;
# `ptq targets show CPU --toml` shows another one, and the how-to "write a target" every key.
name = "{name}"
summary = "one line for `ptq targets list`"

# Codes of activations, one scale for each tensor, and of weights. symmetric: zero point 0;
# narrow_range leaves -128 out.
activation = {{ dtype = "int8", symmetric = false }}
weight = {{ dtype = "int8", symmetric = true, narrow_range = true }}
bias = "int32" # with scale s_x * s_w; or "float"
minimum_opset = 13
# maximum_opset = 21
# static_shapes = true # --input-shape is demanded where a model leaves dimensions open

# Layers: integer wherever their weights are constant. output = "float": they give floats, and only
# what they read is quantized. Operators that are not listed stay float.
[operators.Conv]
quantize = "always"
per_channel = true # one weight scale for each output channel
fuse = ["Relu", "Clip"] # merged: quantized behind it only

[operators.Gemm]
quantize = "always"
fuse = ["Relu", "Clip"]

[operators.MatMul]
quantize = "always"

# Between integer operators; "after": also where nobody reads integers behind it.
[operators.Add]
quantize = "between"
fuse = ["Relu", "Clip"]

[operators.GlobalAveragePool]
quantize = "after"

# Movers keep scale and zero point.
[operators.MaxPool]
quantize = "between"
same_parameters = true

[operators.Flatten]
quantize = "between"
same_parameters = true

[operators.Reshape]
quantize = "between"
same_parameters = true

# With a reason, which `ptq plan` tells.
# [operators.Softmax]
# quantize = "never"
# reason = "{name} computes it in float"

# What files of others may have, and which rules `ptq check --target {name}` goes by.
[accepts]
activations = ["int8"]
weights = ["int8"]
biases = ["int32"]

[checks.A-DTYPE]
severity = "error" # or "warning"
because = "what happens on {name} otherwise, in a sentence"

[checks.W-DTYPE]
severity = "error"
because = "what happens on {name} otherwise, in a sentence"
"""

_PYPROJECT = """[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "ptq-target-{slug}"
version = "0.1.0"
description = "The target {name} for ptq"
requires-python = ">=3.11"
dependencies = ["ptq-core"]

[project.entry-points.ptq]
{slug} = "ptq_target_{module}"

[tool.hatch.build.targets.wheel]
packages = ["src/ptq_target_{module}"]
"""

_MODULE = '''"""The target {name}. Its rules are in {file}."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from ptq_core.api import TargetEntry, hookimpl, target_from_toml

ptq_api_version = (1, 0)


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer {name}."""
    yield target_from_toml(files(__package__) / "{file}")
'''

_README = """# ptq-target-{slug}

The target {name} for ptq.

    pip install -e .
    ptq targets check {name}
    ptq quantize model.onnx --target {name} --data samples
"""


def new_target(name: str) -> str:
    """A commented target to start from; a small network passes through it as it is."""
    return _NEW.format(name=name)


def new_package(name: str, toml: str) -> dict[str, str]:
    """The files of a plugin around a target, by their paths."""
    slug = name.lower().replace("_", "-")
    module = slug.replace("-", "_")
    given = {"name": name, "slug": slug, "module": module, "file": f"{module}.toml"}
    source = f"src/ptq_target_{module}"
    return {
        "pyproject.toml": _PYPROJECT.format(**given),
        "README.md": _README.format(**given),
        f"{source}/__init__.py": _MODULE.format(**given),
        f"{source}/{module}.toml": toml,
    }
