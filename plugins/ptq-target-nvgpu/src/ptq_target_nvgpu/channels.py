"""Which layers TensorRT runs faster in float: too few channels, or a vector times a matrix.

Source   NVIDIA's Model Optimizer, ``find_nodes_from_convs_to_exclude`` and
         ``find_nodes_from_matmul_to_exclude`` of modelopt.onnx.quantization (0.47).
"""

from __future__ import annotations

from ptq_core.api import NodeFacts

TILE = 16  # channels that a tensor core multiplies at once
HALF_TILE = 8  # convolutions pad up to a tile from here
WIDE_KERNEL = 3  # convolutions with groups have integer kernels from 3x3


def keep_float(facts: NodeFacts) -> str | None:
    """Why a layer stays float although its inputs could be integers, None where it does not."""
    if facts.op_type == "Conv":
        return _why_not_conv(facts)
    if facts.op_type in ("MatMul", "Gemm"):
        return _why_not_matmul(facts)
    return None


def _why_not_conv(facts: NodeFacts) -> str | None:
    if facts.weight_shape is None:
        return None
    outputs, inputs, *kernel = facts.weight_shape  # inputs: of one group
    if min(outputs, inputs) >= TILE:
        return None
    shown = "x".join(map(str, kernel))
    if int(facts.attributes.get("group", 1)) > 1:
        if outputs % HALF_TILE == 0 and min(kernel) >= WIDE_KERNEL:
            return None
        return (
            f"{outputs} output channels in groups, kernel {shown}: TensorRT's integer kernels for "
            f"groups need a multiple of {HALF_TILE} channels and {WIDE_KERNEL} or more each way"
        )
    aligned = outputs % HALF_TILE == 0 or inputs % HALF_TILE == 0
    enough = facts.reads_graph_input or max(outputs, inputs) >= TILE
    if aligned and enough and len(set(kernel)) == 1:
        return None
    return (
        f"{inputs} input and {outputs} output channels, kernel {shown}: faster in float; tensor "
        f"cores want {TILE} of both, or {TILE} of one and a multiple of {HALF_TILE} of one with a "
        "square kernel"
    )


def _why_not_matmul(facts: NodeFacts) -> str | None:
    """A product of matrices of which one is a vector; an open dimension counts as a matrix."""
    if facts.output_shape is None or len(facts.output_shape) > 2:
        return None  # more dimensions are batches, which TensorRT puts together with the rows
    if 1 in facts.output_shape:
        return (
            f"its result has the shape {list(facts.output_shape)}: a vector times a matrix does "
            "not use tensor cores, and Q/DQ only cost time"
        )
    return None
