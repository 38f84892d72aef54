"""Dynamic quantization: constants that become integers beside those of the layers.

Tables of Gather, and weights of recurrent layers that the device computes with in float.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared
from ptq_core.planning.constants import Thresholds, decide_constant
from ptq_core.planning.plan import ConstantPlan, Decision, WeightPlan

TABLES = frozenset({"Gather"})
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_BYTES = Thresholds(size=0, channels=0, bits=8)


def table_plans(
    prepared: Prepared,
    weights: Sequence[WeightPlan],
    decided: dict[int, tuple[Decision, str]],
    skipped: frozenset[str],
    twice: frozenset[str],
) -> tuple[ConstantPlan, ...]:
    """The constants, each once.

    Args:
        prepared: the model.
        weights: those of the layers.
        decided: decision and reason of layers, by the node's identity; tables and recurrent nodes
            are added here, or changed.
        skipped: keys of nodes that stay float.
        twice: names of constants that several bodies have.
    """
    layers: dict[str, set[int | None]] = {}
    for one in weights:
        layers.setdefault(one.tensor, set()).add(one.axis)
    found: dict[int, ConstantPlan | str] = {}
    for node in prepared.model.graph.all_nodes():
        stays = decided.get(id(node), ("", ""))
        table = node.op_type in TABLES and not stays[0] and _is_table(node.inputs[0])
        computed = node.op_type in RECURRENT and stays[0] == "float"
        if not ops.is_standard(node) or not (table or computed) or ops.key(node) in skipped:
            continue
        positions = ops.weight_positions(node)
        values = [node.inputs[i] for i in positions]
        own: list[ConstantPlan | str] = []
        for position, value in zip(positions, values, strict=True):
            if value is None or ops.stored(value) is None:
                continue
            if id(value) not in found:
                graph = prepared.model.graph
                found[id(value)] = (
                    _tied(graph, value, layers[value.name], decided)
                    if value.name in layers
                    else decide_constant(graph, node, position, _BYTES, skipped, twice)
                )
            own.append(found[id(value)])
        plans = [one for one in own if isinstance(one, ConstantPlan)]
        reasons = [one for one in own if isinstance(one, str)]
        if plans and table:
            decided[id(node)] = "weights", "reads integers, which become float where it has read"
        elif plans:
            text = f"{stays[1]}; its weights are integers in the file"
            decided[id(node)] = "weights", text
        elif reasons:
            decided[id(node)] = "float", "; ".join(dict.fromkeys([stays[1], *reasons])).strip("; ")
    return tuple(one for one in found.values() if isinstance(one, ConstantPlan))


def _is_table(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT and ops.rank(value) != 1


def _tied(
    main: ir.Graph,
    value: ir.Value,
    layer_axes: set[int | None],
    decided: dict[int, tuple[Decision, str]],
) -> ConstantPlan | str:
    """A table that is also the weights of a layer: the same integers serve both."""
    readers = [use.node for use in value.uses()]
    gathers = [one for one in readers if one.op_type in TABLES]
    turned = [one for one in readers if one.op_type == "Transpose"]
    direct = [one for one in readers if one not in gathers and one not in turned]
    layers = [*direct, *(use.node for one in turned for use in one.outputs[0].uses())]
    left = any(decided.get(id(one), ("",))[0] != "dynamic" for one in layers)
    if left or any(one.outputs[0].is_graph_output() for one in turned):
        return f"'{value.name}' is also read by nodes that stay float"
    rows = all(int(ops.attribute(one, "axis", 0)) in (0, -2) for one in gathers)
    if not rows or not layer_axes <= {0, None} or len(ops.static_shape(value)) != 2:
        return f"'{value.name}' is also weights of a layer, which needs scales of another axis"
    return ConstantPlan(
        tensor=value.name or "",
        shape=ops.static_shape(value),
        axes=(0,),
        readers=tuple(dict.fromkeys(ops.label(one) for one in (*gathers, *layers))),
        table=True,
        in_body=value.graph is not main,
    )
