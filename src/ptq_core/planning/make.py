"""Make the plan: single nodes, then regions, then the record with every reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from ptq_core.errors import Location, ModelError
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared
from ptq_core.planning.nodes import (
    Draft,
    KeepFloat,
    data_inputs,
    draft_of,
    followers_of,
    is_requantized,
    settle_residuals,
    why_float,
)
from ptq_core.planning.plan import MAX_MIN, Decision, NodePlan, Plan, TensorPlan, tally
from ptq_core.planning.regions import propagate, tensor_plans, trim, weight_plans
from ptq_core.planning.skip import match_nodes
from ptq_core.target_types import TargetSpec


def make_plan(
    prepared: Prepared,
    target: TargetSpec,
    *,
    method: str = MAX_MIN,
    per_channel: bool = True,
    keep_float: KeepFloat | None = None,
    skip: Sequence[str] = (),
    skip_location: Location | None = None,
) -> Plan:
    """The plan for full quantization of a prepared model on a target.

    Args:
        prepared: the model.
        target: the device's rules.
        method: the calibrator of activations; graph inputs and outputs take MAX_MIN.
        per_channel: one weight scale per output channel where the device can.
        keep_float: of the target's entry.
        skip: names, globs, and ``type:OPERATOR`` of nodes that stay float.
        skip_location: where they are written, for messages.

    Raises:
        ConfigError: something in ``skip`` matches nothing.
        ModelError: no node can be quantized.
    """
    graph = prepared.model.graph
    skipped = match_nodes(prepared, skip, skip_location)
    opset = graph.opset_imports.get("", 1)
    reasons: dict[str, str] = {}
    drafts: dict[str, Draft] = {}
    for node in graph:
        reason = why_float(node, target, keep_float, skipped, opset)
        if reason is None:
            drafts[ops.key(node)] = draft_of(node, target.operators[node.op_type], skipped)
        else:
            reasons[ops.key(node)] = reason
    followers = followers_of(drafts.values())
    for taken in followers:
        drafts.pop(taken, None)
    settle_residuals(drafts, reasons)
    propagate(graph, drafts, reasons)
    trim(drafts, reasons, target)
    chosen = [draft for draft in drafts.values() if draft.integer]
    if not any(draft.node.op_type in ops.LINEAR for draft in chosen):
        raise _nothing(graph, reasons, target)
    tensors = tensor_plans(graph, chosen, target, method)
    weights = tuple(
        weight
        for draft in chosen
        for weight in weight_plans(draft, target, per_channel=per_channel)
    )
    nodes = tuple(_node_plans(graph, drafts, followers, reasons, tensors, target, skipped))
    return Plan(
        nodes=nodes,
        tensors=tensors,
        weights=weights,
        warnings=tuple(_warnings(prepared, target, chosen, per_channel=per_channel)),
    )


def _node_plans(
    graph: ir.Graph,
    drafts: dict[str, Draft],
    followers: dict[str, tuple[Draft, str]],
    reasons: dict[str, str],
    tensors: dict[str, TensorPlan],
    target: TargetSpec,
    skipped: Collection[str],
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
        elif is_requantized(node, target) and _reads(node, tensors):
            decision = "guarded"
        elif key in skipped and _has_integer_form(node, target) and _reads(node, tensors):
            # Its operands and its result are rounded by the operators around it in any case.
            reason += "; between integers the runtime may still use its integer kernel"
        elif reason.startswith("handles shapes"):
            decision = "untouched"
        yield NodePlan(
            name=ops.label(node), key=key, op_type=node.op_type, decision=decision, reason=reason
        )


def _why_integer(draft: Draft) -> str:
    if draft.rule.quantize == "residual":
        return f"adds '{draft.data[0].name}' to a convolution's result"
    if draft.node.op_type in ops.LINEAR:
        return "constant weights" if len(draft.data) == 1 else "multiplies two activations"
    if draft.rule.same_parameters:
        return "moves integers without changing them"
    return "its inputs are integers"


def _has_integer_form(node: ir.Node, target: TargetSpec) -> bool:
    rule = target.operators.get(node.op_type)
    return rule is not None and rule.quantize != "never" and node.op_type not in ops.LINEAR


def _reads(node: ir.Node, tensors: Mapping[str, TensorPlan]) -> bool:
    """Whether the node reads a value that integers were turned into."""
    names = [value.name for value in data_inputs(node) if value.name in tensors]
    return any(tensors[name or ""].produced for name in names)


def _warnings(
    prepared: Prepared, target: TargetSpec, chosen: Sequence[Draft], *, per_channel: bool
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
        grouped = [
            ops.label(draft.node)
            for draft in chosen
            if draft.rule.per_channel and ops.shares_channels(draft.node)
        ]
        if grouped:
            yield (
                "per_channel: one weight scale for each ConvTranspose with groups, whose weights "
                f"have no axis of all output channels: {', '.join(grouped)}"
            )
    opset = prepared.model.graph.opset_imports.get("", 1)
    if target.maximum_opset is not None and opset > target.maximum_opset:
        yield f"the model's opset is {opset}, the target's importer takes {target.maximum_opset}"


def _nothing(graph: ir.Graph, reasons: dict[str, str], target: TargetSpec) -> ModelError:
    why = tally(
        f"{node.op_type}: {reasons.get(ops.key(node), '')}"
        for node in graph
        if node.op_type in ops.LINEAR
    )
    if not why:
        layers = ", ".join(
            name for name in ops.LINEAR if target.operators.get(name, None) is not None
        )
        why = f"it has no layer with weights ({layers}) in its main graph"
    return ModelError(f"there is nothing to quantize: {why}")
