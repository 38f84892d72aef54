"""Which layers read one activation, and where a divisor of its channels can go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from ptq_core.graph import operators as ops

_HEADS_APART = (0, 2, 1, 3)  # the Transpose around attention: its own inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A MatMul or Gemm with constant weights.

    Attributes:
        key: of the node.
        weight: name of its weights.
        axis: of the input channels in them.
    """

    key: str
    weight: str
    axis: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Layers that read one activation; dividing its channels concerns all of them.

    Attributes:
        source: the activation; its channels are on the last axis.
        channels: how many.
        layers: its readers with constant weights.
        folds: the divisor can go into the constants of what makes the activation; otherwise it
            takes a node of its own.
    """

    source: str
    channels: int
    layers: tuple[Layer, ...]
    folds: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A constant that is divided: an input of a node, along an axis."""

    node: ir.Node
    position: int
    axis: int


def find_groups(graph: ir.Graph, layers: Collection[str]) -> tuple[Group, ...]:
    """The groups of these layers, given by their keys, in the order of the graph."""
    found: dict[ir.Value, list[tuple[ir.Node, Layer]]] = {}
    for node in graph:
        layer = _layer(node) if ops.key(node) in layers else None
        data = node.inputs[0] if layer is not None else None
        if layer is not None and data is not None and ops.constant(data) is None:
            found.setdefault(data, []).append((node, layer))
    groups = []
    for data, readers in found.items():
        first = readers[0]
        weight = ops.constant(first[0].inputs[1])
        channels = 0 if weight is None else weight.shape[first[1].axis]
        groups.append(
            Group(
                source=data.name or "",
                channels=channels,
                layers=tuple(layer for _, layer in readers),
                folds=find_fold(data, {node for node, _ in readers}, channels) is not None,
            )
        )
    return tuple(groups)


def _layer(node: ir.Node) -> Layer | None:
    if node.op_type not in ("MatMul", "Gemm") or not ops.is_standard(node):
        return None
    weight, value = ops.constant(node.inputs[1]), node.inputs[1]
    if weight is None or weight.ndim != 2 or value is None or ops.attribute(node, "transA", 0):
        return None
    axis = 1 if ops.attribute(node, "transB", 0) else 0
    return Layer(key=ops.key(node), weight=value.name or "", axis=axis)


def find_fold(
    value: ir.Value, readers: Collection[ir.Node], channels: int
) -> tuple[Part, ...] | None:
    """The constants that make the last axis of a value smaller by a divisor of each channel.

    Followed backwards through what keeps channels apart and is linear, or for positive factors
    almost so (Relu). None where something else reads a value on the way.
    """
    node = value.producer()
    if node is None or value.is_graph_output() or not ops.is_standard(node):
        return None
    if not _only_read_by(value, readers):
        return None
    match node.op_type:
        case "LayerNormalization":
            last = ops.attribute(node, "axis", -1) in (-1, (ops.rank(value) or 0) - 1)
            last = last and value is node.outputs[0]  # the others are statistics
            return _parts(node, channels, (1, -1), (2, -1)) if last else None
        case "MatMul":
            weight = ops.constant(node.inputs[1])
            matrix = weight is not None and weight.ndim > 1
            return _parts(node, channels, (1, -1)) if matrix else None
        case "Gemm":
            columns = 0 if ops.attribute(node, "transB", 0) else 1
            return _parts(node, channels, (1, columns), (2, -1))
        case "Relu" | "LeakyRelu" | "Identity":
            return _behind(node, 0, channels)
        case "Mul" | "Add":
            return _of_operands(node, channels)
        case "Reshape":
            return _of_attention(node, channels)
        case _:
            return None


def _behind(node: ir.Node, position: int, channels: int) -> tuple[Part, ...] | None:
    value = node.inputs[position]
    return None if value is None else find_fold(value, {node}, channels)


def _parts(node: ir.Node, channels: int, *places: tuple[int, int]) -> tuple[Part, ...] | None:
    """Constants of a node, each with so many channels on its axis; one that is absent is none."""
    parts = []
    for position, axis in places:
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None:
            continue
        array = ops.constant(value)
        if array is None or array.ndim == 0 or array.shape[axis] != channels:
            return None
        parts.append(Part(node=node, position=position, axis=axis))
    return tuple(parts)


def _of_operands(node: ir.Node, channels: int) -> tuple[Part, ...] | None:
    """A Mul takes the divisor in one operand, an Add in both."""
    folds = [
        _parts(node, channels, (position, -1))
        if ops.constant(node.inputs[position]) is not None
        else _behind(node, position, channels)
        for position in (0, 1)
    ]
    if node.op_type == "Mul":
        return next((fold for fold in folds if fold is not None), None)
    first, second = folds
    return None if first is None or second is None else (*first, *second)


def _of_attention(node: ir.Node, channels: int) -> tuple[Part, ...] | None:
    """Attention's result: Reshape(Transpose(probabilities x Transpose(Reshape(values)))).

    Probabilities mix tokens and leave channels apart, and the heads are split and merged alike.
    """
    joined = _only_input(node, 0)
    mixed = _only_input(joined, 0, "Transpose")
    values = _only_input(mixed, 1, "MatMul")
    apart = _only_input(values, 0, "Transpose")
    if joined is None or values is None or apart is None:
        return None
    if apart.op_type != "Reshape" or not ops.is_standard(apart):
        return None
    turns = (ops.attribute(joined, "perm", ()), ops.attribute(values, "perm", ()))
    heads = ops.dimensions(apart.outputs[0]) or ()
    if turns != (_HEADS_APART, _HEADS_APART) or len(heads) != len(_HEADS_APART):
        return None
    count, size = heads[-2:]
    if not isinstance(count, int) or not isinstance(size, int) or count * size != channels:
        return None
    given = node.inputs[0]
    return None if given is None else _behind(apart, 0, channels)


def _only_input(node: ir.Node | None, position: int, kind: str | None = None) -> ir.Node | None:
    """What makes an input that only this node, of this kind, reads."""
    if node is None or (kind is not None and node.op_type != kind) or not ops.is_standard(node):
        return None
    value = node.inputs[position]
    if value is None or value.is_graph_output() or not _only_read_by(value, {node}):
        return None
    return value.producer()


def _only_read_by(value: ir.Value, readers: Collection[ir.Node]) -> bool:
    """Whether these nodes read a value, each once, and nothing else does."""
    uses = [use.node for use in value.uses()]
    return len(uses) == len(readers) and set(uses) == set(readers)
