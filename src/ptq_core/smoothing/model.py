"""Divide an activation's channels, and multiply the weights that read it, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.errors import ModelError
from ptq_core.graph import operators as ops
from ptq_core.graph.constants import new_constant
from ptq_core.graph.names import Names
from ptq_core.smoothing.groups import Group, find_fold

Array = NDArray[np.float64]


def smooth(
    model: ir.Model, groups: Sequence[Group], divisors: Mapping[str, Array]
) -> dict[str, str]:
    """Smooth activations of a prepared model, in place; it computes the same, up to rounding.

    Args:
        model: the model that the groups were found in, or a copy.
        groups: of this model.
        divisors: of each channel, positive, by the name of the activation.

    Returns:
        What the layers read then, by the name of the activation: itself, or what a Mul makes.

    Raises:
        ModelError: a divisor belongs to another model.
    """
    known = {group.source: group for group in groups}
    for name, divisor in divisors.items():
        found = known[name].channels if name in known else "none"
        if found != len(divisor):
            raise ModelError(
                f"the stored smoothing belongs to another model: '{name}' has {found} channels, "
                f"stored are {len(divisor)}",
                hint="calibrate this model again",
            )
        if not (np.isfinite(divisor).all() and (divisor > 0).all()):
            raise ModelError(
                f"the stored smoothing of '{name}' cannot be used: expected positive numbers",
                hint="calibrate this model again",
            )
    names = Names(model)
    nodes = {ops.key(node): node for node in model.graph}
    read: dict[str, str] = {}
    for name, divisor in divisors.items():
        group = known[name]
        layers = [nodes[layer.key] for layer in group.layers]
        _multiply_weights(model.graph, group, layers, divisor, names)
        data = layers[0].inputs[0]
        if data is None:
            raise AssertionError(f"'{group.layers[0].key}' has no input")
        fold = find_fold(data, set(layers), group.channels)
        if fold is None:
            data = _divided(model.graph, data, layers, divisor, names)
        for part in fold or ():
            _rescale(model.graph, part.node, part.position, part.axis, 1.0 / divisor, names)
        read[name] = data.name or ""
    return read


def _multiply_weights(
    graph: ir.Graph, group: Group, layers: Sequence[ir.Node], divisor: Array, names: Names
) -> None:
    # weights that several layers of the group share; a square one may be read both ways
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for node, layer in zip(layers, group.layers, strict=True):
        weight = node.inputs[1]
        if weight is None:
            raise AssertionError(f"'{layer.key}' has no weights")
        if (weight, layer.axis) in made:
            node.replace_input_with(1, made[weight, layer.axis])
            continue
        shared = [
            other for other, its in zip(layers, group.layers, strict=True) if its.axis == layer.axis
        ]
        made[weight, layer.axis] = _rescale(
            graph, node, 1, layer.axis, divisor, names, shared=shared
        )


def _rescale(
    graph: ir.Graph,
    node: ir.Node,
    position: int,
    axis: int,
    factor: Array,
    names: Names,
    *,
    shared: Sequence[ir.Node] = (),
) -> ir.Value:
    """Multiply a constant along an axis; others that read it, but for ``shared``, keep theirs."""
    value = node.inputs[position]
    array = ops.constant(value)
    if value is None or array is None:
        raise AssertionError(f"input {position} of '{ops.label(node)}' is no constant")
    shape = [1] * array.ndim
    shape[axis] = -1
    scaled = np.asarray(array * factor.reshape(shape), np.float32)
    others = [use for use in value.uses() if use.node is not node and use.node not in shared]
    twice = sum(use.node is node for use in value.uses()) > 1
    if not others and not twice and not value.is_graph_output():
        value.const_value = ir.tensor(scaled, name=value.name)
        return value
    made = new_constant(graph, names.free(f"{value.name}_smoothed"), scaled)
    node.replace_input_with(position, made)
    return made


def _divided(
    graph: ir.Graph, data: ir.Value, layers: Sequence[ir.Node], divisor: Array, names: Names
) -> ir.Value:
    """What a Mul makes of the activation, for these layers alone."""
    name = data.name or ""
    factor = new_constant(
        graph, names.free(f"{name}_smoothing"), np.asarray(1.0 / divisor, np.float32)
    )
    node = ir.node("Mul", [data, factor], name=names.free(f"{name}_smooth"))
    result = node.outputs[0]
    result.name, result.shape, result.type = names.free(f"{name}_smoothed"), data.shape, data.type
    graph.insert_before(layers[0], node)
    for layer in layers:
        layer.replace_input_with(0, result)
    return result
