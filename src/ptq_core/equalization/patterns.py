"""Patterns: which variable every element of a tensor belongs to, and how operators change that.

A pattern has the tensor's rank; an axis along which nothing varies has size 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph import operators as ops

Pattern: TypeAlias = NDArray[np.int64]

_LARGEST = 1 << 24  # elements of a tensor whose reshaping is worth following
_PRIMES = (2, 3, 5, 7, 11)  # stand for open dimensions: no product of them is ambiguous


def along(variables: NDArray[np.int64], axis: int, rank: int) -> Pattern:
    """The pattern that varies along one axis."""
    shape = [1] * rank
    shape[axis] = -1
    return variables.reshape(shape)


def channels_only(pattern: Pattern) -> bool:
    """Whether nothing varies over height and width."""
    return pattern.ndim > 2 and all(size == 1 for size in pattern.shape[2:])


def joined(parts: Sequence[tuple[ir.Value, Pattern | None]], axis: int) -> Pattern | None:
    """The pattern of a Concat whose operands vary along its axis; those without one are fixed."""
    rank = next(pattern.ndim for _, pattern in parts if pattern is not None)
    pieces = []
    for value, pattern in parts:
        dims = ops.dimensions(value)
        size = None if dims is None or len(dims) != rank else dims[axis]
        if pattern is None and isinstance(size, int):
            pieces.append(along(np.zeros(size, np.int64), axis, rank))
        elif pattern is None or (pattern.shape[axis] == 1 and size != 1):
            return None
        else:
            pieces.append(pattern)
    shape = np.max([piece.shape for piece in pieces], axis=0)
    try:
        whole = [
            np.broadcast_to(p, (*shape[:axis], p.shape[axis], *shape[axis + 1 :])) for p in pieces
        ]
    except ValueError:
        return None
    return np.concatenate(whole, axis)


def _same_elements(node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
    """Reshape and its kin: the same elements in the same order, under another shape."""
    source = node.inputs[0]
    before = None if source is None else ops.dimensions(source)
    after = ops.dimensions(node.outputs[0])
    if before is None or after is None or len(before) != pattern.ndim:
        return None
    sizes = _sizes(before, after)
    if sizes is None:
        return None
    old, new = sizes
    if any(n not in (1, m) for n, m in zip(pattern.shape, old, strict=True)):
        return None
    moved = np.broadcast_to(pattern, old).reshape(new)
    for axis in range(moved.ndim):
        first = moved.take([0], axis)
        if (moved == first).all():
            moved = first
        elif not isinstance(after[axis], int):
            return None  # it would vary along an axis whose size is open
    return [moved]


def _sizes(
    before: Sequence[int | str | None], after: Sequence[int | str | None]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Both shapes with numbers for open dimensions, the same number for the same name.

    One new name in the second shape is what a -1 in the target of a Reshape has left.
    """
    if any(dim is None for dim in before) or after.count(None) > 1:
        return None
    names = dict.fromkeys(str(dim) for dim in before if not isinstance(dim, int))
    if len(names) > len(_PRIMES):
        return None
    numbers = dict(zip(names, _PRIMES, strict=False))
    old = tuple(dim if isinstance(dim, int) else numbers[str(dim)] for dim in before)
    new = [dim if isinstance(dim, int) else numbers.get(str(dim), 0) for dim in after]
    total = math.prod(old)
    if new.count(0) == 1:
        new[new.index(0)] = total // max(1, math.prod(n for n in new if n))
    fits = math.prod(new) == total and 0 < total <= _LARGEST
    return (old, tuple(new)) if fits else None


def _transpose(node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
    order = ops.attribute(node, "perm", tuple(reversed(range(pattern.ndim))))
    return [pattern.transpose(order)]


def _slice(node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
    dims = ops.dimensions(node.inputs[0]) if node.inputs[0] is not None else None
    given = [ops.constant(value) for value in node.inputs[1:]]
    if dims is None or len(dims) != pattern.ndim or len(given) < 2:
        return None
    if any(v is not None and ops.constant(v) is None for v in node.inputs[1:]):
        return None
    starts, ends = given[:2]
    if starts is None or ends is None:
        return None
    axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))
    steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(starts), int)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if pattern.shape[axis] == 1 and dims[axis] != 1:
            continue
        if step < 1 or pattern.shape[axis] != dims[axis]:
            return None
        cut = [slice(None)] * pattern.ndim
        cut[axis] = slice(int(start), int(end), int(step))
        pattern = pattern[tuple(cut)]
    return [pattern] if pattern.size else None


def _split(node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
    axis = int(ops.attribute(node, "axis", 0)) % pattern.ndim
    whole = ops.dimensions(node.inputs[0]) if node.inputs[0] is not None else None
    if whole is not None and pattern.shape[axis] == 1 and whole[axis] != 1:
        return [pattern] * len(node.outputs)
    sizes = []
    for output in node.outputs:
        dims = ops.dimensions(output)
        size = None if dims is None else dims[axis]
        if not isinstance(size, int):
            return None
        sizes.append(size)
    if sum(sizes) != pattern.shape[axis]:
        return None
    return np.split(pattern, np.cumsum(sizes)[:-1].tolist(), axis)


def _resize(node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
    source = node.inputs[0]
    before = None if source is None else ops.dimensions(source)
    after = ops.dimensions(node.outputs[0])
    mode = ops.attribute(node, "coordinate_transformation_mode", "half_pixel")
    if before is None or after is None or mode == "tf_crop_and_resize":
        return None
    same = isinstance(before[1], int) and before[1] == after[1]
    return [pattern] if same and channels_only(pattern) else None


def _pad(node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
    """Zeros, or copies of what is there, around height and width."""
    amounts = ops.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    rest = [value for value in node.inputs[2:] if value is not None]
    if amounts is None or len(rest) > 1:  # the second one would be axes
        return None
    if any(ops.scalar(value) != 0.0 for value in rest):
        return None
    changed = [axis % pattern.ndim for axis in np.flatnonzero(amounts).tolist()]
    return [pattern] if all(pattern.shape[axis] == 1 for axis in changed) else None


CHANGES: dict[str, Callable[[ir.Node, Pattern], list[Pattern] | None]] = {
    "Reshape": _same_elements,
    "Flatten": _same_elements,
    "Squeeze": _same_elements,
    "Unsqueeze": _same_elements,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Resize": _resize,
    "Pad": _pad,
}
