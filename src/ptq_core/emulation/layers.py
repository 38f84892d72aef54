"""Find the layers that a device computes in integers, with what it merges into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.emulation.parameters import Parameters
from ptq_core.emulation.steps import Layer, Quantized
from ptq_core.graph import operators as ops

_BIAS_BYTES = 4  # an int32 bias is added to the sums
_MATRIX = 2


@dataclass(kw_only=True)
class _Chain:
    """A linear operator and what follows it, as far as it is merged."""

    left: Quantized
    right: Quantized
    nodes: list[ir.Node]
    end: ir.Value
    bias: NDArray[np.float64] | None = None
    exact: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)
    result: Quantized | None = None


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
        chain = _Chain(left=left, right=right, nodes=[node], end=node.outputs[0])
        position = ops.LINEAR[node.op_type].bias
        bias = node.inputs[position] if position and position < len(node.inputs) else None
        if bias is not None and not self._take_bias(chain, bias):
            return None
        self._follow(chain)
        layer = Layer(
            node=node,
            left=left,
            right=right,
            bias=chain.bias,
            exact_bias=chain.exact,
            bounds=chain.bounds,
            result=chain.result,
            output=chain.end.name or "",
        )
        return layer, chain.nodes

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

    def _take_bias(self, chain: _Chain, value: ir.Value | None) -> bool:
        """Let the chain have this bias, if it is one number for each channel."""
        constants = self._parameters.constants
        quantized, array = self._operand(value), self._parameters.constant(value)
        if quantized is not None and quantized.codes in constants:
            codes = constants[quantized.codes]
            reals = quantized.centered(codes).astype(np.float64) * quantized.scale
            exact = codes.dtype.itemsize == _BIAS_BYTES
        elif array is not None and array.dtype == np.float32:
            reals, exact = array.astype(np.float64), False
        else:
            return False
        if reals.size not in (1, self._channels(chain)):
            return False
        if reals.ndim and reals.shape[-1] != reals.size:
            return False
        chain.bias, chain.exact = reals.reshape(-1), exact
        return True

    def _channels(self, chain: _Chain) -> int:
        node, weights = chain.nodes[0], self._parameters.constants.get(chain.right.codes)
        if weights is None:
            return 1
        groups = int(ops.attribute(node, "group", 1)) if ops.shares_channels(node) else 1
        return int(weights.shape[ops.channel_axis(node, weights.ndim)]) * groups

    def _follow(self, chain: _Chain) -> None:
        """Take in what follows: a bias that is added, activations, the quantization."""
        may_add = chain.nodes[0].op_type in ("MatMul", "Gemm") and chain.bias is None
        while (reader := self._only_reader(chain.end)) is not None:
            bounds = ops.activation_bounds(reader)
            if reader.op_type == "QuantizeLinear" and reader.inputs[0] is chain.end:
                encode = self._parameters.encode(reader)
                if encode is not None:
                    chain.result = encode.quantized
                    chain.nodes.append(reader)
                return
            if reader.op_type == "Add" and ops.is_standard(reader) and may_add:
                other = next((one for one in reader.inputs if one is not chain.end), None)
                if not self._take_bias(chain, other):
                    return
            elif bounds is not None:
                low, high = (float(np.clip(bound, *bounds)) for bound in chain.bounds)
                chain.bounds = low, high
            else:
                return
            may_add = False
            chain.nodes.append(reader)
            chain.end = reader.outputs[0]

    def _only_reader(self, value: ir.Value) -> ir.Node | None:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not self._graph:
            return None
        return uses[0].node
