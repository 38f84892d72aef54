"""What a few nodes compute, as a function of one tensor: to recognise it, however it is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph.operators import attribute, constant, is_standard, rank

Array = NDArray[np.float64]

_DEEPEST = 16  # nodes in a row

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Tanh": np.tanh,
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
}


def evaluate(value: ir.Value | None, source: ir.Value, given: Array) -> Any:
    """What ``value`` is where ``source`` is ``given``.

    None where it is not made of that and of single numbers alone, or where one of these has more
    dimensions than ``source``, which the result would take over.
    """
    known: dict[ir.Value, Any] = {source: given}
    return _evaluate(value, known, rank(source) or 0, 0)


def _evaluate(
    value: ir.Value | None, known: dict[ir.Value, Any], most_axes: int, depth: int
) -> Any:
    array = constant(value)
    if array is not None:
        return float(array.item()) if array.size == 1 and array.ndim <= most_axes else None
    if value is None:
        return None
    if value not in known:
        known[value] = _result(value.producer(), known, most_axes, depth)
    return known[value]


def _result(node: ir.Node | None, known: dict[ir.Value, Any], most_axes: int, depth: int) -> Any:
    if node is None or not is_standard(node) or depth > _DEEPEST:
        return None
    if node.op_type == "ReduceMean":
        return _mean(node, _evaluate(node.inputs[0], known, most_axes, depth + 1))
    if node.op_type not in FUNCTIONS:
        return None
    operands = [_evaluate(one, known, most_axes, depth + 1) for one in node.inputs]
    if any(operand is None for operand in operands):
        return None
    with np.errstate(all="ignore"):  # another function than the one that is looked for
        return FUNCTIONS[node.op_type](*operands)


def _mean(node: ir.Node, rows: Any) -> Any:
    """Over the last axis, None where it is over others."""
    if not isinstance(rows, np.ndarray) or not attribute(node, "keepdims", 1):
        return None
    last = reduced_axes(node) in ([-1], [rows.ndim - 1])
    return rows.mean(-1, keepdims=True) if last else None


def reduced_axes(node: ir.Node) -> list[int] | None:
    """Those that are reduced, None where all are, or nobody knows."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
    return None if axes is None else [int(axis) for axis in np.atleast_1d(axes)]
