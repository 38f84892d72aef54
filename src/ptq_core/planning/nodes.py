"""One node at a time: can it become integer, and which nodes come with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import only_consumer
from ptq_core.target_types import NodeFacts, OperatorRule, TargetSpec

KeepFloat = Callable[[NodeFacts], str | None]


@dataclass(kw_only=True)
class Draft:
    """A node that may become integer, while the plan is being made."""

    node: ir.Node
    rule: OperatorRule
    data: list[ir.Value]  # the activations that it takes as integers
    output: ir.Value  # behind bias and activation
    bias_add: ir.Node | None = None
    activation: ir.Node | None = None
    integer: bool = True
    from_input: bool = False  # a mover that no integer operator precedes

    @property
    def gives_integers(self) -> bool:
        """Whether the output is quantized, whoever reads it.

        An activation needs that even where the device takes float results: runtimes merge it into
        the layer first, and have no integer form of both with a float result.
        """
        if self.rule.output != "as_needed":
            return self.rule.output == "quantized"
        return self.activation is not None and not self.output.is_graph_output()


def why_float(
    node: ir.Node,
    target: TargetSpec,
    keep_float: KeepFloat | None,
    skipped: Collection[str],
    opset: int,
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
        reason = _why_weights_float(node, rule)
        if reason is not None:
            return reason
    else:
        data = data_inputs(node)
        if not data and not _chooses(node, rule):
            return "it computes with constants only, or reads a constant table"
        if not all(ops.is_float(value) for value in data):
            return "its inputs are not float32"
    return None if keep_float is None else keep_float(_facts_of(node))


def _facts_of(node: ir.Node) -> NodeFacts:
    linear = ops.LINEAR.get(node.op_type)
    weight = None if linear is None else ops.constant(node.inputs[linear.weight])
    data = node.inputs[0]
    return NodeFacts(
        op_type=node.op_type,
        attributes={
            name: ops.attribute(node, name, None)
            for name, attr in node.attributes.items()
            if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        },
        weight_shape=None if weight is None else weight.shape,
        input_shape=_shape_of(data),
        output_shape=_shape_of(node.outputs[0]),
        reads_graph_input=data is not None and data.is_graph_input(),
    )


def _shape_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    dims = None if value is None else ops.dimensions(value)
    if dims is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in dims)


def _why_weights_float(node: ir.Node, rule: OperatorRule) -> str | None:
    facts = ops.LINEAR[node.op_type]
    weight = ops.constant(node.inputs[facts.weight])
    if weight is None and rule.two_activations and ops.constant(node.inputs[0]) is None:
        floats = all(ops.is_float(one) for one in node.inputs)
        return None if floats else "its inputs are not float32"
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


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry activations: the first, or all where operands are alike."""
    if node.op_type in ops.ALIKE_OPERANDS or node.op_type == "MatMul":
        values = list(node.inputs)
    elif node.op_type == "Where":
        values = list(node.inputs[1:])
    else:
        values = list(node.inputs[:1])
    return [value for value in values if value is not None and ops.constant(value) is None]


def _chooses(node: ir.Node, rule: OperatorRule) -> bool:
    """Whether it chooses from constants that become integer: embeddings, or the two of a mask."""
    if node.op_type not in ("Gather", "Where") or rule.quantize != "always":
        return False
    table = node.op_type == "Gather"
    chooser = node.inputs[1 if table else 0]
    arrays = [ops.constant(one) for one in (node.inputs[:1] if table else node.inputs[1:])]
    floats = all(one is not None and one.dtype == "float32" for one in arrays)
    return floats and ops.constant(chooser) is None


def draft_of(node: ir.Node, rule: OperatorRule, skipped: Collection[str]) -> Draft:
    """The node with what runtimes merge into it: a bias Add behind a MatMul, an activation."""
    draft = Draft(node=node, rule=rule, data=data_inputs(node), output=node.outputs[0])
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
    other = next((v for v in follower.inputs if v is not matmul.outputs[0]), None)
    bias, weight = ops.constant(other), ops.constant(matmul.inputs[1])
    if bias is None or weight is None:
        return False
    return bias.ndim == 1 and bias.shape == weight.shape[-1:]


def followers_of(drafts: Iterable[Draft]) -> dict[str, tuple[Draft, str]]:
    """Nodes that are done by the draft before them, with what they are to it."""
    taken: dict[str, tuple[Draft, str]] = {}
    for draft in drafts:
        if draft.bias_add is not None:
            taken[ops.key(draft.bias_add)] = (draft, "the bias")
        if draft.activation is not None:
            taken[ops.key(draft.activation)] = (draft, "the activation")
    return taken


def settle_residuals(drafts: dict[str, Draft], reasons: dict[str, str]) -> None:
    """Of two tensors that are added, the one that is not a convolution's own result is integer.

    The device adds it while it convolves. Of two convolutions (the shortcut of a block that has one
    of its own) the one with fewer of them before it, back to the block's start, is the shortcut.
    """
    results = {
        draft.output: draft
        for draft in drafts.values()
        if draft.node.op_type in ops.CONVOLUTIONS and draft.activation is None
    }
    for key, draft in drafts.items():
        if draft.rule.quantize != "residual":
            continue
        own = [one for one in draft.data if one in results and only_consumer(one) is draft.node]
        others = [value for value in draft.data if value not in own]
        if len(set(draft.data)) != 2 or not own:
            reasons[key] = "it does not add a convolution's result to another tensor"
            draft.integer = False
            continue
        draft.data = others or [min(own, key=lambda one: _convolutions_before(one, own))]


def _convolutions_before(value: ir.Value, operands: list[ir.Value]) -> int:
    """How many convolutions lie on the way to a tensor that does not lead to the other operand."""
    others = set[ir.Value]().union(*(_ancestors(one) for one in operands if one is not value))
    own = _ancestors(value) - others
    return sum(
        1
        for one in own
        if (node := one.producer()) is not None and node.op_type in ops.CONVOLUTIONS
    )


def _ancestors(value: ir.Value) -> set[ir.Value]:
    """The tensor and all that it is computed from."""
    found: set[ir.Value] = set()
    waiting: list[ir.Value | None] = [value]
    while waiting:
        one = waiting.pop()
        if one is None or one in found:
            continue
        found.add(one)
        node = one.producer()
        waiting += [] if node is None else node.inputs
    return found


def is_requantized(node: ir.Node, target: TargetSpec) -> bool:
    """Whether the runtime would quantize this layer, were it left float between integers."""
    return (
        target.skip_guard != "none"
        and node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and ops.is_standard(node)
        and ops.constant(node.inputs[1]) is not None
    )


def guard_channels(node: ir.Node) -> tuple[int, int]:
    """Count and axis of the input channels of a layer that needs a guard."""
    weight = ops.constant(node.inputs[1])
    if weight is None:
        raise AssertionError(f"'{ops.label(node)}' needs no guard: its weights are not constant")
    if node.op_type == "ConvTranspose":
        return weight.shape[0], 1
    if node.op_type == "Gemm":
        rows = 1 if ops.attribute(node, "transB", 0) else 0
        return weight.shape[rows], 0 if ops.attribute(node, "transA", 0) else 1
    return weight.shape[1] * int(ops.attribute(node, "group", 1)), 1
