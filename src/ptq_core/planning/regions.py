"""The whole graph: where integers begin and end, and which tensors become integer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from ptq_core.arithmetic import weight_parameters
from ptq_core.graph import operators as ops
from ptq_core.planning.nodes import Draft, data_inputs, is_requantized
from ptq_core.planning.plan import MAX_MIN, TensorPlan, WeightPlan
from ptq_core.planning.softmax import mark_softmax
from ptq_core.target_types import FixedOutput, TargetSpec


def propagate(graph: ir.Graph, drafts: dict[str, Draft], reasons: dict[str, str]) -> None:
    """Forwards: an operator without weights is integer only behind an integer operator."""
    integers: set[ir.Value] = set()
    movable = set(graph.inputs)  # data movers may also start at an input
    for draft in drafts.values():
        if not draft.integer:
            continue
        if draft.rule.quantize not in ("always", "residual"):
            data = draft.data
            behind = any(value in integers for value in data)
            draft.from_input = draft.rule.same_parameters and all(v in movable for v in data)
            if not behind and not draft.from_input:
                draft.integer = False
                reasons[ops.key(draft.node)] = "no integer operator before it"
                continue
            if draft.from_input:
                movable.update((draft.output, *draft.node.outputs[1:]))
        if draft.gives_integers:
            integers.update((draft.output, *draft.node.outputs[1:]))


def trim(drafts: dict[str, Draft], reasons: dict[str, str], target: TargetSpec) -> None:
    """Backwards: an operator that no integer operator reads gains nothing from being one."""
    for draft in reversed(drafts.values()):
        if draft.integer and draft.rule.quantize == "between" and not _read(draft, drafts, target):
            draft.integer = False
            reasons[ops.key(draft.node)] = "no integer operator reads its result"


def _read(draft: Draft, drafts: dict[str, Draft], target: TargetSpec) -> bool:
    """Whether an integer operator takes the draft's result as an activation.

    So does a float layer that needs a guard: runtimes see through movers, so the guard has to stand
    behind them.
    """
    moves = draft.rule.same_parameters and not draft.from_input
    values = [draft.output, *draft.node.outputs[1:]]
    for value in values:
        for use in value.uses():
            reader = drafts.get(ops.key(use.node))
            if reader is not None and reader.integer and value in reader.data:
                return True
            if moves and reader is None and use.idx == 0 and is_requantized(use.node, target):
                return True
    return False


def tensor_plans(
    graph: ir.Graph, chosen: Sequence[Draft], target: TargetSpec, method: str
) -> dict[str, TensorPlan]:
    """The activations that become integer, by name, in the order of the graph."""
    ends = {value.name for value in (*graph.inputs, *_results(graph))}
    read = {value.name for draft in chosen for value in draft.data}
    tensors: dict[str, TensorPlan] = {}

    def add(value: ir.Value, **given: object) -> None:
        name = value.name or ""
        if name not in tensors:
            tensors[name] = TensorPlan(
                name=name,
                scheme=target.activation,
                produced=value in made,
                **{  # type: ignore[arg-type]
                    "source": name,
                    "method": MAX_MIN if name in ends else method,
                    **given,
                },
            )

    made = {
        value
        for draft in chosen
        if draft.gives_integers
        for value in (draft.output, *draft.node.outputs[1:])
    }
    for draft in chosen:
        for value in draft.data:
            add(value, bounds=_bounds_of(value))
        if draft.node.op_type == "Gather" and not draft.data:
            # any row of a table may come out, whatever the samples show
            add(draft.output, method=None, fixed=_table_parameters(draft.node, target))
            continue
        source = tensors[draft.data[0].name or ""] if draft.data else None
        outputs = [draft.output, *draft.node.outputs[1:]]
        for value in outputs:
            if not draft.gives_integers and value.name not in read:
                continue
            if draft.rule.same_parameters and source is not None:
                add(
                    value,
                    source=source.source,
                    method=source.method,
                    bounds=source.bounds,
                    fixed=source.fixed,
                )
            elif draft.rule.fixed_output is not None:
                add(value, method=None, fixed=draft.rule.fixed_output)
            else:
                add(value, bounds=_bounds_of(value))
    return mark_softmax(tensors, chosen)


def _table_parameters(node: ir.Node, target: TargetSpec) -> FixedOutput:
    table = ops.constant(node.inputs[0])
    if table is None:
        raise AssertionError(f"'{ops.label(node)}' reads no constant table")
    params = weight_parameters(table, target.activation, None)
    return FixedOutput(scale=float(params.scale), zero_point=int(params.zero_point))


def _results(graph: ir.Graph) -> Iterable[ir.Value]:
    """The graph's outputs, and what is one but for its shape."""
    for output in graph.outputs:
        value: ir.Value | None = output
        while value is not None:
            yield value
            node = value.producer()
            value = node.inputs[0] if node is not None and node.op_type in ops.RESHAPERS else None


def _bounds_of(value: ir.Value) -> tuple[float, float] | None:
    producer = value.producer()
    return None if producer is None else ops.activation_bounds(producer)


def weight_plans(draft: Draft, target: TargetSpec, *, per_channel: bool) -> Iterable[WeightPlan]:
    """The constants that become integer for this operator, its bias with them."""
    node = draft.node
    facts = ops.LINEAR.get(node.op_type)
    if draft.rule.quantize == "residual":
        return
    if facts is None:
        data = data_inputs(node)
        for position, value in enumerate(node.inputs):
            operand = value is not None and value not in data and len(node.inputs) > 1
            if operand and value is not None and _is_operand(node, position):
                yield WeightPlan(
                    node=ops.key(node),
                    position=position,
                    tensor=value.name or "",
                    scheme=target.activation,
                    axis=None,
                )
        return
    weight = node.inputs[facts.weight]
    array = ops.constant(weight)
    if weight is None or array is None:
        return
    axis = ops.channel_axis(node, array.ndim)
    apart = per_channel and draft.rule.per_channel and not ops.shares_channels(node)
    bias: ir.Value | None = None
    if draft.bias_add is not None:
        bias = next(v for v in draft.bias_add.inputs if v is not node.outputs[0])
    elif facts.bias is not None and len(node.inputs) > facts.bias:
        bias = node.inputs[facts.bias]
    yield WeightPlan(
        node=ops.key(node),
        position=facts.weight,
        tensor=weight.name or "",
        scheme=target.weight,
        axis=axis if apart else None,
        bias=None if bias is None else bias.name,
        bias_node=None if draft.bias_add is None else ops.key(draft.bias_add),
    )


def _is_operand(node: ir.Node, position: int) -> bool:
    """Whether a constant input is a number to compute with, not an axis or a shape."""
    if node.op_type == "Gather":
        return position == 0  # a table
    return node.op_type in ops.ALIKE_OPERANDS or (node.op_type == "Where" and position > 0)
