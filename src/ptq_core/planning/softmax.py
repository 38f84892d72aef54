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


def mark_softmax(
    tensors: Mapping[str, TensorPlan], chosen: Iterable[Draft]
) -> dict[str, TensorPlan]:
    """The tensors, with what is known of those that only Softmax reads, and of masks."""
    drafts = {ops.key(draft.node): draft for draft in chosen}
    marked = dict(tensors)
    masks: dict[str, list[tuple[str, str]]] = {}
    for draft in drafts.values():
        name = draft.output.name or ""
        axis = _softmax_axis(draft.output, drafts)
        if axis is None or name not in marked or marked[name].source != name:
            continue
        marked[name] = replace(marked[name], softmax_axis=axis)
        if draft.node.op_type == "Add" and len(draft.data) == 2:
            first, second = (tensors[value.name or ""].source for value in draft.data)
            masks.setdefault(first, []).append((name, second))
            masks.setdefault(second, []).append((name, first))
    for source, sums in masks.items():
        if _only_added(source, {name for name, _ in sums}, tensors, drafts):
            marked[source] = replace(marked[source], masks=tuple(sums))
    return marked


def _softmax_axis(value: ir.Value, drafts: Mapping[str, Draft]) -> int | None:
    """Along which Softmax reads the tensor, None where others read it or along several axes."""
    readers = [use.node for use in value.uses()]
    axes = {int(ops.attribute(node, "axis", -1)) for node in readers}
    softmax = all(node.op_type == "Softmax" and ops.key(node) in drafts for node in readers)
    return axes.pop() if softmax and len(axes) == 1 and not value.is_graph_output() else None


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
    readers = {id(value): value for draft in drafts.values() for value in draft.data}
    for value in readers.values():
        if value.name not in same:
            continue
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

    All of a row that is lifted adds up to less than half a step of the result.
    """
    if tensor.masks:
        values = np.maximum(values, np.finfo(np.float32).min)  # minus infinity is a mask, too
    if tensor.softmax_axis is None or not values.size:
        return values
    count = values.shape[tensor.softmax_axis]
    depth = math.log(count * 2.0 ** (tensor.scheme.bits + 1))
    largest = values.max(axis=tensor.softmax_axis, keepdims=True)
    return np.asarray(np.maximum(values, largest - np.float32(depth)), np.float32)


def narrowed(plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges, those of masks no lower than what takes every sum out of its range.

    Devices add integers of unlike scales badly.
    """
    found = dict(ranges)
    for name, tensor in plan.tensors.items():
        if not tensor.masks or name not in ranges:
            continue
        needed = min(
            _range(plan.tensors[total], ranges).low - _range(plan.tensors[other], ranges).high
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
