"""Bring a model into the form that quantizes well, without changing what it computes.

The passes keep the names that users see: a node that takes in another one (a convolution its
BatchNormalization) remembers the other's name, and what is removed is listed with the reason.
Bodies of If, Loop and Scan and the model's functions stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ptq_core.errors import ModelError
from ptq_core.graph import folding
from ptq_core.graph.constants import fold_constants, new_constant
from ptq_core.graph.merging import MERGED_SINCE, merge_operators
from ptq_core.graph.operators import (
    attribute,
    constant,
    dimensions,
    is_float,
    is_standard,
    key,
    label,
    rank,
)
from ptq_core.graph.opset import raise_opset
from ptq_core.graph.pads import channel_pad_to_convolution, merge_pads
from ptq_core.graph.prepared import Prepared, merge_into, only_consumer, replace_node, swap_node


def prepare(
    model: ir.Model, minimum_opset: int, *, integers: bool = True, merge: Collection[str] = ()
) -> Prepared:
    """Prepare the model in place, and say what was done.

    Args:
        model: a float model; ownership passes to the result.
        minimum_opset: the opset that the emitted operators need; an older model is upgraded.
        integers: the model will compute in integers; otherwise what only integer kernels profit
            from is left out, and a constant that others read, too, is not folded into a second one.

        merge: operators that are put together from the several that exporters write for them.

    Raises:
        ModelError: an upgrade of the opset is needed and fails.
    """
    prepared = Prepared(model=model)
    _use_short_domain(model)
    model.graph.sort()
    _name_nodes(model, {})
    _widen_half(prepared)
    common.RemoveInitializersFromInputsPass()(prepared.model)
    names = {key(node): label(node) for node in prepared.model.graph}
    prepared.model, note = _raise_opset(prepared.model, minimum_opset, merge)
    prepared.notes += note
    _name_nodes(prepared.model, names)  # the upgrade drops the names of what it replaces
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(prepared.model)
    _infer_shapes(prepared)
    _remove_pass_through(prepared)
    # a folded Shape can make further ones constant
    while fold_constants(prepared, keep_shared=not integers):
        _infer_shapes(prepared)
    if merge:
        merge_operators(prepared, merge)
    for_integers = (_mean_to_pool, channel_pad_to_convolution) if integers else ()
    for rewrite in (_fold_affine, merge_pads, *for_integers):
        _each_node(prepared, rewrite)
    common.RemoveUnusedNodesPass()(prepared.model)
    _forget_unknown_shapes(prepared.model.graph)
    _infer_shapes(prepared)
    return prepared


def _raise_opset(
    model: ir.Model, minimum: int, merge: Collection[str]
) -> tuple[ir.Model, list[str]]:
    """To what the operators that are put together need, if that can be done; else as demanded."""
    wanted = max([minimum, *(MERGED_SINCE[name] for name in merge)])
    try:
        return raise_opset(model, wanted)
    except ModelError:
        return raise_opset(model, minimum)


def _use_short_domain(model: ir.Model) -> None:
    """ONNX's own domain has two names, "" and "ai.onnx"; ask for the opset of the former only."""
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""


def _name_nodes(model: ir.Model, known: Mapping[str, str]) -> None:
    """Give nodes without a name that of their first output, which is how users address them.

    Or the ``known`` one of that output. Runtimes refuse two nodes of one name.
    """
    taken = {node.name for node in model.graph if node.name}
    for node in model.graph:
        if not node.name:
            wanted = known.get(key(node), key(node))
            node.name = wanted if wanted not in taken else f"{wanted}_{node.op_type}"
            taken.add(node.name)


def _each_node(prepared: Prepared, rewrite: Callable[[Prepared, ir.Node], object]) -> None:
    for node in list(prepared.model.graph):
        if node.graph is not None and is_standard(node):  # not removed by an earlier rewrite
            rewrite(prepared, node)


def _infer_shapes(prepared: Prepared) -> None:
    try:
        common.ShapeInferencePass()(prepared.model)
    except Exception as error:  # noqa: BLE001 - inference is a help, the model may still run
        prepared.notes.append(f"shape inference failed, shapes stay as the file has them: {error}")


def _forget_unknown_shapes(graph: ir.Graph) -> None:
    """Drop shapes in which inference invented a symbol; rewritten nodes may now tell the real one.

    The batch axis is recognised by its symbol, which such a shape would hide downstream.
    """
    ends = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            dims = dimensions(value) or ()
            if value not in ends and any(str(dim).startswith("unk__") for dim in dims):
                value.shape = None


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
    prepared.widened = found
    if found:
        prepared.notes.append(
            "the model is float16; it was widened to float32, its inputs and outputs included"
        )


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


def _fold_affine(prepared: Prepared, node: ir.Node) -> None:
    """Fold BatchNormalization, and constant per-channel Add/Sub/Mul/Div, into the layer before."""
    data = next((v for v in node.inputs if v is not None and constant(v) is None), None)
    layer = None if data is None else data.producer()
    if data is None or layer is None or only_consumer(data) is not node or not is_standard(layer):
        return
    affine = folding.affine_of(node, data)
    if affine is not None and folding.fold(prepared.model.graph, layer, *affine):
        merge_into(prepared, node, layer, f"folded into '{label(layer)}'")


def _mean_to_pool(prepared: Prepared, node: ir.Node) -> None:
    """ReduceMean over height and width is GlobalAveragePool, which has integer kernels."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "ReduceMean" or source is None or rank(source) != 4:
        return
    if not is_float(source):
        return
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
    if axes is None or sorted(int(axis) % 4 for axis in np.atleast_1d(axes)) != [2, 3]:
        return
    graph, output = prepared.model.graph, node.outputs[0]
    keep = bool(attribute(node, "keepdims", 1))
    pool = ir.node("GlobalAveragePool", [source], name=node.name)
    if keep:
        swap_node(prepared, node, pool)
        return
    graph.insert_before(node, pool)
    pool.outputs[0].name = f"{output.name}_pooled"
    axes_value = new_constant(graph, f"{output.name}_axes", np.array([2, 3], np.int64))
    swap_node(prepared, node, ir.node("Squeeze", [pool.outputs[0], axes_value]))
