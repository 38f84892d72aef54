"""The plan of weight quantization: which constants become integers, and why others do not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ptq_core.errors import Location, ModelError
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared
from ptq_core.planning.plan import ConstantPlan, NodePlan, Plan, tally
from ptq_core.planning.skip import match_nodes

_PARAMETERS = 8  # bytes: a scale and an offset
_BYTE = 8
_GROUP = 64  # divides the widths of nearly all transformers
_LONG = frozenset({"MatMul", "Gemm"})
_BALANCED = frozenset({"MatMul", "Gemm", "Gather"})
_NAMES = 200  # bytes, about: what a decoded constant adds to the file in nodes and names


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Which weights are large enough, and how they become integers.

    Attributes:
        size: weights with more elements than this are quantized.
        channels: and with more output channels, tables and recurrent weights excepted.
        bits: width of a code, 0 for mixed widths.
        per_channel: one scale for each output channel.
        group_size: weights of a channel that share a scale, 0 for all; None: 64 in the layers of
            transformers (MatMul, Gemm), whose channels are long, and all elsewhere.
        balanced: inputs of MatMul, Gemm and Gather may have a scale of their own.
        operators: only weights of these operators are quantized; empty for all.
    """

    size: int = 0
    channels: int = 16
    bits: int = 8
    per_channel: bool = True
    group_size: int | None = 0
    balanced: bool = False
    operators: tuple[str, ...] = ()


def make_weight_plan(
    prepared: Prepared,
    thresholds: Thresholds,
    *,
    skip: Sequence[str] = (),
    skip_location: Location | None = None,
) -> Plan:
    """The plan for the weights of a prepared model, those in bodies of If, Loop and Scan included.

    Args:
        prepared: the model.
        thresholds: which weights.
        skip: names, globs, and ``type:OPERATOR`` of nodes whose weights stay float.
        skip_location: where they are written, for messages.

    Raises:
        ConfigError: something in ``skip`` matches nothing.
        ModelError: no weight can be quantized.
    """
    skipped = match_nodes(prepared, skip, skip_location)
    decided: dict[int, ConstantPlan | str] = {}
    nodes: list[NodePlan] = []
    counts = Counter(name for graph in prepared.model.graphs() for name in graph.initializers)
    twice = frozenset(name for name, count in counts.items() if count > 1)
    for node in prepared.model.graph.all_nodes():
        found: list[ConstantPlan | str] = []
        for position in ops.weight_positions(node):
            value = node.inputs[position]
            if value is None or ops.stored(value) is None:
                continue
            if id(value) not in decided:
                decided[id(value)] = decide_constant(
                    prepared.model.graph, node, position, thresholds, skipped, twice
                )
            found.append(decided[id(value)])
        nodes.append(_node_plan(node, found, thresholds))
    constants = tuple(one for one in decided.values() if isinstance(one, ConstantPlan))
    if not constants:
        raise _nothing(nodes)
    return Plan(nodes=tuple(nodes), constants=constants)


def weight_values(model: ir.Model, plan: Plan) -> dict[str, ir.Value]:
    """The constants that the plan makes integers of, in this model, by name."""
    wanted = {one.tensor for one in plan.constants} | {one.tensor for one in plan.weights}
    found: dict[str, ir.Value] = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if name in wanted:
                found.setdefault(name, value)
    return found


def decide_constant(
    main: ir.Graph,
    node: ir.Node,
    position: int,
    thresholds: Thresholds,
    skipped: frozenset[str],
    twice: frozenset[str],
) -> ConstantPlan | str:
    """What becomes of a constant that a node reads, or why it stays float.

    Args:
        main: the model's own graph.
        node: a node that reads it.
        position: the input.
        thresholds: which weights.
        skipped: keys of nodes whose constants stay float.
        twice: names of constants that several bodies have.
    """
    value = node.inputs[position]
    if value is None:
        raise AssertionError(f"'{ops.label(node)}' has no input {position}")
    name, shape = value.name or "", ops.static_shape(value)
    readers = [use.node for use in value.uses()]
    reason = _why_float(node, value, shape, thresholds)
    if reason is not None:
        return reason
    stopped = next((one for one in readers if ops.key(one) in skipped), None)
    if stopped is not None:
        other = "" if stopped is node else f" as a reader of '{name}'"
        return f"'{ops.label(stopped)}' is named in skip_quant_node{other}"
    if name in twice:
        return f"another body of the model has a constant '{name}', too"
    axes = ops.channel_axes(node, position, len(shape)) if thresholds.per_channel else ()
    size = math.prod(shape)
    scales = math.prod(shape[axis] for axis in axes)
    group_size = _group_size(node, shape, axes, thresholds) if axes else 0
    if group_size:
        scales = size // (group_size * _inputs(shape, axes)[1])
    elif thresholds.bits == 0:
        scales = 1
    bits = thresholds.bits or 8
    stored = -(-size * bits // 8) + scales * _PARAMETERS + _NAMES
    if stored >= 4 * size:
        return (
            f"quantizing would save no bytes: {4 * size} as float32, about {stored} as "
            f"{bits}-bit codes with {scales} scales"
        )
    gathers = all(one.op_type == "Gather" and ops.is_standard(one) for one in readers)
    return ConstantPlan(
        tensor=name,
        shape=shape,
        axes=axes,
        readers=tuple(dict.fromkeys(ops.label(one) for one in readers)),
        table=gathers and axes in ((), (0,)),
        group_size=group_size,
        balanced=thresholds.balanced and bool(axes) and node.op_type in _BALANCED,
        in_body=value.graph is not main,
    )


def _group_size(
    node: ir.Node, shape: tuple[int, ...], axes: tuple[int, ...], thresholds: Thresholds
) -> int:
    """The group size of a weight: a divisor of its inputs near the one asked for, or 0."""
    wanted = thresholds.group_size
    if wanted is None:
        wanted = _GROUP if node.op_type in _LONG and thresholds.bits <= _BYTE else 0
    if wanted == 0 or node.op_type in ops.WITHOUT_CHANNELS:
        return 0
    inputs, taps = _inputs(shape, axes)
    wanted //= taps
    near = range(min(wanted, inputs // 2), wanted // 2, -1)
    return next((size for size in near if inputs % size == 0), 0)


def _inputs(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int]:
    """How many inputs a channel has that groups can divide, and its weights for each of them.

    Those of a ConvTranspose are on the first axis, its taps behind the channels.
    """
    count = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
    divided = 0 in axes or axes == (len(shape) - 1,)
    return (count, 1) if divided else (shape[0], count // shape[0])


def _why_float(
    node: ir.Node, value: ir.Value, shape: tuple[int, ...], thresholds: Thresholds
) -> str | None:
    if value.dtype != ir.DataType.FLOAT:
        kind = "unknown" if value.dtype is None else value.dtype.name.lower()
        return f"its weights are {kind}, not float32"
    if value.is_graph_output():
        return "its weights are an output of the model"
    if thresholds.operators and node.op_type not in thresholds.operators:
        return (
            f"the target dequantizes on the fly only weights of {', '.join(thresholds.operators)}"
        )
    if len(shape) < 2:
        return f"its weights have rank {len(shape)}, at least 2 is needed"
    size = math.prod(shape)
    if size == 0:
        return "its weights are empty"
    if size <= thresholds.size:
        return f"it has {size} weights, min_quant_weight_size is {thresholds.size}"
    if node.op_type in ops.WITHOUT_CHANNELS:
        return None
    position = next(i for i, one in enumerate(node.inputs) if one is value)
    channels = math.prod(shape[axis] for axis in ops.channel_axes(node, position, len(shape)))
    if channels <= thresholds.channels:
        return f"it has {channels} channels, min_quant_weight_channel is {thresholds.channels}"
    return None


def _node_plan(
    node: ir.Node, found: Sequence[ConstantPlan | str], thresholds: Thresholds
) -> NodePlan:
    plans = [one for one in found if isinstance(one, ConstantPlan)]
    reasons = [one for one in found if isinstance(one, str)]
    if plans:
        width = f"{thresholds.bits} bits" if thresholds.bits else "mixed bits"
        shapes = " and ".join("x".join(map(str, one.shape)) for one in plans)
        text = f"weights {shapes} in {width}, {_granularity(plans[0], thresholds)}"
        text += "".join(f"; {reason}" for reason in dict.fromkeys(reasons))
    elif reasons:
        text = "; ".join(dict.fromkeys(reasons))
    elif ops.weight_positions(node):
        text = "its weights are not constant"
    else:
        text = "has no weights"
    return NodePlan(
        name=ops.label(node),
        key=ops.key(node),
        op_type=node.op_type,
        decision="weights" if plans else "float" if reasons else "untouched",
        reason=text,
    )


def _granularity(plan: ConstantPlan, thresholds: Thresholds) -> str:
    if not thresholds.bits:
        return "one step for all"
    if plan.group_size:
        return f"a scale for every {plan.group_size * _inputs(plan.shape, plan.axes)[1]}"
    return "a scale for each channel" if plan.axes else "one scale"


def _nothing(nodes: Sequence[NodePlan]) -> ModelError:
    why = tally(f"{node.op_type}: {node.reason}" for node in nodes if node.decision == "float")
    why = why or f"none of {', '.join(ops.WEIGHTS)} has constant weights"
    return ModelError(f"there is nothing to quantize: {why}")
