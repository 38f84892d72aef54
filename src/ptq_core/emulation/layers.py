"""Find the layers that a device computes in integers, with what it merges into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ptq_core.emulation.parameters import Parameters
from ptq_core.emulation.steps import Layer, Quantized
from ptq_core.graph import operators as ops

_BIAS_BYTES = 4  # an int32 bias is added to the sums
_MATRIX = 2


class Layers:
    """Finds layers.

    Args:
        graph: of the model.
        parameters: its constants.
        decoded: what the DequantizeLinear nodes decode, by their outputs.
    """

    def __init__(
        self, graph: ir.Graph, parameters: Parameters, decoded: Mapping[str, Quantized]
    ) -> None:
        self._graph, self._parameters, self._decoded = graph, parameters, decoded

    def find(self, node: ir.Node) -> tuple[Layer, list[ir.Node]] | None:
        """The layer that begins with this node, and its nodes; None if it is computed in float."""
        if not ops.is_standard(node) or node.op_type not in ops.LINEAR:
            return None
        left, right = (self._operand(value) for value in node.inputs[:2])
        if left is None or right is None or not self._fits(node, left, right):
            return None
        plain = Layer(node=node, left=left, right=right, output=node.outputs[0].name or "")
        position = ops.LINEAR[node.op_type].bias
        bias = node.inputs[position] if position and position < len(node.inputs) else None
        layer = plain if bias is None else self._with_bias(plain, bias)
        return None if layer is None else self._with_what_follows(layer)

    def _operand(self, value: ir.Value | None) -> Quantized | None:
        return None if value is None else self._decoded.get(value.name or "")

    def _fits(self, node: ir.Node, left: Quantized, right: Quantized) -> bool:
        """Whether sums of these codes are all that there is to the operator."""
        constants = self._parameters.constants
        weights = constants.get(right.codes)
        if left.axis is not None or left.codes in constants:
            return False
        if weights is None:
            return node.op_type == "MatMul" and right.axis is None
        if weights.ndim < _MATRIX or (node.op_type == "MatMul" and weights.ndim != _MATRIX):
            return False
        axis = ops.channel_axis(node, weights.ndim)
        if right.axis is not None and right.axis % weights.ndim != axis:
            return False
        if node.op_type == "Gemm":
            plain = all(ops.attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
            return plain and not ops.attribute(node, "transA", 0)
        if node.op_type == "ConvTranspose":
            auto = ops.attribute(node, "auto_pad", "NOTSET")
            return "output_shape" not in node.attributes and auto in ("NOTSET", "VALID")
        return True

    def _with_bias(self, layer: Layer, value: ir.Value | None) -> Layer | None:
        """The layer with this bias; None if that is not one number for each channel."""
        constants = self._parameters.constants
        quantized, array = self._operand(value), self._parameters.constant(value)
        if quantized is not None and quantized.codes in constants:
            codes = constants[quantized.codes]
            reals = quantized.centered(codes).astype(np.float64) * quantized.scale
            exact = codes.dtype.itemsize == _BIAS_BYTES
        elif array is not None and array.dtype == np.float32:
            reals, exact = array.astype(np.float64), False
        else:
            return None
        if reals.size not in (1, self._channels(layer)):
            return None
        if reals.ndim and (reals.shape[-1] != reals.size or reals.ndim > _rank(layer.node)):
            return None
        return replace(layer, bias=reals.reshape(-1), exact_bias=exact)

    def _channels(self, layer: Layer) -> int:
        node, weights = layer.node, self._parameters.constants.get(layer.right.codes)
        if weights is None:
            return 1
        groups = int(ops.attribute(node, "group", 1)) if ops.shares_channels(node) else 1
        return int(weights.shape[ops.channel_axis(node, weights.ndim)]) * groups

    def _with_what_follows(self, layer: Layer) -> tuple[Layer, list[ir.Node]]:
        """Merge what follows: a bias that is added, activations, the quantization."""
        nodes = [layer.node]
        may_add = layer.node.op_type in ("MatMul", "Gemm") and layer.bias is None
        while (reader := self._only_reader(nodes[-1].outputs[0])) is not None:
            end = nodes[-1].outputs[0]
            bounds = ops.activation_bounds(reader)
            merged: Layer | None = None
            if reader.op_type == "QuantizeLinear" and reader.inputs[0] is end:
                encode = self._parameters.encode(reader)
                if encode is None:
                    break
                return replace(layer, result=encode.quantized), [*nodes, reader]
            if reader.op_type == "Add" and ops.is_standard(reader) and may_add:
                other = next((one for one in reader.inputs if one is not end), None)
                merged = self._with_bias(layer, other)
            elif bounds is not None:
                low, high = (float(np.clip(bound, *bounds)) for bound in layer.bounds)
                merged = replace(layer, bounds=(low, high))
            if merged is None:
                break
            layer = replace(merged, output=reader.outputs[0].name or "")
            may_add = False
            nodes.append(reader)
        return layer, nodes

    def _only_reader(self, value: ir.Value) -> ir.Node | None:
        """The node that alone reads a value that is no output, in this graph itself."""
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not self._graph:
            return None
        return uses[0].node


def _rank(node: ir.Node) -> int:
    """How many axes the result of a layer has, at least: more of a bias would add to them."""
    shape = node.outputs[0].shape
    if shape is not None:
        return len(shape)
    return _MATRIX if node.op_type == "Gemm" else 1
