"""Put operators together that exporters write as several.

Functions are recognised by what they compute, not by how it is written: what lies between two
tensors is evaluated on numbers and compared with the operator. So the order of factors, ``x * x``
or ``Pow(x, 2)``, a division or a multiplication by the reciprocal make no difference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph.constants import new_constant
from ptq_core.graph.functions import FUNCTIONS, Array, evaluate, reduced_axes
from ptq_core.graph.names import Names
from ptq_core.graph.operators import (
    attribute,
    constant,
    dimensions,
    is_float,
    is_standard,
    key,
    label,
    rank,
    scalar,
)
from ptq_core.graph.prepared import Prepared, only_consumer, swap_node

MERGED_SINCE = {
    "Gelu": 20,
    "LayerNormalization": 17,
    "LpNormalization": 1,
}  # that know the operator
_TOLERANCE = 2e-5  # constants are written with 5 digits and more; the two Gelus differ by 5e-4
_BEFORE, _AFTER = 12, 4  # nodes of the longest known spellings, before and behind the anchor
_NOTHING = 1e-6  # a length that keeps a division defined
_WIDTH = 8  # of the rows that layer normalization is tried on


def merge_operators(prepared: Prepared, names: Collection[str]) -> None:
    """Recognise these operators in what stands for them, and write each as one node.

    Args:
        prepared: the model; nodes that are put together remember the names of their parts.
        names: ``Gelu`` (of Erf, or of Tanh), ``LayerNormalization`` (over the last axis),
            ``LpNormalization`` (division by the Euclidean length; what keeps that from zero, up to
            1e-6, is left out).
    """
    merges = {
        "Gelu": _merge_gelu,
        "LayerNormalization": _merge_normalization,
        "LpNormalization": _merge_length,
    }
    opset = prepared.model.graph.opset_imports.get("", 1)
    for name in names:
        if opset < MERGED_SINCE[name]:
            prepared.notes.append(
                f"{name} is not put together: it needs opset {MERGED_SINCE[name]}"
            )
            continue
        anchors = [node for node in prepared.model.graph if is_standard(node)]
        merged = sum(merges[name](prepared, node) for node in anchors if node.graph is not None)
        if merged:
            prepared.notes.append(f"{merged} x {name} put together from simpler operators")


# ---------------------------------------------------------------------------------------- Gelu


def _merge_gelu(prepared: Prepared, anchor: ir.Node) -> bool:
    if anchor.op_type not in ("Erf", "Tanh"):
        return False
    points = np.append(np.linspace(-6.0, 6.0, 97), (-1e3, 1e3))
    within = FUNCTIONS["Erf"](points / math.sqrt(2))
    attributes = {}
    if anchor.op_type == "Tanh":
        within = np.tanh(math.sqrt(2 / math.pi) * (points + 0.044715 * points**3))
        attributes = {"approximate": "tanh"}
    expected = 0.5 * points * (1 + within)
    for end in _behind(anchor):
        for source in _before(anchor):
            found = evaluate(end.outputs[0], source, points)
            if _close(found, expected) and is_float(source):
                gelu = ir.node("Gelu", [source], attributes, name=end.name)
                _put(prepared, end, gelu, source)
                return True
    return False


# ------------------------------------------------------------------------------- normalization


def _merge_normalization(prepared: Prepared, anchor: ir.Node) -> bool:
    square_root = anchor.op_type == "Sqrt" or (
        anchor.op_type == "Pow" and scalar(anchor.inputs[1]) in (0.5, -0.5)
    )
    if not square_root:
        return False
    epsilon = _epsilon(anchor)
    for end in _behind(anchor):
        for source in reversed(list(_before(anchor))):  # x, rather than x without its mean
            *axes, width = dimensions(source) or (None,)
            if not is_float(source) or not isinstance(width, int):
                continue  # its factors are as many as the width
            if _normalizes(end, source, len(axes), epsilon):
                _put_normalization(prepared, end, source, width, epsilon)
                return True
    return False


def _epsilon(anchor: ir.Node) -> float:
    """What is added to the variance, 0 where nothing is."""
    add = None if anchor.inputs[0] is None else anchor.inputs[0].producer()
    if add is None or add.op_type != "Add":
        return 0.0
    numbers = [number for value in add.inputs if (number := scalar(value)) is not None]
    return numbers[0] if numbers else 0.0


def _normalizes(end: ir.Node, source: ir.Value, axes: int, epsilon: float) -> bool:
    """Whether that is what is computed along the last axis, with so many before it."""
    if not 0 <= epsilon < math.inf:
        return False
    draw = np.random.default_rng(0)
    for size in (1.0, max(math.sqrt(epsilon), 1e-6)):  # where epsilon counts
        rows = draw.standard_normal((*(2,) * axes, _WIDTH)) * size + size
        mean, variance = rows.mean(-1, keepdims=True), rows.var(-1, keepdims=True)
        expected = (rows - mean) / np.sqrt(variance + epsilon)
        if not _close(evaluate(end.outputs[0], source, rows), expected):
            return False
    return True


def _put_normalization(
    prepared: Prepared, end: ir.Node, source: ir.Value, width: int, epsilon: float
) -> None:
    """With the factors and summands per channel that follow."""
    axes = rank(source) or 0
    factor, last = _operand(end, "Mul", width, axes)
    summand, last = _operand(last, "Add", width, axes) if factor is not None else (None, last)
    if factor is None:
        factor = np.ones(width, np.float32)
    graph, name, free = prepared.model.graph, last.outputs[0].name, Names(prepared.model).free
    inputs = [source, new_constant(graph, free(f"{name}_factor"), factor)]
    if summand is not None:
        inputs.append(new_constant(graph, free(f"{name}_summand"), summand))
    attributes: dict[str, Any] = {"axis": -1, "epsilon": epsilon}
    _put(prepared, last, ir.node("LayerNormalization", inputs, attributes, name=last.name), source)


def _operand(
    node: ir.Node, op_type: str, width: int, axes: int
) -> tuple[NDArray[np.float32] | None, ir.Node]:
    """The numbers per channel with which the only reader multiplies, or that it adds; the reader.

    None and the node itself where there are none.
    """
    reader = only_consumer(node.outputs[0])
    if reader is None or reader.op_type != op_type or not is_standard(reader):
        return None, node
    other = next((v for v in reader.inputs if v is not node.outputs[0]), None)
    array = constant(other)
    if array is None or array.dtype != np.float32 or not 0 < array.ndim <= axes:
        return None, node
    if array.shape[-1] != width or array.size != width:
        return None, node
    return np.ascontiguousarray(array.reshape(-1)), reader


# ------------------------------------------------------------------------------------- length


def _merge_length(prepared: Prepared, anchor: ir.Node) -> bool:
    if anchor.op_type != "ReduceL2" or not attribute(anchor, "keepdims", 1):
        return False
    axes, source = reduced_axes(anchor), anchor.inputs[0]
    if axes is None or len(axes) != 1 or source is None or not is_float(source):
        return False
    length, reader = anchor.outputs[0], only_consumer(anchor.outputs[0])
    while reader is not None and _keeps_length(reader, length, source):
        length = reader.outputs[0]
        reader = only_consumer(length)
    if reader is None or reader.op_type != "Div" or list(reader.inputs) != [source, length]:
        return False
    attributes = {"axis": axes[0], "p": 2}
    new = ir.node("LpNormalization", [source], attributes, name=reader.name)
    _put(prepared, reader, new, source)
    return True


def _keeps_length(node: ir.Node, length: ir.Value, source: ir.Value) -> bool:
    """Whether the node only guards against a division by zero, or repeats the length."""
    if not is_standard(node) or node.inputs[0] is not length:
        return False
    shape = dimensions(source)
    if node.op_type == "Expand":
        return shape is not None and None not in shape and dimensions(node.outputs[0]) == shape
    _, guard, *further = (*node.inputs, None)
    array = constant(guard)
    if node.op_type not in ("Clip", "Max", "Add") or any(further) or array is None:
        return False
    return array.ndim <= len(shape or ()) and array.size == 1 and 0 <= array.item() <= _NOTHING


# ------------------------------------------------------------------------------------- all


def _before(anchor: ir.Node) -> Iterator[ir.Value]:
    """The tensors that the anchor's input is made of, nearest first."""
    found: dict[ir.Value, None] = {}
    waiting = [anchor.inputs[0]]
    while waiting and len(found) < _BEFORE:
        value = waiting.pop(0)
        if value is None or value in found or constant(value) is not None:
            continue
        found[value] = None
        node = value.producer()
        if node is not None and (node.op_type in FUNCTIONS or node.op_type == "ReduceMean"):
            waiting += list(node.inputs)
    yield from found


def _behind(anchor: ir.Node) -> Iterator[ir.Node]:
    """The anchor's readers, their readers and so on, nearest first."""
    level = [anchor]
    for _ in range(_AFTER):
        readers = {use.node: None for node in level for use in node.outputs[0].uses()}
        level = [one for one in readers if one.op_type in FUNCTIONS and one.graph is anchor.graph]
        yield from level


def _close(found: Any, expected: Array) -> bool:
    return (
        isinstance(found, np.ndarray)
        and found.shape == expected.shape
        and bool(np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE))
    )


def _put(prepared: Prepared, end: ir.Node, new: ir.Node, source: ir.Value) -> None:
    """Put ``new`` in the place of ``end`` and all before it that nothing else needs."""
    graph = prepared.model.graph
    own = (label(end), *prepared.merged.pop(key(end), ()))
    waiting = [value.producer() for value in end.inputs if value is not None]
    swap_node(prepared, end, new)
    names = list(own)
    while waiting:
        node = waiting.pop(0)
        if node is None or node.graph is None or node is source.producer():
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        waiting += [value.producer() for value in node.inputs if value is not None]
        names += [label(node), *prepared.merged.pop(key(node), ())]
        graph.remove(node, safe=True)
    prepared.merged[key(new)] = tuple(dict.fromkeys(names))
