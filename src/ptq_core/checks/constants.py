"""Rules on weights and biases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.checks.coded import Coded, unlike
from ptq_core.checks.subject import QUANTIZE, Subject, readers, type_of
from ptq_core.checks.suspicion import Suspicion
from ptq_core.graph import operators as ops

_INTEGER = frozenset({"ConvInteger", "MatMulInteger"})  # with activations quantized while running
_BIAS_TOLERANCE = 1e-5  # relative; float32 products of two scales differ by less
_HALF_TOLERANCE = 1e-2  # of scales stored as float16, which are that coarse below 6e-5
_BITS = 8
_FEW_CODES = 16  # of 127: less than four bits and the sign
_FEW_WEIGHTS = 8  # in a channel
_NOTEWORTHY = 0.05  # of the channels


def check_weights(subject: Subject) -> Iterator[Suspicion]:
    """W-*, but for layers in float."""
    for node in subject.nodes:
        for position in ops.weight_positions(node) if node.op_type in ops.LINEAR else ():
            weight = subject.source(node.inputs[position])
            if weight is not None and weight.role == "weight":
                computes = subject.activation(node.inputs[1 - position]) is not None
                yield from _codes(subject, node, weight, computes=computes)
                yield from _scales(subject, node, weight, position, computes=computes)
        codes = node.inputs[1] if node.op_type in _INTEGER and ops.is_standard(node) else None
        if codes is not None and subject.is_static(codes):
            yield from _type(subject, node, type_of(codes), codes.name or "")
    for coded in subject.all_coded():
        if coded.role == "weight" and coded.node.op_type.startswith("QLinear"):
            yield from _codes(subject, coded.node, coded, computes=True)


def _type(subject: Subject, node: ir.Node, dtype: str, tensor: str) -> Iterator[Suspicion]:
    """W-DTYPE."""
    accepted = subject.spec.accepts.weights
    if dtype and dtype not in accepted:
        message = f"the codes of the weights are {dtype}, expected {' or '.join(accepted)}"
        yield Suspicion("W-DTYPE", node, tensor, message)


def _codes(
    subject: Subject, node: ir.Node, weight: Coded, *, computes: bool
) -> Iterator[Suspicion]:
    """The type and the zero points; ``computes``: with integer activations."""
    if computes:
        yield from _type(subject, node, weight.dtype, weight.tensor)
    zeros = weight.zero_point
    if zeros is not None and (zeros != weight.middle).any():
        found = unlike(zeros, zeros != weight.middle, "zero point")
        message = f"of the weights {found}, expected {weight.middle} for {weight.dtype}"
        apart = weight.per_axis and "W-ASYM-PER-CHANNEL" in subject.spec.checks
        code = "W-ASYM-PER-CHANNEL" if apart else "W-ASYM"
        yield Suspicion(code, node, weight.tensor, message)


def _scales(
    subject: Subject, node: ir.Node, weight: Coded, position: int, *, computes: bool
) -> Iterator[Suspicion]:
    """How many there are, and along which axis; a layer in float multiplies by any."""
    if weight.scale is None:
        return
    rule = subject.rule(node)
    if not weight.per_axis:
        if rule is not None and rule.per_channel:
            yield from _small_channels(node, weight, position)
        return
    if not computes:
        return
    if rule is not None and not rule.per_channel:
        message = f"the weights have {weight.scale.size} scales, expected one for {node.op_type}"
        yield Suspicion("W-PER-CHANNEL-NOT-ALLOWED", node, weight.tensor, message)
    rank = _rank_of_codes(weight)
    if rank is None or weight.node.outputs[0] is not node.inputs[position]:
        return  # behind a Transpose the axis is another one
    right = tuple(axis % rank for axis in _output_axes(node, position, rank))
    if weight.scale.ndim > 1:
        message = f"the scales are of blocks, shape {list(weight.scale.shape)}"
    elif weight.axis % rank not in right:
        message = f"the scales are along axis {weight.axis % rank}"
    else:
        return
    message += f", expected a vector along the output channels (axis {right[0]})"
    yield Suspicion("W-AXIS", node, weight.tensor, message)


def _small_channels(node: ir.Node, weight: Coded, position: int) -> Iterator[Suspicion]:
    """W-ONE-SCALE: channels that have few of the codes, as others are much larger."""
    behind = weight.node.outputs[0] is node.inputs[position]
    rank = _rank_of_codes(weight)
    if not behind or rank is None or ops.shares_channels(node) or weight.bits != _BITS:
        return
    axes = _output_axes(node, position, rank)
    largest = _largest_codes(weight, axes[0]) if len(axes) == 1 else None
    if largest is None:
        return
    small = (largest > 0) & (largest < _FEW_CODES)
    if small.sum() < _NOTEWORTHY * largest.size or not small.any():
        return
    least = int(np.argmin(np.where(small, largest, np.inf)))
    message = (
        f"one scale for {largest.size} channels: {int(small.sum())} of them use codes up to "
        f"{_FEW_CODES - 1} at most, channel {least} up to {largest[least]:.0f}, expected a scale "
        "for each channel"
    )
    yield Suspicion("W-ONE-SCALE", node, weight.tensor, message)


def _largest_codes(weight: Coded, axis: int) -> NDArray[np.float64] | None:
    """The largest code of each channel, less the zero point; None where there is little to tell.

    Of weights that are quantized while the model is loaded, too.
    """
    source, scale, zero = weight.node.inputs[0], 1.0, 0.0
    array = ops.constant(source)
    if array is not None:
        zero = 0.0 if weight.zero_point is None else float(weight.zero_point.flat[0])
    else:
        encode = None if source is None else source.producer()
        if encode is None or encode.op_type != QUANTIZE or weight.scale is None:
            return None
        array, scale = ops.constant(encode.inputs[0]), float(weight.scale.flat[0])
    if array is None or array.size < max(1, _FEW_WEIGHTS * array.shape[axis]):
        return None  # of a few weights all may happen to be small
    others = tuple(index for index in range(array.ndim) if index != axis % array.ndim)
    ends = (array.min(axis=others), array.max(axis=others))
    low, high = (np.abs(np.rint(end.astype(np.float64) / scale) - zero) for end in ends)
    return np.asarray(np.maximum(low, high))


def _output_axes(node: ir.Node, position: int, rank: int) -> tuple[int, ...]:
    if position == ops.LINEAR[node.op_type].weight:
        return (ops.channel_axis(node, rank),)
    return ops.channel_axes(node, position, rank)


def _rank_of_codes(weight: Coded) -> int | None:
    for value in (weight.node.inputs[0], weight.node.outputs[0]):
        rank = ops.rank(value)
        if rank is None and value is not None and value.const_value is not None:
            rank = len(ops.static_shape(value))
        if rank:
            return rank
    return None


def check_biases(subject: Subject) -> Iterator[Suspicion]:
    """B-*: of layers whose weights are integers."""
    for node in subject.nodes:
        if not ops.is_standard(node) or node.op_type not in ops.LINEAR or len(node.inputs) < 2:
            continue
        weight = subject.source(node.inputs[1])
        bias = subject.source(subject.bias(node))
        if weight is None or weight.role != "weight" or bias is None or bias.role == "activation":
            continue
        if bias.dtype != "int32":
            message = f"the bias is {bias.dtype or 'of another type'}, expected int32 or float"
            yield Suspicion("B-QUANTISED", node, bias.tensor, message)
            continue
        if "int32" not in subject.spec.accepts.biases:
            message = "the bias is int32 behind a DequantizeLinear, expected float"
            yield Suspicion("B-INT32-BIAS-DQ", node, bias.tensor, message)
        if bias.per_axis and weight.scale is not None and not weight.per_axis:
            count = 0 if bias.scale is None else bias.scale.size
            message = f"the bias has {count} scales and the weights one, expected as many"
            yield Suspicion("B-SCALE-SHAPE", node, bias.tensor, message)
        if subject.is_integer(node):
            yield from _bias_scale(subject, node, weight, bias)


def _bias_scale(subject: Subject, node: ir.Node, weight: Coded, bias: Coded) -> Iterator[Suspicion]:
    data = subject.activation(node.inputs[0])
    if data is None or data.scale is None or weight.scale is None or bias.scale is None:
        return
    if data.per_axis or weight.scale.ndim > 1:
        return
    expected, found = data.scale.reshape(-1) * weight.scale.reshape(-1), bias.scale.reshape(-1)
    if 1 not in (expected.size, found.size) and expected.size != found.size:
        message = f"the bias has {found.size} scales, expected {expected.size}, as the weights"
        yield Suspicion("B-SCALE", node, bias.tensor, message)
        return
    expected, found = np.broadcast_arrays(expected, found)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(found / expected - 1)
    half = bias.scale_type == "float16"
    wrong = ~(error <= (_HALF_TOLERANCE if half else _BIAS_TOLERANCE))
    if wrong.any():
        worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
        message = (
            f"the scale of the bias is {found[worst]:.6g} in channel {worst}, expected s_x * s_w = "
            f"{expected[worst]:.6g}; so in {int(wrong.sum())} of {wrong.size} channels"
        )
        yield Suspicion("B-SCALE", node, bias.tensor, message)


def check_skipped(subject: Subject) -> Iterator[Suspicion]:
    """W-SKIP-UNGUARDED: float layers between integers that a runtime quantizes by itself."""
    if subject.spec.skip_guard == "none":
        return
    for node in subject.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not ops.is_standard(node):
            continue
        in_float = subject.is_float_constant(node.inputs[1])
        before = subject.activation(node.inputs[0])
        if not in_float or before is None or before.per_axis or _bias_guards(subject, node):
            continue
        if _ends_in_quantize(subject, node):
            message = (
                f"its weights are float, between '{ops.label(before.node)}' and a QuantizeLinear, "
                "without a guard"
            )
            yield Suspicion("W-SKIP-UNGUARDED", node, node.outputs[0].name or "", message)


def _bias_guards(subject: Subject, node: ir.Node) -> bool:
    value = subject.bias(node)
    bias = subject.source(value)
    if bias is not None and bias.dtype == "int32":
        return True
    array = ops.constant(value)
    return node.op_type == "Gemm" and array is not None and array.ndim != 1


def _ends_in_quantize(subject: Subject, node: ir.Node) -> bool:
    """Whether a QuantizeLinear follows, behind activations and data movers, and nobody else reads.

    That a value is an output of the model, too, does not keep onnxruntime from it.
    """
    value = node.outputs[0]
    while True:
        found = readers(value)
        follower = found[0] if len(found) == 1 else None
        if follower is None or not ops.is_standard(follower) or follower.inputs[0] is not value:
            return False
        if follower.op_type == QUANTIZE:
            return True
        rule = subject.rule(follower)
        moves = rule is not None and rule.same_parameters
        if follower.op_type not in ("Relu", "Clip") and not moves:
            return False
        value = follower.outputs[0]
