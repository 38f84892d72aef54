"""Decide, before any data is touched, what becomes of every node and every tensor.

``make_plan`` is pure: it reads the prepared graph, the target's rules and the user's wishes, and
returns data that can be printed. Emission does what the plan says and decides nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from ptq_core.errors import ConfigError, Location, ModelError, Problem, did_you_mean
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared, only_consumer
from ptq_core.types import FixedOutput, OperatorRule, QScheme, TargetSpec

MAX_MIN = "MAX_MIN"

Decision = Literal["integer", "fused", "float", "guarded", "untouched"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePlan:
    """What becomes of one node, and why.

    Attributes:
        name: how users address it.
        key: name of its first output, unique in the graph.
        decision: ``integer``: quantized; ``fused``: part of the integer node before it;
            ``float``: stays as it is; ``guarded``: stays float, protected from the runtime's own
            quantization; ``untouched``: handles shapes or indices, not activations.
    """

    name: str
    key: str
    op_type: str
    decision: Decision
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """An activation that becomes integer.

    Attributes:
        name: the tensor.
        source: the tensor whose parameters it takes: itself, or the one that movers (MaxPool,
            Reshape) have carried here.
        scheme: how its codes are.
        method: the calibrator that watches it; None where the device fixes its parameters.
        bounds: the interval of the Relu or Clip that produces it, which the range must fit into.
        fixed: parameters that the device demands.
        produced: an integer operator makes it, so that everybody reads the dequantized value;
            otherwise float readers keep reading the float one.
    """

    name: str
    source: str
    scheme: QScheme
    method: str | None
    produced: bool
    bounds: tuple[float, float] | None = None
    fixed: FixedOutput | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPlan:
    """A constant that becomes integer for one node.

    Attributes:
        node: key of the node that reads it.
        position: which of the node's inputs it is.
        tensor: the initializer.
        axis: the channel axis, None for one scale.
        bias: the initializer of the bias that goes with it, None where there is none.
        bias_node: key of the node that adds the bias, if that is not ``node`` itself.
    """

    node: str
    position: int
    tensor: str
    scheme: QScheme
    axis: int | None
    bias: str | None = None
    bias_node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every node with a decision; every tensor that becomes integer."""

    nodes: tuple[NodePlan, ...]
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    weights: tuple[WeightPlan, ...] = ()
    warnings: tuple[str, ...] = ()

    def watched(self) -> dict[str, TensorPlan]:
        """The tensors whose ranges have to be calibrated."""
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if tensor.source == name and tensor.fixed is None
        }

    def count(self, decision: Decision) -> int:
        """How many nodes have this decision."""
        return sum(node.decision == decision for node in self.nodes)


@dataclass(kw_only=True)
class _Draft:
    """A node that may become integer, while the plan is being made."""

    node: ir.Node
    rule: OperatorRule
    output: ir.Value  # behind bias and activation
    bias_add: ir.Node | None = None
    activation: ir.Node | None = None
    integer: bool = True


def make_plan(
    prepared: Prepared,
    target: TargetSpec,
    *,
    method: str = MAX_MIN,
    per_channel: bool = True,
    skip: Sequence[str] = (),
) -> Plan:
    """The plan for full quantization of a prepared model on a target.

    Args:
        prepared: the model.
        target: the device's rules.
        method: the calibrator of activations; graph inputs and outputs take MAX_MIN.
        per_channel: one weight scale per output channel where the device can.
        skip: names, globs, and ``type:OPERATOR`` of nodes that stay float.

    Raises:
        ConfigError: something in ``skip`` matches nothing.
        ModelError: no node can be quantized.
    """
    graph = prepared.model.graph
    skipped = match_nodes(prepared, skip)
    opset = graph.opset_imports.get("", 1)
    reasons: dict[str, str] = {}
    drafts: dict[str, _Draft] = {}
    for node in graph:
        reason = _why_float(node, target, skipped, opset)
        if reason is None:
            drafts[ops.key(node)] = _draft(node, target.operators[node.op_type], skipped)
        else:
            reasons[ops.key(node)] = reason
    followers = _followers(drafts.values())
    for taken in followers:
        drafts.pop(taken, None)
    _propagate(graph, drafts, reasons)
    _trim(drafts, reasons)
    chosen = [draft for draft in drafts.values() if draft.integer]
    if not any(draft.node.op_type in ops.LINEAR for draft in chosen):
        raise _nothing(graph, reasons, target)
    tensors = _tensors(graph, chosen, target, method)
    weights = tuple(
        weight for draft in chosen for weight in _weights(draft, target, per_channel=per_channel)
    )
    nodes = tuple(_node_plans(graph, drafts, followers, reasons, tensors, target))
    return Plan(
        nodes=nodes,
        tensors=tensors,
        weights=weights,
        warnings=tuple(_warnings(prepared, target, chosen, per_channel=per_channel)),
    )


def match_nodes(prepared: Prepared, patterns: Iterable[str]) -> frozenset[str]:
    """Keys of the nodes that the patterns name: exact names, globs, ``type:OPERATOR``.

    Raises:
        ConfigError: patterns that match nothing, all at once, each with a suggestion.
    """
    nodes = list(prepared.model.graph)
    found: set[str] = set()
    problems: list[Problem] = []
    for pattern in patterns:
        matched = [node for node in nodes if _matches(prepared, node, pattern)]
        found.update(ops.key(node) for node in matched)
        if not matched:
            problems.append(_matches_nothing(prepared, nodes, pattern))
    if problems:
        raise ConfigError(problems=problems)
    return frozenset(found)


def _matches(prepared: Prepared, node: ir.Node, pattern: str) -> bool:
    if pattern.casefold().startswith("type:"):
        return node.op_type.casefold() == pattern[5:].strip().casefold()
    names = prepared.names(node)
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _matches_nothing(prepared: Prepared, nodes: list[ir.Node], pattern: str) -> Problem:
    location = Location(section="common_quant_param")
    if pattern in prepared.removed:
        return Problem(
            message=f"skip_quant_node: '{pattern}' is no longer there when quantization starts: "
            f"{prepared.removed[pattern]}",
            location=location,
            hint="take it out of skip_quant_node",
        )
    if pattern.casefold().startswith("type:"):
        hint = did_you_mean(pattern[5:], sorted({node.op_type for node in nodes}))
    else:
        hint = did_you_mean(pattern, [name for node in nodes for name in prepared.names(node)])
    return Problem(
        message=f"skip_quant_node: '{pattern}' matches no node of the model",
        location=location,
        hint=hint + "; `ptq plan MODEL` lists the names",
    )


# --------------------------------------------------------------------------- single nodes


def _why_float(
    node: ir.Node, target: TargetSpec, skipped: Collection[str], opset: int
) -> str | None:
    """Why a node cannot be quantized, None where it can."""
    if not ops.is_standard(node):
        return f"not an operator of ONNX itself (domain '{node.domain}')"
    if ops.has_subgraph(node):
        return "control flow is left as it is"
    if ops.key(node) in skipped:
        return "named in skip_quant_node"
    if not node.outputs or not ops.is_float(node.outputs[0]):
        return "handles shapes or indices, not activations"
    rule = target.operators.get(node.op_type)
    if rule is None:
        return f"the target lists no integer form for {node.op_type}"
    if rule.quantize == "never":
        return rule.reason or f"the target keeps {node.op_type} in float"
    for name, allowed in rule.attributes.items():
        value = ops.attribute(node, name, ops.schema_default(node, name, opset))
        if value not in allowed:
            shown = " or ".join(map(str, allowed))
            return f"{name} is {value}, the target's integer form needs {shown}"
    if node.op_type in ops.LINEAR:
        return _why_weights_float(node)
    data = _data_inputs(node)
    if not data:
        return "all its inputs are constants"
    if not all(ops.is_float(value) for value in data):
        return "its inputs are not float32"
    return None


def _why_weights_float(node: ir.Node) -> str | None:
    facts = ops.LINEAR[node.op_type]
    weight = ops.constant(node.inputs[facts.weight])
    if weight is None:
        return "its weights are not constant (two activations): gains nothing in integers"
    if weight.dtype != "float32":
        return f"its weights are {weight.dtype}, not float32"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return f"its weights have rank {weight.ndim}, not 2"
    if ops.constant(node.inputs[0]) is not None:
        return "all its inputs are constants"
    bias = node.inputs[facts.bias] if facts.bias and len(node.inputs) > facts.bias else None
    if bias is not None and ops.constant(bias) is None:
        return "its bias is not constant"
    return None


def _data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry activations: the first, or all where operands are alike."""
    if node.op_type in ("Add", "Sub", "Mul", "Div", "Concat", "Max", "Min", "Sum"):
        values = list(node.inputs)
    elif node.op_type == "Where":
        values = list(node.inputs[1:])
    else:
        values = list(node.inputs[:1])
    return [value for value in values if value is not None and ops.constant(value) is None]


def _draft(node: ir.Node, rule: OperatorRule, skipped: Collection[str]) -> _Draft:
    draft = _Draft(node=node, rule=rule, output=node.outputs[0])
    follower = only_consumer(draft.output)
    if (
        node.op_type == "MatMul"
        and follower is not None
        and ops.key(follower) not in skipped
        and _is_bias_add(node, follower)
    ):
        draft.bias_add = follower
        draft.output = follower.outputs[0]
        follower = only_consumer(draft.output)
    if (
        follower is not None
        and follower.op_type in rule.fuse
        and ops.key(follower) not in skipped
        and ops.activation_bounds(follower) is not None
        and follower.inputs[0] is draft.output
    ):
        draft.activation = follower
        draft.output = follower.outputs[0]
    return draft


def _is_bias_add(matmul: ir.Node, follower: ir.Node) -> bool:
    if follower.op_type != "Add" or not ops.is_standard(follower):
        return False
    other = next(value for value in follower.inputs if value is not matmul.outputs[0])
    bias, weight = ops.constant(other), ops.constant(matmul.inputs[1])
    if bias is None or weight is None:
        return False
    return bias.ndim == 1 and bias.shape == weight.shape[-1:]


def _followers(drafts: Iterable[_Draft]) -> dict[str, tuple[_Draft, str]]:
    """Nodes that are done by the draft before them, with what they are to it."""
    taken: dict[str, tuple[_Draft, str]] = {}
    for draft in drafts:
        if draft.bias_add is not None:
            taken[ops.key(draft.bias_add)] = (draft, "the bias")
        if draft.activation is not None:
            taken[ops.key(draft.activation)] = (draft, "the activation")
    return taken


# ------------------------------------------------------------------------- the whole graph


def _propagate(graph: ir.Graph, drafts: dict[str, _Draft], reasons: dict[str, str]) -> None:
    """Forwards: an operator without weights is integer only behind an integer operator."""
    integers: set[ir.Value] = set()
    movable = set(graph.inputs)  # data movers may also start at an input
    for draft in drafts.values():
        if draft.rule.quantize != "always":
            data = _data_inputs(draft.node)
            behind = any(value in integers for value in data)
            moves_input = draft.rule.same_parameters and all(value in movable for value in data)
            if not behind and not moves_input:
                draft.integer = False
                reasons[ops.key(draft.node)] = "no integer operator before it"
                continue
            if not behind:
                movable.add(draft.output)
        if draft.rule.output == "quantized":
            integers.add(draft.output)


def _trim(drafts: dict[str, _Draft], reasons: dict[str, str]) -> None:
    """Backwards: an operator that no integer operator reads gains nothing from being one."""
    for draft in reversed(drafts.values()):
        if draft.integer and draft.rule.quantize == "between" and not _read(draft, drafts):
            draft.integer = False
            reasons[ops.key(draft.node)] = "no integer operator reads its result"


def _read(draft: _Draft, drafts: dict[str, _Draft]) -> bool:
    """Whether an integer operator takes the draft's result as an activation."""
    values = [draft.output, *draft.node.outputs[1:]]
    for value in values:
        for use in value.uses():
            reader = drafts.get(ops.key(use.node))
            if reader is not None and reader.integer and value in _data_inputs(use.node):
                return True
    return False


def _tensors(
    graph: ir.Graph, chosen: Sequence[_Draft], target: TargetSpec, method: str
) -> dict[str, TensorPlan]:
    ends = {value.name for value in (*graph.inputs, *graph.outputs)}
    read = {value.name for draft in chosen for value in _data_inputs(draft.node)}
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
        if draft.rule.output == "quantized"
        for value in (draft.output, *draft.node.outputs[1:])
    }
    for draft in chosen:
        for value in _data_inputs(draft.node):
            add(value, bounds=_bounds_of(value))
        source = tensors[_data_inputs(draft.node)[0].name or ""]
        outputs = [draft.output, *draft.node.outputs[1:]]
        for value in outputs:
            if draft.rule.output == "as_needed" and value.name not in read:
                continue
            if draft.rule.same_parameters:
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
    return tensors


def _bounds_of(value: ir.Value) -> tuple[float, float] | None:
    producer = value.producer()
    return None if producer is None else ops.activation_bounds(producer)


def _weights(draft: _Draft, target: TargetSpec, *, per_channel: bool) -> Iterable[WeightPlan]:
    node = draft.node
    facts = ops.LINEAR.get(node.op_type)
    if facts is None:
        data = _data_inputs(node)
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
        axis=axis if per_channel and draft.rule.per_channel else None,
        bias=None if bias is None else bias.name,
        bias_node=None if draft.bias_add is None else ops.key(draft.bias_add),
    )


def _is_operand(node: ir.Node, position: int) -> bool:
    """Whether a constant input is a number to compute with, not an axis or a shape."""
    return node.op_type in ("Add", "Sub", "Mul", "Div", "Concat", "Max", "Min", "Sum") or (
        node.op_type == "Where" and position > 0
    )


# --------------------------------------------------------------------------------- the record


def _node_plans(
    graph: ir.Graph,
    drafts: dict[str, _Draft],
    followers: dict[str, tuple[_Draft, str]],
    reasons: dict[str, str],
    tensors: dict[str, TensorPlan],
    target: TargetSpec,
) -> Iterable[NodePlan]:
    for node in graph:
        key = ops.key(node)
        decision: Decision = "float"
        reason = reasons.get(key, "")
        draft = drafts.get(key)
        if key in followers and followers[key][0].integer:
            decision = "fused"
            reason = f"{followers[key][1]} of '{ops.label(followers[key][0].node)}'"
        elif key in followers:
            reason = f"belongs to '{ops.label(followers[key][0].node)}', which stays float"
        elif draft is not None and draft.integer:
            decision, reason = "integer", _why_integer(draft)
        elif needs_guard(node, tensors, target):
            decision = "guarded"
        elif reason.startswith("handles shapes"):
            decision = "untouched"
        yield NodePlan(
            name=ops.label(node), key=key, op_type=node.op_type, decision=decision, reason=reason
        )


def _why_integer(draft: _Draft) -> str:
    if draft.node.op_type in ops.LINEAR:
        return "constant weights"
    if draft.rule.same_parameters:
        return "moves integers without changing them"
    return "its inputs are integers"


def needs_guard(node: ir.Node, tensors: Mapping[str, TensorPlan], target: TargetSpec) -> bool:
    """Whether a float layer reads a dequantized tensor, so that the runtime might quantize it."""
    if target.skip_guard == "none" or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    data = node.inputs[0]
    tensor = None if data is None or data.name is None else tensors.get(data.name)
    return ops.is_standard(node) and tensor is not None and tensor.produced


def _warnings(
    prepared: Prepared, target: TargetSpec, chosen: Sequence[_Draft], *, per_channel: bool
) -> Iterable[str]:
    if per_channel:
        types = sorted(
            {
                draft.node.op_type
                for draft in chosen
                if draft.node.op_type in ops.LINEAR and not draft.rule.per_channel
            }
        )
        if types:
            yield f"per_channel: the target takes one weight scale for {', '.join(types)}"
    opset = prepared.model.graph.opset_imports.get("", 1)
    if target.maximum_opset is not None and opset > target.maximum_opset:
        yield f"the model's opset is {opset}, the target's importer takes {target.maximum_opset}"


def _nothing(graph: ir.Graph, reasons: dict[str, str], target: TargetSpec) -> ModelError:
    counted: dict[str, int] = {}
    for node in graph:
        if node.op_type in ops.LINEAR:
            reason = reasons.get(ops.key(node), "")
            line = f"{node.op_type}: {reason}"
            counted[line] = counted.get(line, 0) + 1
    if counted:
        why = "; ".join(f"{count} x {line}" for line, count in counted.items())
    else:
        layers = ", ".join(
            name for name in ops.LINEAR if target.operators.get(name, None) is not None
        )
        why = f"it has no layer with weights ({layers}) in its main graph"
    return ModelError(f"there is nothing to quantize: {why}")
