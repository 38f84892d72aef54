"""The plan of dynamic quantization: which layers quantize their activations while they run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from ptq_core.errors import Location, ModelError
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared
from ptq_core.planning.plan import Decision, NodePlan, Plan, WeightPlan, tally
from ptq_core.planning.skip import match_nodes
from ptq_core.planning.tables import RECURRENT, TABLES, table_plans
from ptq_core.target_types import TargetSpec

Strategy = Literal["ALWC", "ACWL", "ACWC"]

_LAYERS = frozenset({*ops.LINEAR, *TABLES, *RECURRENT})


def make_dynamic_plan(
    prepared: Prepared,
    target: TargetSpec,
    strategy: Strategy,
    *,
    attention: bool = False,
    convolution: bool = False,
    skip: Sequence[str] = (),
    skip_location: Location | None = None,
) -> Plan:
    """The plan for layers that compute in integers with activations quantized while running.

    Tables of Gather become integers too, and so do, in the file, weights of recurrent layers that
    the device computes in float. Bodies of If, Loop and Scan are included.

    Args:
        prepared: the model.
        target: the device; it has ``dynamic_operators``.
        strategy: ``L`` or ``C`` for activations (one scale, or one for each token) and for weights
            (one scale, or one for each output channel).
        attention: also MatMul of two activations.
        convolution: also Conv.
        skip: names, globs, and ``type:OPERATOR`` of nodes that stay float.
        skip_location: where they are written, for messages.

    Raises:
        ConfigError: something in ``skip`` matches nothing.
        ModelError: no layer can be quantized.
    """
    skipped = match_nodes(prepared, skip, skip_location)
    all_nodes = list(prepared.model.graph.all_nodes())
    counts = Counter(ops.key(node) for node in all_nodes)
    names = Counter(name for graph in prepared.model.graphs() for name in graph.initializers)
    twice = frozenset(name for name, count in names.items() if count > 1)
    weights: list[WeightPlan] = []
    decided: dict[int, tuple[Decision, str]] = {}
    for node in all_nodes:
        if node.op_type not in _LAYERS or not ops.is_standard(node):
            continue
        reason = _why_not(node, target, strategy, skipped, attention, convolution)
        layer = reason is None and node.op_type not in TABLES
        own = _weight_plans(node, target, strategy) if layer else []
        if reason is None and counts[ops.key(node)] > 1:
            reason = f"another body of the model has a tensor '{ops.key(node)}', too"
        for one in own:
            if one.tensor in twice:
                reason = f"another body of the model has a constant '{one.tensor}', too"
        if reason is not None:
            decided[id(node)] = "float", reason
        elif layer:
            weights += own
            decided[id(node)] = "dynamic", _described(node, own, strategy)
    constants = table_plans(prepared, weights, decided, skipped, twice)
    nodes = tuple(
        NodePlan(
            name=ops.label(node),
            key=ops.key(node),
            op_type=node.op_type,
            decision=decision,
            reason=reason,
        )
        for node in all_nodes
        for decision, reason in (decided.get(id(node), ("untouched", "has no weights")),)
    )
    if not any(node.decision in ("dynamic", "weights") for node in nodes):
        raise _nothing(nodes)
    warnings = _mostly_convolutions(all_nodes, decided)
    return Plan(nodes=nodes, weights=tuple(weights), constants=constants, warnings=warnings)


def layer_weight(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """The constant that a MatMul or Gemm multiplies by, and whether its last axes are swapped.

    A Transpose between the constant and the layer is seen through. None where it is no constant.
    """
    value = node.inputs[1]
    swapped = node.op_type == "Gemm" and bool(ops.attribute(node, "transB", 0))
    between = value.producer() if value is not None else None
    if between is not None and between.op_type == "Transpose" and ops.is_standard(between):
        source = between.inputs[0]
        rank = len(ops.static_shape(source))
        order = [*range(rank - 2), rank - 1, rank - 2]
        if rank >= 2 and list(ops.attribute(between, "perm", range(rank)[::-1])) == order:
            value, swapped = source, not swapped
    if value is None or ops.stored(value) is None:
        return None
    return value, swapped


def _why_not(
    node: ir.Node,
    target: TargetSpec,
    strategy: Strategy,
    skipped: frozenset[str],
    attention: bool,
    convolution: bool,
) -> str | None:
    """Why a layer stays float, None where it need not."""
    kind = node.op_type
    if ops.key(node) in skipped:
        return "named in skip_quant_node"
    if kind not in target.dynamic_operators:
        return f"the target has no {kind} with activations quantized while running"
    if kind in TABLES:
        return None
    if kind == "Conv":
        return _why_not_convolution(node, convolution)
    if kind in RECURRENT:
        return _why_not_recurrent(node)
    found = layer_weight(node)
    if found is None:
        return _why_not_pair(node, strategy, attention)
    weight = found[0]
    rank = len(ops.static_shape(weight))
    if rank < 2:
        return f"its weights have rank {rank}, at least 2 is needed"
    if not ops.is_float(node.inputs[0]) or not ops.is_float(node.outputs[0]):
        return "its activations are not float32"
    return _why_not_weight(weight) or (
        "all its inputs are constants" if ops.constant(node.inputs[0]) is not None else None
    )


def _why_not_weight(value: ir.Value | None) -> str | None:
    if value is None or ops.stored(value) is None:
        return "its weights are not constant"
    if value.dtype != ir.DataType.FLOAT:
        kind = "unknown" if value.dtype is None else value.dtype.name.lower()
        return f"its weights are {kind}, not float32"
    if value.is_graph_output():
        return "its weights are an output of the model"
    return "its weights are empty" if 0 in ops.static_shape(value) else None


def _why_not_convolution(node: ir.Node, wanted: bool) -> str | None:
    if not wanted:
        return "quantizing a Conv while it runs seldom makes it faster; convolution = true does it"
    return _why_not_weight(node.inputs[1])


def _why_not_recurrent(node: ir.Node) -> str | None:
    if ops.attribute(node, "layout", 0):
        return "layout is 1, the integer form needs 0"
    return _why_not_weight(node.inputs[1]) or _why_not_weight(node.inputs[2])


def _why_not_pair(node: ir.Node, strategy: Strategy, attention: bool) -> str | None:
    first = node.inputs[0]
    if first is not None and ops.constant(first) is not None:
        return "the constant is its first operand"
    if node.op_type != "MatMul":
        return "its weights are not constant"
    if not attention:
        return "multiplies two activations, which gains little; attention = true does it"
    if strategy != "ALWC":
        return f"multiplies two activations, for which {strategy} has no form; ALWC has"
    return None if all(map(ops.is_float, node.inputs)) else "its activations are not float32"


def _weight_plans(node: ir.Node, target: TargetSpec, strategy: Strategy) -> list[WeightPlan]:
    """The constants that become integers; the axes are those of the constants as they are."""
    per_channel = strategy != "ACWL"
    if node.op_type in RECURRENT:
        places = [(position, node.inputs[position], 1) for position in (1, 2)]
    elif node.op_type == "Conv":
        places = [(1, node.inputs[1], 0)]
    else:
        found = layer_weight(node)
        if found is None:
            return []
        value, swapped = found
        places = [(1, value, len(ops.static_shape(value)) - (2 if swapped else 1))]
    return [
        WeightPlan(
            node=ops.key(node),
            position=position,
            tensor=value.name or "",
            scheme=target.weight,
            axis=axis if per_channel else None,
        )
        for position, value, axis in places
        if value is not None
    ]


def _described(node: ir.Node, weights: Sequence[WeightPlan], strategy: Strategy) -> str:
    if not weights:
        return "both activations one scale each, while running"
    tokens = strategy != "ALWC" and node.op_type in ("MatMul", "Gemm")
    scales = "a scale for each token" if tokens else "one scale"
    channels = "a scale for each channel" if weights[0].axis is not None else "one scale"
    return f"activations {scales}, while running; weights {channels}"


def _mostly_convolutions(
    nodes: Sequence[ir.Node], decided: dict[int, tuple[Decision, str]]
) -> tuple[str, ...]:
    """A warning where most weights stay float because they are those of convolutions."""
    sizes = Counter[bool]()
    for node in nodes:
        decision = decided.get(id(node), ("untouched", ""))[0]
        stays = node.op_type in ("Conv", "ConvTranspose") and decision == "float"
        for position in ops.weight_positions(node) if stays or decision != "untouched" else ():
            sizes[stays] += math.prod(ops.static_shape(node.inputs[position]) or (0,))
    if sizes[True] <= sizes[False]:
        return ()
    return (
        f"{sizes[True]} of {sizes.total()} weights belong to convolutions, which stay float: full "
        "quantization, or only smaller weights, suit a convolutional network better",
    )


def _nothing(nodes: Sequence[NodePlan]) -> ModelError:
    why = tally(f"{node.op_type}: {node.reason}" for node in nodes if node.decision == "float")
    return ModelError(
        f"there is nothing to quantize while running: {why or 'it has no layer with weights'}",
        hint="`ptq quantize --bits 8` makes the weights smaller, whatever reads them",
    )
