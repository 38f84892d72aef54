"""Which channels may be rescaled, and which of them only together.

Every output channel of every layer is a variable. Walking the graph, each activation gets a
*pattern*: an array of variables that broadcasts to the tensor's shape and says which variable
every element belongs to. Operators that let factors pass hand patterns on (a Concat joins them, a
Slice cuts them, Reshape and Transpose shuffle them), sums tie the variables of their operands, and
whatever else reads a tensor fixes its variables at 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.equalization import patterns
from ptq_core.equalization.layers import (
    Clip,
    Layer,
    Shape,
    Shift,
    is_addable,
    is_finite,
    is_per_channel,
    shape_of,
)
from ptq_core.equalization.patterns import Pattern
from ptq_core.equalization.variables import FIXED, Variables
from ptq_core.graph import operators as ops

# f(x / s) = f(x) / s for each element by itself. PRelu's slope may be anything constant.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Abs", "Neg"})
# The same where the factor is equal over height and width.
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
# f(a / s, b / s) = f(a, b) / s
_TYING = frozenset({"Add", "Sub", "Sum", "Max", "Min"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Channels:
    """The variables of a graph.

    Attributes:
        free: of each variable: it may be rescaled.
        layers: those that read or make a free channel.
        clips: of free channels, with a bound other than zero and infinity.
        shifts: of free channels.
    """

    free: NDArray[np.bool_]
    layers: tuple[Layer, ...]
    clips: tuple[Clip, ...]
    shifts: tuple[Shift, ...]


def find_channels(graph: ir.Graph) -> Channels:
    """Walk the graph; reads only weights next to channels that may be rescaled."""
    walk = _Walk(graph)
    for node in graph:
        walk.visit(node)
    walk.fix(graph.outputs)
    walk.fix(v for v in walk.patterns if any(use.node.graph is not graph for use in v.uses()))
    for layer in walk.layers:
        both = np.concatenate([layer.ins, layer.outs])
        if walk.variables.any_free(both) and not is_finite(layer):
            walk.variables.fix(both)
    return walk.result()


class _Walk:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.variables = Variables()
        self.patterns: dict[ir.Value, Pattern] = {}
        self.layers: list[Layer] = []
        self._clips: list[Clip] = []
        self._shifts: list[Shift] = []

    def fix(self, values: Iterable[ir.Value | None]) -> None:
        """Keep the channels of these tensors as they are."""
        for value in values:
            if value is not None and value in self.patterns:
                self.variables.fix(self.patterns[value])

    def result(self) -> Channels:
        """What was found, each variable replaced by the one that stands for its set."""
        roots, free = self.variables.roots(), self.variables.free()
        for layer in self.layers:
            layer.ins, layer.outs = roots[layer.ins], roots[layer.outs]
        for clip in self._clips:
            clip.variables = roots[clip.variables]
        for shift in self._shifts:
            shift.pattern = roots[shift.pattern]
        return Channels(
            free=free,
            layers=tuple(x for x in self.layers if free[x.ins].any() or free[x.outs].any()),
            clips=tuple(clip for clip in self._clips if free[clip.variables].any()),
            shifts=tuple(shift for shift in self._shifts if free[shift.pattern].any()),
        )

    def visit(self, node: ir.Node) -> None:
        """Give the node's outputs patterns, or fix what it reads."""
        if node.op_type in ops.SHAPE_READERS:
            return
        plain = ops.is_standard(node) and not ops.has_subgraph(node)
        shape = shape_of(node) if plain and node.op_type in ops.LINEAR else None
        if shape is not None and self._layer(node, shape):
            return
        if not any(value in self.patterns for value in node.inputs):
            return
        passed = self._passed(node) if plain else None
        if passed is None:
            self.fix(node.inputs)
        else:
            self.patterns |= dict(zip(node.outputs, passed, strict=False))

    def _layer(self, node: ir.Node, shape: Shape) -> bool:
        source = node.inputs[0]
        known = None if source is None else self.patterns.get(source)
        rank = shape.rank or (ops.rank(source) if known is None else known.ndim)
        if source is None or rank is None or rank < 2 or ops.constant(source) is not None:
            return False
        axis = rank - 1 if node.op_type == "MatMul" else 1
        ins = np.full(shape.inputs, FIXED)
        if known is not None and known.size == known.shape[axis] == shape.inputs:
            ins = known.reshape(-1)
        else:
            self.fix([source])
        outs = self.variables.new(shape.outputs)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and not is_per_channel(bias, shape.outputs):
            self.variables.fix(outs)
            self.fix([bias])
        self.layers.append(
            Layer(
                node=node,
                weight=shape.weight,
                bias=bias,
                source=source.name or "",
                axis=axis,
                groups=shape.groups,
                ins=ins,
                outs=outs,
            )
        )
        self.patterns[node.outputs[0]] = patterns.along(outs, axis, rank)
        return True

    def _passed(self, node: ir.Node) -> list[Pattern] | None:
        """The outputs' patterns, None where the operator lets no factors pass."""
        if node.op_type in _TYING:
            return self._sum(node)
        if node.op_type in ("Mul", "Div"):
            return self._product(node)
        if node.op_type == "Concat":
            return self._concat(node)
        source = node.inputs[0]
        if source is None or source not in self.patterns:
            return None
        if any(value in self.patterns for value in node.inputs[1:]):
            return None
        pattern = self.patterns[source]
        if node.op_type in _HOMOGENEOUS:
            return [pattern] if _same_rank(node, pattern) else None
        if node.op_type in _POOLS:
            return [pattern] if patterns.channels_only(pattern) else None
        if node.op_type == "Clip":
            return self._clip(node, pattern)
        change = patterns.CHANGES.get(node.op_type)
        return None if change is None else change(node, pattern)

    def _clip(self, node: ir.Node, pattern: Pattern) -> list[Pattern] | None:
        bounds = ops.activation_bounds(node)
        wide = [axis for axis, size in enumerate(pattern.shape) if size > 1]
        if bounds is None or len(wide) > 1:
            return None
        if any(bound != 0.0 and np.isfinite(bound) for bound in bounds):
            clip = Clip(
                name=node.outputs[0].name or "",
                axis=wide[0] if wide else 1,
                bounds=bounds,
                variables=pattern.reshape(-1),
            )
            self._clips.append(clip)
        return [pattern]

    def _known(self, node: ir.Node) -> list[Pattern]:
        return [self.patterns[v] for v in node.inputs if v is not None and v in self.patterns]

    def _sum(self, node: ir.Node) -> list[Pattern] | None:
        first, *rest = self._known(node)
        others = [value for value in node.inputs if value not in self.patterns]
        if not _same_rank(node, first) or any(one.shape != first.shape for one in rest):
            return None
        if others and node.op_type not in ("Add", "Sub"):
            return None
        for value in others:
            if value is None or not is_addable(value, first):
                return None
            self._shifts.append(Shift(value=value, pattern=first))
        for one in rest:
            self.variables.tie(first, one)
        return [first]

    def _product(self, node: ir.Node) -> list[Pattern] | None:
        """With something that is not rescaled, a constant or the gate of an attention."""
        known = self._known(node)
        divides = node.op_type == "Div" and node.inputs[0] not in self.patterns
        if len(known) > 1 or divides or not _same_rank(node, known[0]):
            return None
        return known

    def _concat(self, node: ir.Node) -> list[Pattern] | None:
        known = self._known(node)
        axis = int(ops.attribute(node, "axis", 0)) % known[0].ndim
        operands = [value for value in node.inputs if value is not None]
        joined = patterns.joined([(one, self.patterns.get(one)) for one in operands], axis)
        if joined is not None:
            return [joined]
        if len(known) < len(operands) or any(one.shape != known[0].shape for one in known):
            return None
        for one in known[1:]:
            self.variables.tie(known[0], one)
        return known[:1]


def _same_rank(node: ir.Node, pattern: Pattern) -> bool:
    """Whether broadcasting with other operands leaves the axes where they are."""
    ranks = [ops.rank(value) for value in (*node.inputs, *node.outputs[:1]) if value is not None]
    return all(rank is None or rank <= pattern.ndim for rank in ranks)
