"""Rules on scales, zero points and the types of codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ptq_core.checks.coded import Coded, unlike
from ptq_core.checks.subject import DEQUANTIZE, QUANTIZE, Subject
from ptq_core.checks.suspicion import Suspicion
from ptq_core.graph import operators as ops

_BYTE = 8  # bits of codes that a table can hold all results of


def check_parameters(subject: Subject) -> Iterator[Suspicion]:
    """Q-*, but for pairs, and A-DTYPE, A-PER-AXIS-ACT."""
    for coded in subject.all_coded():
        yield from _numbers(subject, coded)
        if coded.role in ("activation", "operand"):
            yield from _activation(subject, coded)


def _numbers(subject: Subject, coded: Coded) -> Iterator[Suspicion]:
    """Whether scale and zero point are there, and are numbers to compute with."""
    node, tensor = coded.node, coded.tensor
    if not coded.has_zero_point and 0 < coded.bits < _BYTE:
        message = f"it has no zero point, expected one of {coded.dtype or 'the type of the codes'}"
        yield Suspicion("Q-ZP-IMPLICIT", node, tensor, message)
    missing = [
        name
        for name, array in (("scale", coded.scale), ("zero point", coded.zero_point))
        if array is None
    ]
    if missing:
        message = f"{' and '.join(missing)} not constant, expected an initializer"
        yield Suspicion("Q-SCALE-NOT-CONST", node, tensor, message)
    if coded.scale is None:
        return
    wrong = ~((coded.scale > 0) & np.isfinite(coded.scale))
    if wrong.any():
        message = f"{unlike(coded.scale, wrong, 'scale')}, expected a number above 0"
        yield Suspicion("Q-SCALE-NONPOS", node, tensor, message)


def _activation(subject: Subject, coded: Coded) -> Iterator[Suspicion]:
    if _told_elsewhere(subject, coded):
        return
    node, tensor, spec = coded.node, coded.tensor, subject.spec
    vectors = [
        name
        for name, array in (("scale", coded.scale), ("zero point", coded.zero_point))
        if array is not None and array.shape == (1,)
    ]
    if vectors and not coded.per_axis:
        message = f"{' and '.join(vectors)} of shape [1], expected rank 0 (shape [])"
        yield Suspicion("Q-SCALE-RANK1", node, tensor, message)
    if coded.dtype and coded.dtype not in spec.accepts.activations:
        expected = " or ".join(spec.accepts.activations)
        message = f"the codes are {coded.dtype}, expected {expected}"
        yield Suspicion("A-DTYPE", node, tensor, message)
    if coded.per_axis and not subject.is_guard(coded):
        count = 0 if coded.scale is None else coded.scale.size
        message = f"it has {count} scales, expected one for the whole activation"
        yield Suspicion("A-PER-AXIS-ACT", node, tensor, message)
    zeros = coded.zero_point
    if spec.activation.symmetric and zeros is not None and (zeros != coded.middle).any():
        found = unlike(zeros, zeros != coded.middle, "zero point")
        message = f"{found}, expected {coded.middle} for {coded.dtype}"
        yield Suspicion("Q-ZP-NONZERO", node, tensor, message)


def _told_elsewhere(subject: Subject, coded: Coded) -> bool:
    """Whether the same parameters are looked at with the QuantizeLinear in front."""
    value = coded.node.inputs[0]
    maker = None if value is None else subject.pair(value.producer())
    return (
        coded.node.op_type == DEQUANTIZE
        and maker is not None
        and maker.node.op_type == QUANTIZE
        and maker.per_axis == coded.per_axis
        and coded.same_as(maker)
    )


def check_pairs(subject: Subject) -> Iterator[Suspicion]:
    """Q-PAIR-MISMATCH, P-PASSTHROUGH-QPARAMS and F-FIXED-ENCODING: parameters on two sides."""
    for node in subject.nodes:
        coded = subject.pair(node)
        if coded is None:
            yield from _passed_on(subject, node)
            yield from _fixed(subject, node)
            continue
        value = node.inputs[0]
        maker = subject.pair(None if value is None else value.producer())
        if node.op_type != DEQUANTIZE or maker is None or maker.node.op_type != QUANTIZE:
            continue
        if not coded.same_as(maker):
            message = (
                f"scale and zero point are {coded}, those of '{ops.label(maker.node)}' {maker}"
            )
            yield Suspicion("Q-PAIR-MISMATCH", node, coded.tensor, message)


def _passed_on(subject: Subject, node: ir.Node) -> Iterator[Suspicion]:
    rule = subject.rule(node)
    if rule is None or not rule.same_parameters or not node.inputs:
        return
    before = subject.activation(node.inputs[0])
    for output in node.outputs if before is not None else ():
        for after in filter(None, map(subject.pair, (use.node for use in output.uses()))):
            if before is not None and after.node.op_type == QUANTIZE and not after.same_as(before):
                message = f"scale and zero point are {before} in front of it and {after} behind"
                yield Suspicion("P-PASSTHROUGH-QPARAMS", node, output.name or "", message)


def _fixed(subject: Subject, node: ir.Node) -> Iterator[Suspicion]:
    rule = subject.rule(node)
    if rule is None or rule.fixed_output is None or not subject.is_integer(node):
        return
    value, _ = subject.behind(node)
    for after in filter(None, map(subject.pair, (use.node for use in value.uses()))):
        if after.node.op_type != QUANTIZE or after.bits <= _BYTE or after.scale is None:
            continue
        finer = 2.0 ** (after.bits - subject.spec.activation.bits)
        scale, zero_point = rule.fixed_output.scale / finer, rule.fixed_output.zero_point * finer
        right = np.allclose(after.scale, scale, rtol=1e-6, atol=0) and (
            after.zero_point is None or bool((after.zero_point == zero_point).all())
        )
        if not right:
            message = f"scale and zero point are {after}, expected {scale:.9g} and {zero_point:g}"
            yield Suspicion("F-FIXED-ENCODING", node, value.name or "", message)
