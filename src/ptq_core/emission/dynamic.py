"""Write layers that quantize their activations while they run, in the forms that runtimes merge.

One scale for all of an activation: DynamicQuantizeLinear, MatMulInteger, Cast, Mul, which
onnxruntime merges with the bias behind it (DynamicQuantizeMatMul, or MatMulIntegerToFloat where
several layers read the activation, which is quantized once).

A scale for each token (each row along the last axis): rows are divided by their largest magnitude
and quantized with the constant scale 1/127, and the product is multiplied by it. Written with
DequantizeLinear, it becomes MatMulIntegerToFloat, which takes fewer steps than MatMulInteger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import QParams
from ptq_core.emission.layer_builder import MIDDLE, LayerBuilder, graph_of
from ptq_core.graph import operators as ops
from ptq_core.planning import Plan, WeightPlan, layer_weight

Codes = Mapping[tuple[str, int | None], tuple[NDArray[Any], QParams]]

MICROSOFT = "com.microsoft"  # DynamicQuantizeLSTM is onnxruntime's own operator
_LSTM_INPUTS = 8  # of the float operator; scales and zero points follow


def emit_dynamic(
    model: ir.Model,
    plan: Plan,
    codes: Codes,
    *,
    tokens: bool,
) -> None:
    """Replace the layers that the plan calls dynamic, in place.

    Args:
        model: a prepared model.
        plan: of this model.
        codes: integers and parameters of the weights, by tensor and axis.
        tokens: MatMul and Gemm take a scale for each token.
    """
    build = LayerBuilder(model)
    tied = {
        value.name
        for graph in model.graphs()
        for value in graph.initializers.values()
        if any(use.node.op_type == "Gather" for use in value.uses())
    }
    weights: dict[str, list[WeightPlan]] = {}
    for weight in plan.weights:
        weights.setdefault(weight.node, []).append(weight)
    wanted = {node.key for node in plan.nodes if node.decision == "dynamic"}
    for node in [one for one in model.graph.all_nodes() if ops.key(one) in wanted]:
        own = weights.get(ops.key(node), [])
        match node.op_type:
            case "LSTM":
                _recurrent(build, codes, node, own)
            case "Conv":
                _convolution(build, codes, node, own[0])
            case _ if not own:
                _pair(build, node)
            case _:
                _layer(build, codes, node, own[0], tokens=tokens, tied=own[0].tensor in tied)


def share_codes(model: ir.Model) -> None:
    """Store equal int8 constants once: those of a table that is a layer's weights, too."""
    kept: dict[tuple[tuple[int, ...], bytes], ir.Value] = {}
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or value.dtype != ir.DataType.INT8 or not _is_internal(value):
                continue
            key = (ops.static_shape(value), hashlib.sha256(tensor.tobytes()).digest())
            if key not in kept and graph is model.graph:  # which bodies see as well
                kept[key] = value
            elif key in kept:
                value.replace_all_uses_with(kept[key])
                del graph.initializers[value.name or ""]


def _is_internal(value: ir.Value) -> bool:
    return not value.is_graph_input() and not value.is_graph_output()


def _layer(
    build: LayerBuilder,
    codes: Codes,
    node: ir.Node,
    weight: WeightPlan,
    *,
    tokens: bool,
    tied: bool,
) -> None:
    """A MatMul or Gemm with constant weights, which may be a Gather's table as well."""
    data, operand = node.inputs[:2]
    found = layer_weight(node)
    if data is None or operand is None or found is None:
        raise AssertionError(f"'{ops.label(node)}' has no constant weights")
    swapped, name = found[1], weight.tensor
    array, params = codes[weight.tensor, weight.axis]
    factor = float(ops.attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
    scale = np.asarray(params.scale * np.float32(factor), np.float32)
    integers = _layer_codes(build, node, name, array, swapped=swapped, tied=tied)
    if node.op_type == "Gemm" and ops.attribute(node, "transA", 0):
        data = build.before(node, "Transpose", [data], f"{data.name}_transposed", perm=[1, 0])
    if tokens:  # onnxruntime merges no stack of weights
        merges = array.ndim == 2
        product = _by_tokens(build, node, data, integers, scale, name, merges=merges)
    else:
        quantized, data_scale, zero_point = build.quantized(node, data)
        product = build.integer(
            node,
            [quantized, integers, zero_point],
            data_scale,
            build.constant(name, "scale", scale),
        )
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    beta = float(ops.attribute(node, "beta", 1.0))
    if bias is not None and beta != 0.0:
        product = build.before(
            node, "Add", [product, _scaled_bias(build, node, bias, beta)], f"{ops.key(node)}_sum"
        )
    build.replace(node, product)
    turned = operand.producer()  # a Transpose of the weights; others may read it, too
    if turned is not None and not operand.uses() and not operand.is_graph_output():
        graph_of(turned).remove(turned, safe=True)


def _pair(build: LayerBuilder, node: ir.Node) -> None:
    """A MatMul of two activations."""
    first, second = node.inputs
    if first is None or second is None:
        raise AssertionError(f"'{ops.label(node)}' lacks an operand")
    a, a_scale, a_zero = build.quantized(node, first)
    b, b_scale, b_zero = build.quantized(node, second)
    build.replace(node, build.integer(node, [a, b, a_zero, b_zero], a_scale, b_scale))


def _convolution(build: LayerBuilder, codes: Codes, node: ir.Node, weight: WeightPlan) -> None:
    """A Conv; its weights are unsigned, since signed ones take a far slower kernel."""
    data = node.inputs[0]
    if data is None:
        raise AssertionError(f"'{ops.label(node)}' has no input")
    array, params = codes[weight.tensor, weight.axis]
    tail = (1,) * (array.ndim - 2)
    unsigned = (array.astype(np.int16) + MIDDLE).astype(np.uint8)
    stored = build.constant(weight.tensor, "quantized", unsigned)
    middle = build.constant("ptq", "middle", np.asarray(MIDDLE, np.uint8))
    scale = params.scale.reshape(-1, *tail) if params.axis is not None else params.scale
    quantized, data_scale, zero_point = build.quantized(node, data)
    product = build.integer(
        node,
        [quantized, stored, zero_point, middle],
        data_scale,
        build.constant(weight.tensor, "scale", scale),
        "ConvInteger",
        node.attributes.values(),
    )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        shape = build.constant("ptq", f"channels{len(tail)}", np.array([-1, *tail], np.int64))
        column = build.before(node, "Reshape", [bias, shape], f"{bias.name}_column")
        product = build.before(node, "Add", [product, column], f"{ops.key(node)}_sum")
    build.replace(node, product)


def _recurrent(
    build: LayerBuilder, codes: Codes, node: ir.Node, weights: Sequence[WeightPlan]
) -> None:
    """An LSTM, as onnxruntime's DynamicQuantizeLSTM, which takes weights transposed."""
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * _LSTM_INPUTS][:_LSTM_INPUTS]
    for one in weights:
        array, params = codes[one.tensor, one.axis]
        turned = np.ascontiguousarray(array.transpose(0, 2, 1))
        shape = array.shape[: 1 if params.axis is None else 2]
        # directions share the scales of their gates' rows
        scale = np.ascontiguousarray(np.broadcast_to(params.scale, shape))
        inputs[one.position] = build.constant(one.tensor, "quantized", turned)
        inputs += [
            build.constant(one.tensor, "scale", scale),
            build.constant(one.tensor, "zero_point", np.zeros(shape, np.int8)),
        ]
    kept = [attr for name, attr in node.attributes.items() if name != "layout"]
    made = ir.Node(
        MICROSOFT,
        "DynamicQuantizeLSTM",
        inputs,
        kept,
        num_outputs=len(node.outputs),
        name=build.free(f"{ops.label(node)}_quantized"),
    )
    build.model.opset_imports.setdefault(MICROSOFT, 1)
    graph_of(node).insert_before(node, made)
    for old, new in zip(node.outputs, made.outputs, strict=True):
        build.take_over(old, new)
    graph_of(node).remove(node, safe=True)


def _by_tokens(
    build: LayerBuilder,
    node: ir.Node,
    data: ir.Value,
    codes: ir.Value,
    scale: NDArray[np.float32],
    name: str,
    *,
    merges: bool,
) -> ir.Value:
    """With a scale for each token; without DequantizeLinear where runtimes would not merge it."""
    quantized, magnitude = build.quantized_tokens(node, data)
    step, middle = build.token_step()
    weight_scale = build.constant(name, "scale", scale)
    if merges:
        rows = build.before(
            node, "DequantizeLinear", [quantized, step, middle], f"{data.name}_rows"
        )
        zero_point = build.constant(name, "zero_point", np.zeros(scale.shape, np.int8))
        axis = {"axis": 1} if scale.ndim else {}
        inputs = [codes, weight_scale, zero_point]
        weights = build.before(node, "DequantizeLinear", inputs, f"{name}_dequantized", **axis)
        product = build.before(node, "MatMul", [rows, weights], f"{ops.key(node)}_product")
    else:
        product = build.integer(node, [quantized, codes, middle], step, weight_scale)
    return build.before(node, "Mul", [product, magnitude], f"{ops.key(node)}_scaled")


def _layer_codes(
    build: LayerBuilder,
    node: ir.Node,
    name: str,
    array: NDArray[Any],
    *,
    swapped: bool,
    tied: bool,
) -> ir.Value:
    """The codes as MatMul takes them. What a Gather reads, too, is stored as that needs it."""
    if not swapped:
        return build.constant(name, "quantized", array)
    order = [*range(array.ndim - 2), array.ndim - 1, array.ndim - 2]
    if not tied:
        turned = np.ascontiguousarray(array.transpose(order))
        return build.constant(name, "quantized_transposed", turned)
    stored = build.constant(name, "quantized", array)
    return build.before(node, "Transpose", [stored], f"{name}_transposed", perm=order)


def _scaled_bias(build: LayerBuilder, node: ir.Node, bias: ir.Value, beta: float) -> ir.Value:
    if beta == 1.0:
        return bias
    factor = build.constant(ops.key(node), "beta", np.asarray(beta, np.float32))
    return build.before(node, "Mul", [bias, factor], f"{ops.key(node)}_bias")
