"""Bring a model into the form that quantizes well, without changing what it computes.

The passes keep the names that users see: a node that takes in another one (a convolution its
BatchNormalization) remembers the other's name, and what is removed is listed with the reason.
Bodies of If, Loop and Scan and the model's functions stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from ptq_core.graph import folding
from ptq_core.graph.constants import new_constant
from ptq_core.graph.operators import (
    attribute,
    constant,
    dimensions,
    has_subgraph,
    is_standard,
    key,
    label,
    rank,
)
from ptq_core.graph.opset import raise_opset

# Folding a constant must not make the file much larger (a ConstantOfShape of a whole picture).
_LARGEST_FOLDED = 1 << 20

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli"}
)  # fmt: skip


@dataclass(kw_only=True)
class Prepared:
    """A prepared model and what was done to it."""

    model: ir.Model
    notes: list[str] = field(default_factory=list)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)  # node key -> names taken in
    removed: dict[str, str] = field(default_factory=dict)  # name -> why it is gone

    def names(self, node: ir.Node) -> tuple[str, ...]:
        """Every name by which users may address the node."""
        return (label(node), key(node), *self.merged.get(key(node), ()))


def prepare(model: ir.Model, minimum_opset: int) -> Prepared:
    """Prepare the model in place, and say what was done.

    Args:
        model: a float model; ownership passes to the result.
        minimum_opset: the opset that the emitted operators need; an older model is upgraded.

    Raises:
        ModelError: an upgrade of the opset is needed and fails.
    """
    prepared = Prepared(model=model)
    model.graph.sort()
    _name_nodes(model)
    _widen_half(prepared)
    common.RemoveInitializersFromInputsPass()(prepared.model)
    prepared.model, note = raise_opset(prepared.model, minimum_opset)
    prepared.notes += note
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(prepared.model)
    _infer_shapes(prepared)
    _remove_pass_through(prepared)
    while _fold_constants(prepared):  # a folded Shape can make further ones constant
        _infer_shapes(prepared)
    for rewrite in (
        _fold_affine,
        _merge_pads,
        _mean_to_pool,
        _channel_pad_to_convolution,
    ):
        _each_node(prepared, rewrite)
    common.RemoveUnusedNodesPass()(prepared.model)
    _infer_shapes(prepared)
    return prepared


def _name_nodes(model: ir.Model) -> None:
    """Give nodes without a name that of their first output, which is how users address them."""
    for node in model.graph:
        node.name = label(node)


def _each_node(prepared: Prepared, rewrite: Callable[[Prepared, ir.Node], object]) -> None:
    for node in list(prepared.model.graph):
        if node.graph is not None and is_standard(node):  # not removed by an earlier rewrite
            rewrite(prepared, node)


def _infer_shapes(prepared: Prepared) -> None:
    try:
        common.ShapeInferencePass()(prepared.model)
    except Exception as error:  # noqa: BLE001 - inference is a help, the model may still run
        prepared.notes.append(f"shape inference failed, shapes stay as the file has them: {error}")


def _widen_half(prepared: Prepared) -> None:
    """Turn every float16 tensor, type and Cast into float32."""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    found = False
    for graph in prepared.model.graphs():
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            values += node.outputs
            to = node.attributes.get("to")
            if node.op_type == "Cast" and to is not None and to.value == half:
                node.attributes["to"] = ir.AttrInt64("to", single)
            for name, attr in list(node.attributes.items()):
                if attr.type == ir.AttributeType.TENSOR and attr.value.dtype == half:
                    wide = ir.tensor(attr.value.numpy().astype(np.float32), name=attr.value.name)
                    node.attributes[name] = ir.AttrTensor(name, wide)
        for value in values:
            if value.const_value is not None and value.const_value.dtype == half:
                wide_array = value.const_value.numpy().astype(np.float32)
                value.const_value = ir.tensor(wide_array, name=value.name)
            if value.dtype == half:
                value.dtype = single
                found = True
    if found:
        prepared.notes.append(
            "the model is float16; it was widened to float32, its inputs and outputs included"
        )


def replace_node(prepared: Prepared, node: ir.Node, value: ir.Value, why: str) -> None:
    """Take a node out: its (only) output becomes ``value``, which takes over the output's name."""
    graph = prepared.model.graph
    output = node.outputs[0]
    keeps_name = value.is_initializer() or value.is_graph_input() or value.is_graph_output()
    if output.is_graph_output() and keeps_name:
        return  # two names for one tensor need the node
    name = output.name
    producer = value.producer()
    renamed_from = None if producer is None else key(producer)
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    prepared.removed[label(node)] = why
    if not keeps_name:
        output.name = f"{name}_removed"
        value.shape = value.shape or output.shape
        value.type = value.type or output.type
        value.name = name
        _rename_key(prepared, renamed_from, name)


def _rename_key(prepared: Prepared, old: str | None, new: str | None) -> None:
    if old in prepared.merged and new is not None and old is not None:
        prepared.merged[new] = prepared.merged.pop(old)


def merge_into(prepared: Prepared, node: ir.Node, into: ir.Node, why: str) -> None:
    """Take out ``node``, whose work ``into`` now does; ``into`` answers to its name as well."""
    names = (*prepared.merged.pop(key(into), ()), *prepared.merged.pop(key(node), ()), label(node))
    replace_node(prepared, node, into.outputs[0], why)
    prepared.removed.pop(label(node), None)
    prepared.merged[key(into)] = names


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value, if the value is no graph output."""
    consumers = {use.node for use in value.uses()}
    if len(consumers) != 1 or value.is_graph_output():
        return None
    return next(iter(consumers))


def _remove_pass_through(prepared: Prepared) -> None:
    for node in list(prepared.model.graph):
        idle = node.op_type == "Identity" or (
            node.op_type == "Dropout" and not _trains(node) and not _used(node.outputs[1:])
        )
        source = node.inputs[0] if node.inputs else None
        if idle and is_standard(node) and source is not None:
            replace_node(prepared, node, source, f"{node.op_type} does nothing in inference")


def _trains(node: ir.Node) -> bool:
    mode = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return len(node.inputs) > 2 and node.inputs[2] is not None and (mode is None or bool(mode))


def _used(values: Any) -> bool:
    return any(value.uses() or value.is_graph_output() for value in values)


def _fold_constants(prepared: Prepared) -> bool:
    """Replace nodes that compute with constants only by their results."""
    graph = prepared.model.graph
    opset = graph.opset_imports.get("", 1)
    folded = False
    for node in list(graph):
        if (
            not is_standard(node)
            or has_subgraph(node)
            or node.op_type in _RANDOM
            or _used_as_output(node)
        ):
            continue
        results = _static_shape(node) or _computed(node, opset)
        if results is None:
            continue
        for output, array in zip(node.outputs, results, strict=False):
            value = ir.Value(
                name=output.name,
                const_value=ir.tensor(array, name=output.name),
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
            output.replace_all_uses_with(value)
            output.name = f"{output.name}_folded"
            graph.register_initializer(value)
        graph.remove(node, safe=True)
        prepared.removed[node.name or ""] = "computes with constants only; its result is stored"
        folded = True
    return folded


def _used_as_output(node: ir.Node) -> bool:
    return any(output.is_graph_output() for output in node.outputs)


def _static_shape(node: ir.Node) -> list[NDArray[Any]] | None:
    source = node.inputs[0] if node.op_type == "Shape" else None
    if source is None or source.shape is None or not source.shape.is_static():
        return None
    first, last = attribute(node, "start", 0), attribute(node, "end", None)
    return [np.asarray(source.shape.numpy(), np.int64)[first:last]]


def _computed(node: ir.Node, opset: int) -> list[NDArray[Any]] | None:
    arrays = {}
    for value in node.inputs:
        if value is None:
            continue
        array = constant(value)
        if array is None or value.name is None:
            return None
        arrays[value.name] = array
    if node.op_type == "ConstantOfShape" or sum(a.nbytes for a in arrays.values()) == 0:
        size = int(np.prod(next(iter(arrays.values()), np.zeros(0)), dtype=np.float64))
        if node.op_type != "ConstantOfShape" or size * 8 > _LARGEST_FOLDED:
            return None
    proto = ir.to_proto(node)
    graph = onnx.helper.make_graph(
        [proto],
        "one_node",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in arrays],
        [onnx.helper.make_value_info(out.name or "", onnx.TypeProto()) for out in node.outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        results = ReferenceEvaluator(model).run(None, arrays)
    except Exception:  # noqa: BLE001 - what cannot be evaluated stays in the graph
        return None
    given = sum(array.nbytes for array in arrays.values())
    if not all(isinstance(array, np.ndarray | np.generic) for array in results):
        return None
    made = [np.asarray(array) for array in results]
    if sum(array.nbytes for array in made) > max(_LARGEST_FOLDED, given):
        return None
    return made


def _fold_affine(prepared: Prepared, node: ir.Node) -> None:
    """Fold BatchNormalization, and constant per-channel Add/Sub/Mul/Div, into the layer before."""
    data = next((v for v in node.inputs if v is not None and constant(v) is None), None)
    layer = None if data is None else data.producer()
    if data is None or layer is None or only_consumer(data) is not node or not is_standard(layer):
        return
    affine = folding.affine_of(node, data)
    if affine is not None and folding.fold(prepared.model.graph, layer, *affine):
        merge_into(prepared, node, layer, f"folded into '{label(layer)}'")


def _merge_pads(prepared: Prepared, node: ir.Node) -> None:
    """Move a Pad with zeros over height and width into the convolutions that read it."""
    pads = _zero_pads(node)
    output = node.outputs[0]
    source = node.inputs[0]
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


def _mean_to_pool(prepared: Prepared, node: ir.Node) -> None:
    """ReduceMean over height and width is GlobalAveragePool, which has integer kernels."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "ReduceMean" or source is None or rank(source) != 4:
        return
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
    if axes is None or sorted(int(axis) % 4 for axis in np.atleast_1d(axes)) != [2, 3]:
        return
    graph, output = prepared.model.graph, node.outputs[0]
    keep = bool(attribute(node, "keepdims", 1))
    pool = ir.node("GlobalAveragePool", [source], name=node.name)
    graph.insert_before(node, pool)
    if keep:
        replace_node(prepared, node, pool.outputs[0], "")
    else:
        pool.outputs[0].name = f"{output.name}_pooled"
        axes_value = new_constant(graph, f"{output.name}_axes", np.array([2, 3], np.int64))
        squeeze = ir.node("Squeeze", [pool.outputs[0], axes_value])
        graph.insert_before(node, squeeze)
        replace_node(prepared, node, squeeze.outputs[0], "")
    prepared.removed.pop(label(pool), None)


def _channel_pad_to_convolution(prepared: Prepared, node: ir.Node) -> None:
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
    graph.insert_before(node, convolution)
    replace_node(prepared, node, convolution.outputs[0], "")
    prepared.removed.pop(label(convolution), None)
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
