"""Guards: what keeps a layer float that a runtime would quantize by itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq_core.arithmetic import QParams
from ptq_core.emission.emitter import Emitter
from ptq_core.graph import operators as ops
from ptq_core.planning import guard_channels

_STEPS = 2**30  # of a bias that guards, from 0 to its largest entry
_SMALLEST = float(np.finfo(np.float32).tiny)  # step that float32 holds


def channel_guard(
    emitter: Emitter, node: ir.Node, codes: ir.Value, params: QParams, name: str
) -> ir.Node:
    """A DequantizeLinear with one, equal, scale per channel: runtimes do not fuse through it."""
    channels, axis = guard_channels(node)
    per_channel = QParams(
        scheme=params.scheme,
        scale=np.full(channels, params.scale),
        zero_point=np.full(channels, params.zero_point),
        axis=axis,
    )
    own = f"{name}_for_{ops.label(node)}"
    scale, zero_point = emitter.scale_and_zero_point(own, per_channel)
    return emitter.dequantize(own, codes, scale, zero_point, axis)


def guard_by_bias(emitter: Emitter, node: ir.Node) -> None:
    """An int32 bias instead, with steps of less than float32's own: layers that have one are kept.

    For a layer with one input channel, whose scales are a vector of one entry: to runtimes that is
    one scale. It costs the layer its fastest float kernel.
    """
    position = ops.LINEAR[node.op_type].bias
    if position is None:
        return
    given = node.inputs[position] if len(node.inputs) > position else None
    bias = np.zeros(_outputs(node), np.float32) if given is None else ops.constant(given)
    if bias is None or not np.isfinite(bias).all():
        return  # computed while running: runtimes leave such a layer alone
    largest = float(np.abs(bias).max(initial=0.0))
    scale = max(largest / _STEPS, _SMALLEST) if largest else 1.0
    codes = np.rint(np.asarray(bias, np.float64) / scale).astype(np.int32)
    name = f"{ops.label(node)}_bias" if given is None else given.name or ""
    value = emitter.bias(f"{name}_guard", codes, np.asarray(scale, np.float32))
    node.resize_inputs(max(position + 1, len(node.inputs)))
    node.replace_input_with(position, value)


def _outputs(node: ir.Node) -> int:
    """How many output channels a layer has."""
    weight = ops.constant(node.inputs[ops.LINEAR[node.op_type].weight])
    if weight is None:
        raise AssertionError(f"the weights of '{ops.label(node)}' are no constant")
    groups = int(ops.attribute(node, "group", 1)) if ops.shares_channels(node) else 1
    return int(weight.shape[ops.channel_axis(node, weight.ndim)]) * groups
