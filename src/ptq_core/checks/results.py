"""Rules on what stands behind operators on integers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ptq_core.checks.coded import Coded
from ptq_core.checks.subject import DEQUANTIZE, QUANTIZE, Subject, decoded, readers
from ptq_core.checks.suspicion import Suspicion
from ptq_core.graph import operators as ops

# With which onnxruntime compares a quantized range with an activation's bounds, FLT_EPSILON.
_TOLERANCE = float(np.finfo(np.float32).eps)
_MATRIX = 2

# What devices that give float results merge into a layer, beside what their rules name.
_MERGED_IN_FLOAT = frozenset({"BatchNormalization", "Sigmoid", "HardSwish"})


def check_results(subject: Subject) -> Iterator[Suspicion]:
    """O-NO-Q, D-NO-OUTPUT-Q, the two forms of a bias that need a quantized result, F-ACT-*."""
    for node in subject.nodes:
        if not subject.is_integer(node):
            continue
        rule = subject.spec.operators[node.op_type]
        value, activation = subject.behind(node)
        message = _why_not_quantized(subject, value)
        name = value.name or ""
        if node.op_type in ops.LINEAR and rule.output == "quantized":
            if message:
                yield Suspicion("O-NO-Q", node, name, message)
        elif message:
            yield Suspicion("D-NO-OUTPUT-Q", node, name, message)
        if node.op_type in ("Gemm", "MatMul"):
            yield from _float_bias(subject, node, value)
        if activation is not None:
            yield from _range(subject, node, value, activation)


def _why_not_quantized(subject: Subject, value: ir.Value) -> str:
    """What keeps the result from being integers only, "" where nothing does."""
    if value.is_graph_output():
        return "its float result is an output of the model, expected QuantizeLinear behind it"
    found = readers(value)
    others = [node for node in found if node.op_type != QUANTIZE]
    if others:
        first = others[0]
        return f"its float result is read by {first.op_type} '{ops.label(first)}', expected " + (
            "QuantizeLinear only" if len(others) < len(found) else "QuantizeLinear"
        )
    coded = [one for one in map(subject.pair, found) if one is not None]
    if any(not one.same_as(coded[0]) for one in coded[1:]):
        return f"{len(coded)} QuantizeLinear with different parameters read it, expected one"
    return "" if found else "nobody reads its result"


def _float_bias(subject: Subject, node: ir.Node, result: ir.Value) -> Iterator[Suspicion]:
    """A float bias that is no vector, or is one in front of a float result."""
    bias = subject.bias(node)
    if bias is None or subject.source(bias) is not None:
        return
    gemm, rank = node.op_type == "Gemm", _rank(bias)
    if not readers(result, QUANTIZE):
        message = f"its bias '{bias.name}' is float and so is the result"
        merged = gemm or rank == 1
    else:
        message = f"its bias '{bias.name}' is a float of rank {rank}, expected a vector, or int32"
        merged = gemm and rank not in (None, 1)
    if merged or (rank == _MATRIX and _rank(node.inputs[0]) == _MATRIX):
        code = "O-GEMM-F32BIAS-NO-Q" if gemm else "O-MATMUL-1D-BIAS-NO-Q"
        yield Suspicion(code, node, result.name or "", message)


def _rank(value: ir.Value | None) -> int | None:
    """Number of axes; that of codes is known by what was quantized."""
    while value is not None and ops.rank(value) is None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in (QUANTIZE, DEQUANTIZE):
            return None
        value = node.inputs[0]
    if value is None or value.const_value is None:
        return ops.rank(value)
    return len(ops.static_shape(value))


def _range(
    subject: Subject, node: ir.Node, value: ir.Value, activation: ir.Node
) -> Iterator[Suspicion]:
    bounds = ops.activation_bounds(activation)
    for coded in filter(None, map(subject.pair, readers(value, QUANTIZE))):
        if bounds is None or coded.per_axis or coded.scale is None or coded.zero_point is None:
            continue
        low, high = coded.range
        if not _within(coded, activation):
            message = (
                f"the codes behind {activation.op_type} stand for {low:.9g} to {high:.9g}, "
                f"expected within {bounds[0]:g} to {bounds[1]:g}, so that {node.op_type} "
                f"'{ops.label(node)}' can take {activation.op_type} in"
            )
            yield Suspicion("F-ACT-NOT-REDUNDANT", activation, coded.tensor, message)


def _within(coded: Coded, activation: ir.Node) -> bool:
    """Whether no code stands for a number that a Relu or Clip would change."""
    bounds, (low, high) = ops.activation_bounds(activation), coded.range
    return bounds is not None and bounds[0] - _TOLERANCE <= low and high <= bounds[1] + _TOLERANCE


def check_order(subject: Subject) -> Iterator[Suspicion]:
    """O-Q-BEFORE-*: a pair between an operator and the activation that would be merged into it."""
    for node in subject.nodes:
        rule = subject.rule(node)
        in_float = rule is not None and rule.output == "float" and node.op_type in ops.LINEAR
        if rule is None or not (in_float or subject.is_integer(node)):
            continue
        merged = {*rule.fuse, *(_MERGED_IN_FLOAT if in_float else ())}
        result = subject.total(node)
        for encode in readers(result, QUANTIZE):
            found = decoded(encode)
            if any(subject.is_integer(one) and one.op_type not in merged for one in found):
                continue
            coded = subject.pair(encode)
            for reader in found:
                if reader.op_type in merged and ops.is_standard(reader):
                    if rule.output != "float" and coded is not None and _within(coded, reader):
                        continue  # it changes nothing, and is dropped
                    message = (
                        f"it stands between {node.op_type} '{ops.label(node)}' and "
                        f"{reader.op_type} '{ops.label(reader)}', expected behind both"
                    )
                    code = f"O-Q-BEFORE-{reader.op_type.upper()}"
                    yield Suspicion(code, encode, encode.outputs[0].name or "", message)
