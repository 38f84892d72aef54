"""What the rules of ``ptq check`` do not cover: weights apart from their layers, slow layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, helper

from ptq_core.api import Finding, NodeFacts
from ptq_target_nvgpu.channels import keep_float
from ptq_target_nvgpu.graph import Graph, load

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
MOVERS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
DATA, WEIGHT = 0, 1  # inputs of a layer


def findings_in(model: bytes | Path) -> Iterator[Finding]:
    """Findings with the codes W-DQ-NOT-ADJACENT and N-CHANNELS, in the order of the file."""
    loaded = load(model)
    graph = Graph(loaded)
    shapes = _shapes(loaded)
    for node in loaded.graph.node:
        if node.op_type in LAYERS and not node.domain and len(node.input) > WEIGHT:
            yield from _not_adjacent(graph, node)
            yield from _few_channels(graph, node, shapes)


def _not_adjacent(graph: Graph, node: NodeProto) -> Iterator[Finding]:
    """Weights are dequantized, then moved, then multiplied."""
    between = []
    maker = graph.producer.get(node.input[WEIGHT])
    while maker is not None and maker.op_type in MOVERS:
        between.append(maker)
        maker = graph.producer.get(maker.input[0])
    if not between or maker is None or maker.op_type != "DequantizeLinear":
        return
    if not graph.is_constant(maker.input[0]):
        return
    path = ", ".join(f"{one.op_type} '{_label(one)}'" for one in reversed(between))
    yield Finding(
        code="W-DQ-NOT-ADJACENT",
        severity="warning",
        node=_label(node),
        tensor=node.input[WEIGHT],
        message=f"between its weights' DequantizeLinear and the {node.op_type} stands {path}; "
        "expected nothing",
        because="TensorRT does not recognize the weights as quantized and computes in float",
        fix="store the weights as the layer takes them, with their axis, and leave that out",
    )


def _few_channels(
    graph: Graph, node: NodeProto, shapes: dict[str, tuple[int | None, ...]]
) -> Iterator[Finding]:
    """A quantized layer that is faster in float."""
    facts = _facts(graph, node, shapes)
    reason = None if facts is None else keep_float(facts)
    if reason is not None:
        yield Finding(
            code="N-CHANNELS",
            severity="warning",
            node=_label(node),
            message=f"is quantized, but has {reason}"
            if node.op_type == "Conv"
            else f"is quantized, but {reason}",
            because="TensorRT needs more time for it than in float, or converts its inputs back",
            fix="name it in skip_quant_node, or quantize with ptq, which leaves it in float",
        )


def _facts(
    graph: Graph, node: NodeProto, shapes: dict[str, tuple[int | None, ...]]
) -> NodeFacts | None:
    """Of a layer whose data and constant weights both come out of a DequantizeLinear."""
    sources = []
    for name in (node.input[DATA], node.input[WEIGHT]):
        maker = graph.producer.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        sources.append(_before_quantization(graph, maker.input[0]))
    data, weight = sources
    if weight not in graph.constants:
        return None
    return NodeFacts(
        op_type=node.op_type,
        attributes={one.name: helper.get_attribute_value(one) for one in node.attribute},
        weight_shape=tuple(graph.constants[weight].dims),
        input_shape=shapes.get(node.input[DATA]),
        output_shape=shapes.get(node.output[0]),
        reads_graph_input=data not in graph.producer and data not in graph.constants,
    )


def _before_quantization(graph: Graph, codes: str) -> str:
    maker = graph.producer.get(codes)
    return maker.input[0] if maker is not None and maker.op_type == "QuantizeLinear" else codes


def _shapes(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Of all tensors; needed for products of matrices only, whose results' rows decide."""
    if not any(node.op_type in PRODUCTS for node in model.graph.node):
        return {}
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _label(node: NodeProto) -> str:
    return node.name or node.output[0]
