"""Pads: into the convolution behind them, or, over channels, an integer form of their own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ptq_core.graph.constants import new_constant
from ptq_core.graph.operators import attribute, constant, dimensions, is_float, key, label, rank
from ptq_core.graph.prepared import Prepared, only_consumer, swap_node


def merge_pads(prepared: Prepared, node: ir.Node) -> None:
    """Move a Pad with zeros over height and width into the convolutions that read it."""
    pads = _zero_pads(node)
    output = node.outputs[0]
    source = node.inputs[0] if node.inputs else None
    if pads is None or source is None or output.is_graph_output() or not output.uses():
        return
    half = len(pads) // 2
    if any(pads[i] or pads[half + i] for i in (0, 1)):
        return
    consumers = [use.node for use in output.uses()]
    for consumer in consumers:
        if (
            consumer.op_type != "Conv"
            or attribute(consumer, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
            or consumer.inputs[0] is not output
        ):
            return
    extra = [*pads[2:half], *pads[half + 2 :]]
    for consumer in consumers:
        own = attribute(consumer, "pads", (0,) * len(extra))
        consumer.attributes["pads"] = ir.AttrInt64s(
            "pads", [a + b for a, b in zip(own, extra, strict=True)]
        )
        consumer.attributes.pop("auto_pad", None)
        prepared.merged[key(consumer)] = (*prepared.merged.get(key(consumer), ()), label(node))
    output.replace_all_uses_with(source)
    prepared.model.graph.remove(node, safe=True)


def _zero_pads(node: ir.Node) -> tuple[int, ...] | None:
    """The amounts of a constant Pad with zeros and nothing cut off, for all axes."""
    if node.op_type != "Pad" or attribute(node, "mode", "constant") != "constant":
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    amounts = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if amounts is None or (amounts < 0).any() or len(amounts) < 6:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        fill = constant(node.inputs[2])
        if fill is None or (fill != 0).any():
            return None
    return tuple(int(amount) for amount in amounts)


def channel_pad_to_convolution(prepared: Prepared, node: ir.Node) -> None:
    """Give a Pad that appends zero channels an integer form: a 1x1 convolution that copies.

    Runtimes have no integer Pad of channels, so a ResNet shortcut made of Slice and Pad would be
    a float island on every block. A convolution whose weights are ones and zeros gives exactly the
    same values, in floats and in integers. A strided Slice over height and width in front of it
    becomes the convolution's stride.
    """
    pads = _zero_pads(node)
    source = node.inputs[0] if node.inputs else None
    if pads is None or source is None or rank(source) != 4 or source.shape is None:
        return
    if not is_float(source):
        return
    half = len(pads) // 2
    channels = source.shape[1]
    others = [pads[i] for i in range(len(pads)) if i % half != 1]
    if any(others) or not isinstance(channels, int) or not (pads[1] or pads[half + 1]):
        return
    strides, sliced, reader = [1, 1], [], node
    while (before := source.producer()) is not None and only_consumer(source) is reader:
        found = _slice_strides(before)
        inner = before.inputs[0]
        if found is None or inner is None:
            break
        strides = [a * b for a, b in zip(strides, found, strict=True)]
        sliced.append(before)
        source, reader = inner, before
    graph, output = prepared.model.graph, node.outputs[0]
    copies = np.zeros((channels + pads[1] + pads[half + 1], channels, 1, 1), np.float32)
    copies[pads[1] + np.arange(channels), np.arange(channels)] = 1.0
    weight = new_constant(graph, f"{output.name}_copies", copies)
    convolution = ir.node("Conv", [source, weight], {"strides": strides}, name=node.name)
    swap_node(prepared, node, convolution)
    if sliced:
        prepared.merged[key(convolution)] = tuple(label(before) for before in sliced)


def _slice_strides(node: ir.Node) -> list[int] | None:
    """The steps over height and width of a Slice that takes everything else whole."""
    if node.op_type != "Slice" or len(node.inputs) < 5 or rank(node.inputs[0]) != 4:
        return None
    starts, ends, axes, steps = (constant(value) for value in node.inputs[1:5])
    if starts is None or ends is None or axes is None or steps is None:
        return None
    strides = [1, 1, 1, 1]
    shape = dimensions(node.inputs[0]) if node.inputs[0] is not None else None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = None if shape is None else shape[int(axis)]
        whole = int(end) >= np.iinfo(np.int32).max or (isinstance(dim, int) and end >= dim)
        if start != 0 or not whole or step < 1:
            return None
        strides[int(axis)] = int(step)
    return strides[2:] if strides[:2] == [1, 1] else None
