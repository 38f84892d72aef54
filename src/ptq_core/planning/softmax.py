"""Ranges in front of Softmax: what it makes zero of needs no codes.

Attention masks add a number such as -10000 or the lowest float to what Softmax must not see. A
range that holds it leaves one or two codes for everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph import operators as ops
from ptq_core.planning.nodes import Draft
from ptq_core.planning.plan import Plan, TensorPlan
from ptq_core.types import QScheme, Range

_MASKED = 1000.0  # further apart than any scores: the whole row has been pushed down


def mark_softmax(
    tensors: Mapping[str, TensorPlan], chosen: Iterable[Draft]
) -> dict[str, TensorPlan]:
    """The tensors, with what is known of those that only Softmax reads, and of masks.

    Args:
        tensors: by name.
        chosen: the integer operators, in the order of the graph.
    """
    drafts = {ops.key(draft.node): draft for draft in chosen}
    marked = dict(tensors)
    sums: dict[str, list[tuple[str, str | float]]] = {}

    def settle(source: str) -> None:
        totals = {name for name, _ in sums.get(source, ())}
        if totals and _only_added(source, totals, tensors, drafts):
            marked[source] = replace(marked[source], masks=tuple(sums[source]))

    for draft in reversed(drafts.values()):  # what reads a result is known before it
        name = draft.output.name or ""
        if name not in marked or marked[name].source != name:
            continue
        settle(name)
        marked[name] = replace(marked[name], softmax_axis=_softmax_axis(draft.output, drafts))
        counts_from_below = marked[name].softmax_axis is None and not marked[name].masks
        if draft.node.op_type != "Add" or counts_from_below:
            continue
        operands = [_operand(value, tensors) for value in draft.node.inputs]
        for one, other in (operands, reversed(operands)):
            if isinstance(one, str):
                sums.setdefault(one, []).append((name, other))
    for source in sums:  # inputs of the model among them
        settle(source)
    return marked


def _operand(value: ir.Value | None, tensors: Mapping[str, TensorPlan]) -> str | float:
    """The source of a summand, or the largest number of a constant one."""
    array = ops.constant(value)
    if array is not None:
        return float(array.max(initial=-np.inf))
    return tensors["" if value is None else value.name or ""].source


def _softmax_axis(value: ir.Value, drafts: Mapping[str, Draft]) -> int | None:
    """Along which Softmax reads the tensor, None where others read it or along several axes."""
    axes = {_read_along(use.node, value, drafts) for use in value.uses()}
    return axes.pop() if len(axes) == 1 and not value.is_graph_output() else None


def _read_along(node: ir.Node, value: ir.Value, drafts: Mapping[str, Draft]) -> int | None:
    """The same for one that reads it; a Reshape may keep the rows together."""
    if ops.key(node) not in drafts:
        return None
    if node.op_type == "Softmax":
        return int(ops.attribute(node, "axis", -1))
    result = node.outputs[0]
    before, after = (ops.dimensions(one) or (None,) for one in (value, result))
    if node.op_type != "Reshape" or not isinstance(after[-1], int) or after[-1] != before[-1]:
        return None
    return -1 if _softmax_axis(result, drafts) in (-1, len(after) - 1) else None


def _only_added(
    source: str,
    sums: set[str],
    tensors: Mapping[str, TensorPlan],
    drafts: Mapping[str, Draft],
) -> bool:
    """Whether all that reads the tensor, through movers or not, are those sums."""
    same = {name for name, tensor in tensors.items() if tensor.source == source}
    if tensors[source].fixed is not None:
        return False
    values = {
        value.name: value
        for draft in drafts.values()
        for value in (*draft.data, draft.output, *draft.node.outputs[1:])
    }
    for value in (values[name] for name in same):
        if value.is_graph_output():
            return False
        for use in value.uses():
            draft = drafts.get(ops.key(use.node))
            result = "" if draft is None else draft.output.name or ""
            if result not in sums and result not in same:
                return False
    return True


def lifted(values: NDArray[np.float32], tensor: TensorPlan) -> NDArray[np.float32]:
    """The values of one run, those that Softmax makes zero of lifted to where it just does.

    All of a row that is lifted adds up to less than half a step of the result. A row that is masked
    from end to end is lifted to where the others end.
    """
    if tensor.masks:
        values = np.maximum(values, np.finfo(np.float32).min)  # minus infinity is a mask, too
    if tensor.softmax_axis is None or not values.size:
        return values
    count = values.shape[tensor.softmax_axis]
    depth = math.log(count * 2.0 ** (tensor.scheme.bits + 1))
    largest = values.max(axis=tensor.softmax_axis, keepdims=True)
    lowest = largest - np.float32(depth)
    masked = largest < largest.max() - _MASKED
    lowest[masked] = lowest[~masked].min()
    return np.asarray(np.maximum(values, lowest), np.float32)


def narrowed(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges, those of masks no lower than what takes every sum out of its range.

    Devices add integers of unlike scales badly.
    """
    found = dict(ranges)
    for name, tensor in reversed(plan.tensors.items()):  # sums before what is added into them
        if not tensor.masks or name not in ranges:
            continue
        needed = min(
            _range(plan.tensors[total], found).low
            - (_range(plan.tensors[other], ranges).high if isinstance(other, str) else other)
            for total, other in tensor.masks
        )
        low = max(ranges[name].low, min(needed, 0.0))
        found[name] = Range(low=low, high=max(ranges[name].high, low))
    return found


def _range(tensor: TensorPlan, ranges: Mapping[str, Range]) -> Range:
    if tensor.fixed is None:
        return ranges[tensor.source]
    scheme: QScheme = tensor.scheme
    low, high = (
        tensor.fixed.scale * (code - tensor.fixed.zero_point) for code in (scheme.qmin, scheme.qmax)
    )
    return Range(low=low, high=high)
