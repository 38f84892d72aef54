"""The float network and the quantized one in a single graph that corrects itself as it runs.

Every layer of the quantized half is followed by its correction ``y + slope * y + offset``, computed
in the graph from the channel means of both halves on the samples so far. A later layer sees the
corrected results of the earlier ones, as it will in the finished model, so that one run over the
samples is the whole layer-after-layer procedure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import QParams, dequantize
from ptq_core.graph import operators as ops
from ptq_core.graph.constants import new_constant
from ptq_core.graph.model import copy_of
from ptq_core.planning import WeightPlan
from ptq_core.types import QScheme

SHARE = "ptq_share"  # input: what a run adds to the moments: its samples / all samples so far
MOMENTS = ("difference", "result", "difference_result", "result_result")

# Weight of the prior "the gain is 1", in units of the layer's mean variance. The variance of a few
# dozen samples' channel means is a poor estimate; measured on real networks, 1 to 10 do equally
# well, 0.03 overfits (MobileNetV2: 18.9 dB against 20.7; without gains 19.6).
RIDGE = 3.0
# Moments are rounded to float32: a variance below this part of the mean square is nothing but that.
ROUNDING = 1e-5
TINY = 1e-12  # keeps the division defined where all is zero
# Scales stay positive; a layer that is further off is broken, not biased.
GAINS = (0.5, 2.0)

_SUFFIX = "__ptq_quantized"  # of every name in the quantized half
_FLOAT = ir.DataType.FLOAT


@dataclass(kw_only=True)
class Twin:
    """The graph with both networks.

    Attributes:
        model: its outputs are, for each layer, the moments so far and those of this run, and then
            the outputs of both networks.
        channels: of each layer, by its key.
        outputs: float outputs of the float network, each with its name in the quantized half.
    """

    model: ir.Model
    channels: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)


def state_name(layer: str) -> str:
    """The input that takes a layer's moments so far, [1, 4 * channels]."""
    return f"{layer}__ptq_state"


def updated_name(layer: str) -> str:
    """The output with the moments that include this run."""
    return f"{layer}__ptq_updated"


def current_name(layer: str) -> str:
    """The output with the moments of this run alone."""
    return f"{layer}__ptq_current"


def make_twin(floats: ir.Model, quantized: ir.Model, weights: Sequence[WeightPlan]) -> Twin:
    """Put both networks into one graph, with corrections in the quantized half.

    Args:
        floats: the prepared model.
        quantized: the same after emission; both are left as they are.
        weights: of the plan; those of linear operators are the layers.
    """
    twin = Twin(model=copy_of(floats))
    graph = twin.model.graph
    originals = {ops.key(node): node for node in graph}
    ends = [value for value in graph.outputs if value.dtype in (None, _FLOAT)]
    other = copy_of(quantized)
    _fold_weights(other.graph)
    made = {value.name: value for node in other.graph for value in node.outputs}
    for value in ends:
        if value.name in made:
            twin.outputs[value.name or ""] = f"{value.name}{_SUFFIX}"
    _move(other.graph, graph)
    graph.outputs.clear()
    share = _input(graph, SHARE, [])
    constants: dict[str, ir.Value] = {}
    for weight in weights:
        node = originals[weight.node]
        if node.op_type not in ops.LINEAR:
            continue
        channels = _channels(node, weight)
        if channels is None:
            continue
        copy = _behind_dequantize(made[weight.node])
        _correct(graph, weight, node, copy, channels, share, constants)
        twin.channels[weight.node] = channels
    values = {value.name: value for node in graph for value in node.outputs}
    for name, other_name in twin.outputs.items():
        for each in (name, other_name):
            graph.outputs.append(values[each])
            values[each].dtype, values[each].shape = _FLOAT, values[name].shape
    graph.sort()
    return twin


def _behind_dequantize(value: ir.Value) -> ir.Node:
    """The operator that gives a result, through the rounding that bears its name at the end."""
    node = value.producer()
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is None:
        raise AssertionError(f"nothing produces '{value.name}'")
    return node


def _channels(node: ir.Node, plan: WeightPlan) -> int | None:
    """Output channels of a linear operator; None where the results have no scale of their own."""
    weight = ops.constant(node.inputs[plan.position])
    if weight is None or weight.ndim < 2 or ops.rank(node.outputs[0]) == 1:
        return None
    if ops.shares_channels(node) and plan.axis is not None:
        return None  # one scale for a channel of every group
    groups = ops.attribute(node, "group", 1) if ops.shares_channels(node) else 1
    return int(weight.shape[ops.channel_axis(node, weight.ndim)] * groups)


def _fold_weights(graph: ir.Graph) -> None:
    """Replace dequantized constants by what they stand for: the twin computes in float."""
    for node in list(graph):
        arrays = [ops.constant(value) for value in node.inputs]
        if node.op_type != "DequantizeLinear" or any(array is None for array in arrays):
            continue
        codes, scale, zero_point = (array for array in arrays if array is not None)
        params = QParams(
            scheme=QScheme(),
            scale=scale,
            zero_point=zero_point,
            axis=ops.attribute(node, "axis", 1) if scale.ndim else None,
        )
        result = new_constant(graph, f"{node.outputs[0].name}_value", dequantize(codes, params))
        node.outputs[0].replace_all_uses_with(result)
        graph.remove(node, safe=True)


def _move(source: ir.Graph, graph: ir.Graph) -> None:
    """Take all nodes and constants of a copy into the graph, under names of their own."""
    inputs = {value.name: value for value in graph.inputs}
    for value in list(source.inputs):
        value.replace_all_uses_with(inputs[value.name], replace_graph_outputs=True)
    source.outputs.clear()
    nodes = list(source)
    for node in nodes:
        for output in node.outputs:
            if output.name:
                output.name += _SUFFIX
        node.name = f"{node.name}{_SUFFIX}"
    source.remove(nodes)
    for constant in list(source.initializers.values()):
        source.initializers.pop(constant.name or "")
        constant.name = f"{constant.name}{_SUFFIX}"
        graph.register_initializer(constant)
    graph.extend(nodes)


def _input(graph: ir.Graph, name: str, shape: list[int]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(_FLOAT))
    graph.inputs.append(value)
    return value


def _correct(
    graph: ir.Graph,
    weight: WeightPlan,
    original: ir.Node,
    quantized: ir.Node,
    channels: int,
    share: ir.Value,
    constants: dict[str, ir.Value],
) -> None:
    """Follow a layer of the quantized half by its correction."""
    layer, wanted, found = weight.node, original.outputs[0], quantized.outputs[0]
    readers = list(found.uses())
    add = _Builder(graph, f"{layer}__ptq", constants)
    means = [_sample_means(add, original, value, channels) for value in (wanted, found)]
    difference, result = add("Sub", means), means[1]
    products = [add("Mul", [one, result]) for one in (difference, result)]
    moments = add("Concat", [difference, result, *products], axis=1)  # the order of MOMENTS
    current = add.mean(moments, 0, name=current_name(layer))
    state = _input(graph, state_name(layer), [1, len(MOMENTS) * channels])
    step = add("Mul", [add("Sub", [current, state]), share])
    updated = add("Add", [state, step], name=updated_name(layer))
    solution = _solution(add, updated, channels, per_channel=weight.axis is not None)
    gain, offset = (add("Reshape", [one, add.integers([channels])]) for one in solution)
    if original.op_type.startswith("Conv"):  # one pass over the result instead of two
        mean, variance = (add.numbers([value] * channels) for value in (0.0, 1.0))
        inputs = [found, gain, offset, mean, variance]
        corrected = add("BatchNormalization", inputs, epsilon=0.0)
    else:
        corrected = add("Add", [add("Mul", [found, gain]), offset])
    # what bears the layer's name is corrected: it may be an output of the network
    corrected.name, found.name = found.name, f"{layer}__ptq_uncorrected"
    for use in readers:
        use.node.replace_input_with(use.idx, corrected)
    for moments in (updated, current):
        moments.shape = state.shape
        graph.outputs.append(moments)


def _sample_means(add: _Builder, node: ir.Node, value: ir.Value, channels: int) -> ir.Value:
    """Mean of every channel for every sample, [samples, channels]."""
    if node.op_type.startswith("Conv"):
        return add("Flatten", [add("GlobalAveragePool", [value])], axis=1)
    by_sample = add("Reshape", [value, add.integers([0, -1, channels])])
    return add.mean(by_sample, 1, keepdims=0)


def _solution(
    add: _Builder, moments: ir.Value, channels: int, *, per_channel: bool
) -> tuple[ir.Value, ir.Value]:
    """Nodes for :func:`ptq_core.correction.bias.solve`."""
    difference, result, mixed, square = add.split(moments, len(MOMENTS))
    covariance = add("Sub", [mixed, add("Mul", [difference, result])])
    variance = add("Relu", [add("Sub", [square, add("Mul", [result, result])])])
    ridge = add("Mul", [add.mean(variance, 1), add.numbers(RIDGE)])
    if not per_channel:
        covariance, variance, square = (add.mean(one, 1) for one in (covariance, variance, square))
    noise = add("Add", [add("Mul", [square, add.numbers(ROUNDING)]), add.numbers(TINY)])
    slope = add("Div", [covariance, add("Add", [variance, add("Add", [ridge, noise])])])
    slope = add("Clip", [slope, *(add.numbers(gain - 1.0) for gain in GAINS)])
    if not per_channel:
        slope = add("Expand", [slope, add.integers([1, channels])])
    offset = add("Sub", [difference, add("Mul", [slope, result])])
    return add("Add", [slope, add.numbers([1.0])]), offset


class _Builder:
    """Appends nodes to a graph."""

    def __init__(self, graph: ir.Graph, prefix: str, constants: dict[str, ir.Value]) -> None:
        self._graph, self._prefix, self._count = graph, prefix, 0
        self._constants = constants
        self._opset = graph.opset_imports.get("", 1)

    def __call__(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str | None = None,
        **attributes: float | list[int],
    ) -> ir.Value:
        (output,) = self._node(op_type, inputs, 1, attributes)
        output.name = name or output.name
        return output

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value], outputs: int, attributes: Mapping[str, Any]
    ) -> Sequence[ir.Value]:
        self._count += 1
        unique = f"{self._prefix}_{self._count}"
        node = ir.node(op_type, inputs, attributes, name=unique, num_outputs=outputs)
        for index, output in enumerate(node.outputs):
            output.name, output.dtype = f"{unique}_{index}", _FLOAT
        self._graph.append(node)
        return node.outputs

    def split(self, value: ir.Value, parts: int) -> Sequence[ir.Value]:
        """Equal parts along axis 1."""
        attributes = {"axis": 1, **({"num_outputs": parts} if self._opset >= 18 else {})}
        return self._node("Split", [value], parts, attributes)

    def mean(
        self, value: ir.Value, axis: int, *, name: str | None = None, keepdims: int = 1
    ) -> ir.Value:
        if self._opset >= 18:  # axes became an input
            inputs = [value, self.integers([axis])]
            return self("ReduceMean", inputs, name, keepdims=keepdims)
        return self("ReduceMean", [value], name, axes=[axis], keepdims=keepdims)

    def integers(self, values: Sequence[int]) -> ir.Value:
        return self._constant(np.asarray(values, np.int64))

    def numbers(self, values: float | Sequence[float]) -> ir.Value:
        return self._constant(np.asarray(values, np.float32))

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        """The same one for the same values in all layers."""
        token = f"{array.dtype}{array.tolist()}"
        if token not in self._constants:
            self._constants[token] = new_constant(self._graph, "ptq_constant", array)
        return self._constants[token]
