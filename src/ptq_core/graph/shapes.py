"""Fix the dimensions that a model leaves open, for devices that take no other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ptq_core.errors import ConfigError, Problem
from ptq_core.graph.operators import dimensions


def fix_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]], device: str) -> None:
    """Give the inputs these shapes, in place, and every symbol the size that it has in them.

    Args:
        model: as loaded.
        shapes: by input; one that is static in the model may be missing.
        device: who demands it, for messages.

    Raises:
        ConfigError: an input stays open, or a shape does not go with the model's; all of them.
    """
    problems: list[Problem] = []
    sizes: dict[str, int] = {}
    constants = {value for value in model.graph.inputs if value.is_initializer()}
    inputs = [value for value in model.graph.inputs if value not in constants]
    for value in inputs:
        found = dimensions(value)
        given = tuple(shapes.get(value.name or "", ()))
        if not given or (found is not None and len(found) != len(given)):
            continue  # one that does not fit is refused where the inputs are described
        for dim, size in zip(found or (), given, strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                message = f"'{dim}' is {sizes[dim]} in one input and {size} in '{value.name}'"
                problems.append(Problem(message=message, hint="give one size for it"))
        kept = (
            dim if isinstance(dim, int) else size
            for dim, size in zip(found or given, given, strict=True)
        )
        value.shape = ir.Shape(kept)
    for value in inputs:
        found = dimensions(value)
        fixed = None if found is None else [_size(dim, sizes) for dim in found]
        if fixed is None or any(size is None for size in fixed):
            shown = "without a rank" if found is None else _shown(found)
            problems.append(
                Problem(
                    message=f"input '{value.name}' is {shown}, and {device} takes static shapes "
                    "only",
                    hint=f"give --input-shape '{value.name}:1,3,224,224' with your own numbers",
                )
            )
        else:
            value.shape = ir.Shape(fixed)
    if problems:
        raise ConfigError(problems=problems)
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                found = dimensions(value)
                if found is not None:
                    value.shape = ir.Shape(
                        sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in found
                    )


def _size(dim: int | str | None, sizes: Mapping[str, int]) -> int | None:
    return dim if isinstance(dim, int) else sizes.get(dim or "")


def _shown(dims: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
