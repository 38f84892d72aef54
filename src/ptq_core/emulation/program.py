"""From a quantized model to the steps that a device takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from ptq_core.emulation.layers import Layers
from ptq_core.emulation.nodes import FloatNodes
from ptq_core.emulation.parameters import Parameters
from ptq_core.emulation.steps import (
    Decode,
    Encode,
    Float,
    Layer,
    Program,
    Step,
    Watched,
    makes,
    node_reads,
    reads,
)
from ptq_core.graph import operators as ops

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
     "Multinomial"}
)  # fmt: skip


def simplified(model: ir.Model) -> ir.Model:
    """The model, in place, as programs are made of it: no functions, constants as initializers."""
    if model.functions:
        common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.graph.sort()
    return model


def make_program(model: ir.Model, nodes: FloatNodes) -> Program:
    """Find the layers of a quantized model, and what is constant.

    Args:
        model: as :func:`simplified` leaves it; it is not changed.
        nodes: compute what follows from constants alone.
    """
    graph = model.graph
    parameters = Parameters(graph)
    outputs = tuple(value.name or "" for value in graph.outputs)
    needed, kept = set(outputs), []
    for step in reversed(list(_steps(graph, parameters, nodes))):
        if needed.intersection(makes(step)):
            kept.append(step)
            needed.update(reads(step))
    constants = {name: one for name, one in parameters.constants.items() if name in needed}
    steps: list[Step] = []
    for step in reversed(kept):
        if isinstance(step, Decode) and step.quantized.codes in constants:
            # weights of what is float are dequantized once
            constants[step.output] = step.quantized.decoded(constants[step.quantized.codes])
        else:
            steps.append(step)
    return Program(
        steps=tuple(steps),
        constants=constants,
        outputs=outputs,
        watched=tuple(_watched(steps, outputs)),
    )


def _steps(graph: ir.Graph, parameters: Parameters, float_nodes: FloatNodes) -> Iterator[Step]:
    """Every step, in an order in which they can be taken."""
    folded = {node for node in graph if _fold(node, parameters, float_nodes)}
    decodes = {node: one for node in graph if (one := parameters.decode(node)) is not None}
    decoded = {one.output: one.quantized for one in decodes.values()}
    layers = Layers(graph, parameters, decoded)
    ends: dict[ir.Node, Layer] = {}  # a layer is computed where its last node is
    merged: set[ir.Node] = set()
    for node in graph:
        if node in ends:
            yield ends[node]
            continue
        if node in decodes:
            yield decodes[node]
            continue
        if node in merged or node in folded:
            continue
        found = layers.find(node)
        if found is None:
            yield parameters.encode(node) or Float(node=node)
            continue
        layer, nodes = found
        if nodes[-1] is node:
            yield layer
        ends[nodes[-1]] = layer
        merged.update(nodes)


def _fold(node: ir.Node, parameters: Parameters, float_nodes: FloatNodes) -> bool:
    """Compute a node of constants; weights stay integers."""
    if node.op_type in _RANDOM or ops.has_subgraph(node) or parameters.decode(node) is not None:
        return False
    constants = parameters.constants
    if any(name not in constants for name in node_reads(node)):
        return False
    constants.update(float_nodes(node, constants, constants))
    return True


def _watched(steps: Iterable[Step], outputs: Sequence[str]) -> Iterator[Watched]:
    reals = {one.quantized.codes: one.output for one in steps if isinstance(one, Decode)}
    seen = set()
    for step in steps:
        if isinstance(step, Encode):
            source, quantized = step.source, step.quantized
        elif isinstance(step, Layer) and step.result is not None:
            source, quantized = step.output, step.result
        else:
            continue
        # an output's codes, or what they are decoded to, have its name; elsewhere the float tensor
        codes = quantized.codes
        names = [name for name in (codes, reals.get(codes, "")) if name in outputs]
        seen.add(codes)
        yield Watched(
            name=names[0] if names else source,
            quantized=quantized,
            tensor=codes,
            output=codes in outputs,
        )
    for name in outputs:
        if name not in seen:
            yield Watched(name=name, quantized=None, tensor=name, output=True)
