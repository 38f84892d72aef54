"""Write a plan into the graph as QuantizeLinear and DequantizeLinear nodes.

Emission decides nothing. Per-tensor scales and zero points are rank-0 tensors: with shape [1],
onnxruntime fuses neither Add nor Mul and refuses AveragePool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ptq_core.arithmetic import (
    Correction,
    QParams,
    quantize_bias,
    weight_parameters,
    widen_for_bias,
)
from ptq_core.emission.emitter import Emitter
from ptq_core.emission.guards import channel_guard, guard_by_bias
from ptq_core.errors import NumericError
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared
from ptq_core.planning import Plan, TensorPlan, WeightPlan, guard_channels
from ptq_core.target_types import TargetSpec

_MINIMUM_IR_VERSION = 7  # the one of opset 13


def emit(
    prepared: Prepared,
    plan: Plan,
    parameters: Mapping[str, QParams],
    target: TargetSpec,
    corrections: Mapping[str, Correction] | None = None,
) -> ir.Model:
    """Turn the prepared model into the quantized one, in place.

    Args:
        prepared: the model that the plan was made for; it is used up.
        plan: what to do.
        parameters: of every tensor in the plan that is its own source.
        target: for the form of biases and guards.
        corrections: of layers, by their keys: gains go into the scales of the weights, offsets
            into the biases, and a layer without a bias gets one.

    Raises:
        NumericError: a constant that becomes integer holds NaN or infinity.
    """
    graph = prepared.model.graph
    nodes = {ops.key(node): node for node in graph}
    values = _values(graph)
    emitter = Emitter(prepared.model, parameters)
    corrections = corrections or {}
    added: dict[str, ir.Value] = {}
    for weight in plan.weights:
        bias = _emit_weight(emitter, nodes, plan, weight, target, corrections.get(weight.node))
        if bias is not None:
            added[weight.node] = bias
    integer = {node.key for node in plan.nodes if node.decision in ("integer", "fused")}
    guarded = {node.key for node in plan.nodes if node.decision == "guarded"}
    for tensor in plan.tensors.values():
        _emit_tensor(emitter, values[tensor.name], tensor, integer, guarded)
    for key, bias in added.items():
        add_bias(graph, emitter.name, nodes[key], bias)
    common.RemoveUnusedNodesPass()(prepared.model)
    graph.sort()
    forget_shapes(graph)
    prepared.model.ir_version = max(prepared.model.ir_version or 0, _MINIMUM_IR_VERSION)
    return prepared.model


def forget_shapes(graph: ir.Graph) -> None:
    """Drop the shapes of inner tensors: runtimes infer their own.

    The file is smaller, and onnxruntime does not use them to merge residual Adds into layer
    normalization, which on CPUs is slower than both apart (a sentence encoder by a third).
    """
    ends = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in ends:
                value.shape = value.type = None


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {value.name: value for value in graph.inputs}
    values |= {out.name: out for node in graph for out in node.outputs}
    return {name: value for name, value in values.items() if name}


def _emit_weight(
    emitter: Emitter,
    nodes: Mapping[str, ir.Node],
    plan: Plan,
    weight: WeightPlan,
    target: TargetSpec,
    correction: Correction | None,
) -> ir.Value | None:
    """Make weights and bias integer; returns a bias that the operator has no room for."""
    node = nodes[weight.node]
    array = ops.constant(node.inputs[weight.position])
    if array is None:
        raise AssertionError(f"the weights of {weight.node} are no constant")
    if weight.node in plan.tensors:
        array = _saturated(node, array, plan, emitter.parameters)
    if not np.isfinite(array).all():
        raise NumericError(
            f"the constant '{weight.tensor}' of '{ops.label(node)}' holds NaN or infinity, which "
            "no integer stands for",
            hint="let the node stay float: skip_quant_node",
        )
    params = weight_parameters(array, weight.scheme, weight.axis)
    bias, holder, position = _bias_of(nodes, weight, correction)
    name = weight.bias or f"{ops.label(node)}_bias"
    value: ir.Value | None = None
    # a bias per row of the result (Gemm) has no int32 form and stays float
    if (
        bias is not None
        and target.bias == "int32"
        and (bias.size == 1 or bias.shape[-1] == bias.size)
    ):
        data = node.inputs[0]
        source = plan.tensors[data.name or ""].source if data is not None else ""
        input_scale = float(emitter.parameters[source].scale)
        widest = bias.reshape(-1) / _gain(params, correction)  # the gain is in the scale of codes
        params = widen_for_bias(params, widest, input_scale)
        corrected = _with_gain(params, correction)
        value = emitter.bias(name, *quantize_bias(bias.reshape(-1), input_scale, corrected))
    else:
        corrected = _with_gain(params, correction)
        if bias is not None and correction is not None:
            value = emitter.initializer(f"{name}_corrected", bias.astype(np.float32))
    if correction is not None:
        node.attributes.pop("beta", None)  # of a Gemm; the corrected bias has it
    dequantized = emitter.constant(weight.tensor, array, params, corrected.scale)
    node.replace_input_with(weight.position, dequantized)
    if value is None or position is None:
        return value
    if position >= len(holder.inputs):
        holder.resize_inputs(position + 1)
    holder.replace_input_with(position, value)
    return None


def _saturated(
    node: ir.Node, array: NDArray[Any], plan: Plan, parameters: Mapping[str, QParams]
) -> NDArray[Any]:
    """A constant without what is lost in the result anyway: minus infinity in a mask, say.

    Where passes it on as it comes out; in front of Softmax a summand needs to go no lower than it
    takes to push every sum to the end of its range.
    """
    result = plan.tensors[ops.key(node)]
    low, high = _ends(parameters[result.source])
    if node.op_type == "Add" and (result.softmax_axis is not None or result.masks):
        (other,) = (one for one in node.inputs if one is not None and one.name in plan.tensors)
        largest = _ends(parameters[plan.tensors[other.name or ""].source])[1]
        low, high = low - largest, np.inf
    elif node.op_type != "Where":
        return array
    clipped: NDArray[Any] = np.clip(array, np.float32(min(low, 0.0)), np.float32(high))
    return clipped


def _ends(params: QParams) -> tuple[float, float]:
    """The smallest and the largest number that these codes stand for."""
    scheme, zero_point = params.scheme, int(params.zero_point)
    low, high = (float(params.scale) * (code - zero_point) for code in (scheme.qmin, scheme.qmax))
    return low, high


def _bias_of(
    nodes: Mapping[str, ir.Node], weight: WeightPlan, correction: Correction | None
) -> tuple[NDArray[Any] | None, ir.Node, int | None]:
    """A layer's bias, corrected; where it is read: the node and, if it has room, the position.

    None where there is none. A correction gives every layer one.
    """
    node = nodes[weight.node]
    holder = node if weight.bias_node is None else nodes[weight.bias_node]
    if weight.bias is None:
        if correction is None:
            return None, node, None
        return correction.offset, node, ops.LINEAR[node.op_type].bias
    position = next(
        i for i, v in enumerate(holder.inputs) if v is not None and v.name == weight.bias
    )
    bias = ops.constant(holder.inputs[position])
    if bias is None:
        raise AssertionError(f"the bias of {weight.node} is no constant")
    if correction is not None:
        # what is added behind the layer is no part of the result that the gain belongs to
        gain = correction.gain * ops.attribute(node, "beta", 1.0) if holder is node else 1.0
        bias = np.asarray(bias, np.float64) * gain + correction.offset
    return bias, holder, position


def _gain(params: QParams, correction: Correction | None) -> NDArray[np.float64]:
    """Of every scale of the weights."""
    if correction is None:
        return np.ones(())
    return correction.gain if params.axis is not None else np.asarray(correction.gain.mean())


def _with_gain(params: QParams, correction: Correction | None) -> QParams:
    """The same codes, standing for values that are larger by the correction's gain."""
    scale = params.scale.astype(np.float64) * _gain(params, correction)
    return replace(params, scale=np.asarray(scale, np.float32))


def add_bias(graph: ir.Graph, free: Callable[[str], str], node: ir.Node, bias: ir.Value) -> None:
    """Add a bias behind an operator that takes none; ``free`` gives names that are free."""
    value = node.outputs[0]
    readers, was_output = list(value.uses()), value.is_graph_output()
    add = ir.node("Add", [value, bias], name=free(f"{ops.label(node)}_correct"))
    result = add.outputs[0]
    result.name = free(f"{value.name}_corrected")
    result.dtype = ir.DataType.FLOAT
    graph.insert_after(node, add)
    for use in readers:
        use.node.replace_input_with(use.idx, result)
    if was_output:
        _become_output(graph, free, value, result)


def _emit_tensor(
    emitter: Emitter,
    value: ir.Value,
    tensor: TensorPlan,
    integer: set[str],
    guarded: set[str],
) -> None:
    params = emitter.parameters[tensor.source]
    scale, zero_point = emitter.scale_and_zero_point(tensor.source, params)
    graph, name = emitter.graph, tensor.name
    uses = list(value.uses())
    was_output = value.is_graph_output()
    encode = ir.node(
        "QuantizeLinear", [value, scale, zero_point], name=emitter.name(f"{name}_quantize")
    )
    codes = encode.outputs[0]
    codes.name = emitter.name(f"{name}_quantized")
    codes.dtype = ir.DataType[tensor.scheme.dtype.upper()]
    codes.shape = value.shape
    decode = emitter.dequantize(name, codes, scale, zero_point, None)
    producer = value.producer()
    if producer is None:
        graph.insert_before(next(iter(graph)), [encode, decode])
    else:
        graph.insert_after(producer, [encode, decode])
    for use in uses:
        key = ops.key(use.node)
        if use.node.op_type in ops.SHAPE_READERS:
            if tensor.produced:
                use.node.replace_input_with(use.idx, codes)
        elif key in guarded and tensor.produced and guard_channels(use.node)[0] == 1:
            guard_by_bias(emitter, use.node)
            use.node.replace_input_with(use.idx, decode.outputs[0])
        elif key in guarded and tensor.produced:
            guard = channel_guard(emitter, use.node, codes, params, name)
            graph.insert_before(use.node, guard)
            use.node.replace_input_with(use.idx, guard.outputs[0])
        elif key in integer or tensor.produced:
            use.node.replace_input_with(use.idx, decode.outputs[0])
    if was_output and tensor.produced:
        _become_output(graph, emitter.name, value, decode.outputs[0])


def _become_output(
    graph: ir.Graph, free: Callable[[str], str], value: ir.Value, dequantized: ir.Value
) -> None:
    """Let the dequantized value be the graph output, under the name that users know."""
    name = value.name
    value.name = free(f"{name}_float")
    dequantized.name = name
    dequantized.shape, dequantized.type = value.shape, value.type
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = dequantized
