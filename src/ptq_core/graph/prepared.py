"""A model on its way through preparation, and the two ways in which a node leaves it."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from ptq_core.graph.operators import key, label


@dataclass(kw_only=True)
class Prepared:
    """A prepared model and what was done to it."""

    model: ir.Model
    notes: list[str] = field(default_factory=list)
    widened: bool = False  # the model was float16
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)  # node key -> names taken in
    removed: dict[str, str] = field(default_factory=dict)  # name -> why it is gone

    def names(self, node: ir.Node) -> tuple[str, ...]:
        """Every name by which users may address the node."""
        return (label(node), key(node), *self.merged.get(key(node), ()))


def replace_node(prepared: Prepared, node: ir.Node, value: ir.Value, why: str) -> None:
    """Take a node out: its (only) output becomes ``value``, which takes over the output's name."""
    graph = prepared.model.graph
    output = node.outputs[0]
    keeps_name = value.is_initializer() or value.is_graph_input() or value.is_graph_output()
    if output.is_graph_output() and keeps_name:
        return  # two names for one tensor need the node
    name = output.name
    producer = value.producer()
    renamed_from = None if producer is None else key(producer)
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    prepared.removed[label(node)] = why
    if not keeps_name:
        output.name = f"{name}_removed"
        value.shape = value.shape or output.shape
        value.type = value.type or output.type
        value.name = name
        _rename_key(prepared, renamed_from, name)


def swap_node(prepared: Prepared, node: ir.Node, new: ir.Node) -> None:
    """Put a node that computes the same in the place of another, whose name it answers to."""
    prepared.model.graph.insert_before(node, new)
    replace_node(prepared, node, new.outputs[0], "")
    prepared.removed.pop(label(node), None)


def _rename_key(prepared: Prepared, old: str | None, new: str | None) -> None:
    if old in prepared.merged and new is not None and old is not None:
        prepared.merged[new] = prepared.merged.pop(old)


def merge_into(prepared: Prepared, node: ir.Node, into: ir.Node, why: str) -> None:
    """Take out ``node``, whose work ``into`` now does; ``into`` answers to its name as well."""
    names = (*prepared.merged.pop(key(into), ()), *prepared.merged.pop(key(node), ()), label(node))
    replace_node(prepared, node, into.outputs[0], why)
    prepared.removed.pop(label(node), None)
    prepared.merged[key(into)] = names


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value, if the value is no graph output.

    A node in a body (of an If, say) is none: bodies stay as they are.
    """
    consumers = {use.node for use in value.uses()}
    if len(consumers) != 1 or value.is_graph_output():
        return None
    consumer, producer = next(iter(consumers)), value.producer()
    return consumer if producer is None or consumer.graph is producer.graph else None
