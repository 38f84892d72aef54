"""Constants: make initializers, and replace what computes with constants only by its result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph.operators import attribute, constant, has_subgraph, is_standard
from ptq_core.graph.prepared import Prepared

# Folding a constant must not make the file much larger (a ConstantOfShape of a whole picture).
_LARGEST_FOLDED = 1 << 20

_LARGE = 1024  # elements of a constant that is not worth having twice

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
     "Bernoulli"}
)  # fmt: skip


def new_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add an initializer; a name that is taken gets a number behind it."""
    unique, count = name, 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}_{count}"
    value = ir.Value(
        name=unique,
        const_value=ir.tensor(array, name=unique),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    graph.register_initializer(value)
    return value


def fold_constants(prepared: Prepared, *, keep_shared: bool = False) -> bool:
    """Replace nodes that compute with constants only by their results.

    Args:
        prepared: the model.
        keep_shared: not where a large constant has other readers, which would keep it in the file
            beside the result.
    """
    graph = prepared.model.graph
    opset = graph.opset_imports.get("", 1)
    folded = False
    for node in list(graph):
        if (
            not is_standard(node)
            or has_subgraph(node)
            or node.op_type in _RANDOM
            or _used_as_output(node)
            or (keep_shared and _reads_shared(node))
        ):
            continue
        results = _static_shape(node) or _computed(node, opset)
        if results is None:
            continue
        for output, array in zip(node.outputs, results, strict=False):
            name = output.name or ""
            output.name = f"{name}_folded"
            output.replace_all_uses_with(new_constant(graph, name, array))
        graph.remove(node, safe=True)
        prepared.removed[node.name or ""] = "computes with constants only; its result is stored"
        folded = True
    return folded


def _reads_shared(node: ir.Node) -> bool:
    return any(
        value is not None
        and value.const_value is not None
        and value.const_value.size > _LARGE
        and len({use.node for use in value.uses()}) > 1
        for value in node.inputs
    )


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
    from onnx.reference import ReferenceEvaluator  # 12 MB that most models do not need

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
