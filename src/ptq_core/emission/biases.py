"""Corrections of layers that compute in float: gains into their weights, offsets into biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import Correction
from ptq_core.emission.qdq import add_bias
from ptq_core.graph import operators as ops
from ptq_core.graph.constants import new_constant
from ptq_core.graph.names import Names
from ptq_core.graph.prepared import only_consumer
from ptq_core.planning import Plan, WeightPlan
from ptq_core.types import QScheme
from ptq_core.weights.quantized import QuantizedWeight


def correctable(model: ir.Model, plan: Plan) -> tuple[WeightPlan, ...]:
    """The layers of the plan that a correction can be put into: whose weights are theirs alone."""
    planned = {one.tensor: one for one in plan.constants}
    found = []
    for node in model.graph:
        facts = ops.LINEAR.get(node.op_type) if ops.is_standard(node) else None
        weight = node.inputs[facts.weight] if facts is not None else None
        if facts is None or weight is None or weight.name not in planned:
            continue
        bias = _bias(node)
        alone = len(list(weight.uses())) == 1
        if not alone or (bias is not None and ops.constant(bias) is None):
            continue
        one = planned[weight.name]
        found.append(
            WeightPlan(
                node=ops.key(node),
                position=facts.weight,
                tensor=one.tensor,
                scheme=QScheme(dtype="int8"),
                axis=ops.channel_axis(node, len(one.shape)) if one.axes else None,
                bias=None if bias is None else bias.name,
            )
        )
    return tuple(found)


def corrected_weight(
    weight: QuantizedWeight, gain: np.ndarray, axis: int | None
) -> QuantizedWeight:
    """The same codes, standing for values that are larger by the gain of their output channel.

    Args:
        weight: the weight.
        gain: of each channel.
        axis: of the output channels in the weight's own shape; None: one gain for all.
    """
    factor = np.asarray(gain.mean())
    if axis is not None:
        shape = [1] * weight.codes.ndim
        shape[0 if axis == 0 else axis - len(weight.shape)] = -1
        factor = gain.reshape(shape)
    return replace(
        weight,
        scale=np.asarray(weight.scale * factor, np.float32),
        offset=np.asarray(weight.offset * factor, np.float32),
        variance=weight.variance * factor,
        mean=weight.mean * factor,
    )


def correct_biases(model: ir.Model, corrections: Mapping[str, Correction]) -> None:
    """Put the offsets into the biases of layers whose weights have taken the gains, in place."""
    nodes = {ops.key(node): node for node in model.graph}
    names = Names(model)
    for key, correction in corrections.items():
        node = nodes[key]
        position = ops.LINEAR[node.op_type].bias
        if position is None:
            _correct_behind(model.graph, node, correction, names)
            continue
        bias = ops.constant(_bias(node))
        # a Gemm's bias may have a row for each row of the result
        own = 0.0 if bias is None else bias * float(ops.attribute(node, "beta", 1.0))
        node.attributes.pop("beta", None)
        value = _constant(model.graph, node, own * correction.gain + correction.offset, names)
        if position >= len(node.inputs):
            node.resize_inputs(position + 1)
        node.replace_input_with(position, value)


def _bias(node: ir.Node) -> ir.Value | None:
    position = ops.LINEAR[node.op_type].bias
    return node.inputs[position] if position is not None and position < len(node.inputs) else None


def _correct_behind(graph: ir.Graph, node: ir.Node, correction: Correction, names: Names) -> None:
    """Behind a MatMul: into the bias that is added there, or by an Add of its own."""
    result = node.outputs[0]
    follower = only_consumer(result)
    if follower is not None and follower.op_type == "Add" and ops.is_standard(follower):
        index = 0 if follower.inputs[1] is result else 1
        bias = ops.constant(follower.inputs[index])
        if bias is not None and bias.shape == correction.offset.shape:
            follower.replace_input_with(
                index, _constant(graph, node, bias + correction.offset, names)
            )
            return
    add_bias(graph, names.free, node, _constant(graph, node, correction.offset, names))


def _constant(graph: ir.Graph, node: ir.Node, array: NDArray[Any], names: Names) -> ir.Value:
    return new_constant(
        graph, names.free(f"{ops.label(node)}_bias_corrected"), np.asarray(array, np.float32)
    )
