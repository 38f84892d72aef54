"""The two values of ``[ascend_context]`` that have a grammar of their own.

``input_shape`` is ``name:[d,...];name2:[...]`` where -1 is a dimension that varies.
``dynamic_dims`` lists its values: ``[1~4],[8],[16]``, a profile in each pair of brackets with one
entry, ``n`` or ``lo~hi``, per varying dimension; several inputs are separated by ``;``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Span: TypeAlias = tuple[int, int]  # both ends included
Profile: TypeAlias = tuple[Span, ...]

_SIZE = re.compile(r"-1|[1-9][0-9]{0,8}")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_PROFILES = re.compile(r"\s*\[[^\[\]]*\]\s*(?:,\s*\[[^\[\]]*\]\s*)*")
_ENTRY = re.compile(r"([1-9][0-9]{0,8})(?:\s*~\s*([1-9][0-9]{0,8}))?")
_MOST_SIZES = 100  # that a model is compiled for
_DYNAMIC_RANK = 4  # only images vary on these devices


def input_shapes(value: Any) -> dict[str, Shape]:
    """Each input's shape, from the text or from a table of arrays."""
    expected = "expected name:[1,32,32,4] with ';' between inputs; -1 is a varying dimension"
    if isinstance(value, Mapping):
        pairs = [(str(name), str(shape)) for name, shape in value.items()]  # arrays: [1, 32]
    elif isinstance(value, str):
        pairs = [part.rpartition(":")[::2] for part in value.split(";")]
    else:
        raise ValueError(expected)  # noqa: TRY004
    shapes: dict[str, Shape] = {}
    for name, text in ((name.strip(), shape.strip()) for name, shape in pairs):
        brackets = _BRACKETS.fullmatch(text)
        sizes = [size.strip() for size in brackets[1].split(",")] if brackets else []
        if (
            not name
            or set(name) & set("[]")
            or not sizes
            or not all(_SIZE.fullmatch(size) for size in sizes)
        ):
            raise ValueError(expected)
        if name in shapes:
            raise ValueError(f"input '{name}' is there twice")
        shapes[name] = tuple(int(size) for size in sizes)
    if not shapes:
        raise ValueError(expected)
    return shapes


def dynamic_profiles(value: Any) -> tuple[tuple[Profile, ...], ...]:
    """The profiles of each input, as written; :func:`expand` lists their sizes."""
    expected = "expected [1~4],[8],[16]: sizes or ranges in brackets, ';' between inputs"
    if not isinstance(value, str):
        raise ValueError(expected)  # noqa: TRY004
    return tuple(_profiles(group, expected) for group in value.split(";"))


def _profiles(group: str, expected: str) -> tuple[Profile, ...]:
    if not _PROFILES.fullmatch(group):
        raise ValueError(expected)
    profiles: list[Profile] = []
    for inner in _BRACKETS.findall(group):
        spans = []
        for entry in inner.split(","):
            match = _ENTRY.fullmatch(entry.strip())
            if match is None:
                raise ValueError(expected)
            low, high = int(match[1]), int(match[2] or match[1])
            if low > high:
                raise ValueError(f"the range {entry.strip()} runs backwards; write {high}~{low}")
            spans.append((low, high))
        profiles.append(tuple(spans))
    return tuple(profiles)


def expand(profiles: tuple[Profile, ...]) -> tuple[Shape, ...]:
    """All sizes that the profiles stand for: ``[1~4],[8]`` are 1, 2, 3, 4 and 8, each once."""
    sizes: dict[Shape, None] = {}
    for profile in profiles:
        spans = [range(low, high + 1) for low, high in profile]
        sizes.update(dict.fromkeys(itertools.product(*spans)))
    return tuple(sizes)


def mismatch(
    shapes: Mapping[str, Shape], dynamic_dims: tuple[tuple[Profile, ...], ...]
) -> str | None:
    """What is wrong with these shapes and profiles together; None if nothing is.

    A 4-D input may vary in its batch (dimension 0), or in exactly two of the dimensions 1 to 3
    (the picture's size). All inputs that vary have the same profiles.
    """
    varying = {
        name: tuple(axis for axis, size in enumerate(shape) if size == -1)
        for name, shape in shapes.items()
        if -1 in shape
    }
    if not varying:
        return "no dimension in input_shape is -1" if dynamic_dims else None
    for name, axes in varying.items():
        if len(shapes[name]) != _DYNAMIC_RANK:
            return f"input '{name}' varies but has {len(shapes[name])} dimensions; expected 4"
        if axes != (0,) and not (len(axes) == 2 and 0 not in axes):
            return (
                f"input '{name}' varies in dimensions {', '.join(map(str, axes))}; "
                "expected 0 alone (the batch), or two of 1, 2, 3 (the picture's size)"
            )
    if len({len(axes) for axes in varying.values()}) > 1:
        return "some inputs vary in their batch and some in their size; expected one of them"
    if not dynamic_dims:
        return f"input '{next(iter(varying))}' has a dimension -1 but there is no dynamic_dims"
    if len(dynamic_dims) != len(varying):
        return f"{len(dynamic_dims)} groups of sizes for {len(varying)} inputs with a dimension -1"
    if len(set(dynamic_dims)) > 1:
        return "the groups of sizes differ; all inputs must vary alike"
    entries = len(next(iter(varying.values())))
    spans = [span for profile in dynamic_dims[0] for span in profile]
    if any(high - low >= _MOST_SIZES for low, high in spans) or (
        len(expand(dynamic_dims[0])) > _MOST_SIZES
    ):
        return f"dynamic_dims lists more than {_MOST_SIZES} sizes, the most that a model can have"
    for profile in dynamic_dims[0]:
        if len(profile) != entries:
            return f"a profile has {len(profile)} entries for {entries} dimensions that are -1"
    return None
