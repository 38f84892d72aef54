"""Build what quantizes activations while a model runs, node by node, in front of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph import operators as ops
from ptq_core.graph.constants import new_constant
from ptq_core.graph.names import Names

MIDDLE = 128  # the code of zero where a token's codes are unsigned, which is the faster kernel
_LEVELS = 127.0
_SMALLEST = 1e-30  # added to a row's magnitude: a row of zeros stays zeros
_AXES_ARE_INPUTS = 18  # opset, of ReduceMax


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph of a node, the model's own or a body."""
    return cast(ir.Graph, node.graph)


class LayerBuilder:
    """Makes nodes and constants; what several layers need is made once."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.free = Names(model).free
        self._opset = model.graph.opset_imports[""]
        self._constants: dict[tuple[str, str], ir.Value] = {}
        self._activations: dict[tuple[ir.Graph, ir.Value, bool], tuple[ir.Value, ...]] = {}

    def quantized(self, node: ir.Node, data: ir.Value) -> tuple[ir.Value, ...]:
        """Codes, scale and zero point of an activation, one scale for all of it."""
        key = (graph_of(node), data, False)
        if key not in self._activations:
            made = ir.node(
                "DynamicQuantizeLinear",
                [data],
                num_outputs=3,
                name=self.free(f"{data.name}_quantize"),
            )
            for output, suffix in zip(
                made.outputs, ("quantized", "scale", "zero_point"), strict=True
            ):
                output.name = self.free(f"{data.name}_{suffix}")
            graph_of(node).insert_before(node, made)  # the first of those that read it
            self._activations[key] = tuple(made.outputs)
        return self._activations[key]

    def quantized_tokens(self, node: ir.Node, data: ir.Value) -> tuple[ir.Value, ...]:
        """Codes of an activation, a scale for each row, and the rows' largest magnitudes."""
        key = (graph_of(node), data, True)
        if key not in self._activations:
            step, middle = self.token_step()
            tiny = self.constant("ptq", "tiny", np.asarray(_SMALLEST, np.float32))
            inputs = (
                [self.constant("ptq", "last_axis", np.array([-1], np.int64))]
                if self._opset >= _AXES_ARE_INPUTS
                else []
            )
            axes = {} if inputs else {"axes": [-1]}
            made: list[ir.Node] = []

            def add(operator: str, values: list[ir.Value], suffix: str, **given: Any) -> ir.Value:
                made.append(self._node(operator, values, f"{data.name}_{suffix}", given))
                return made[-1].outputs[0]

            size = add("Abs", [data], "magnitudes")
            largest = add("ReduceMax", [size, *inputs], "largest", keepdims=1, **axes)
            magnitude = add("Add", [largest, tiny], "magnitude")
            factor = add("Reciprocal", [magnitude], "factor")
            unit = add("Mul", [data, factor], "unit")
            quantized = add("QuantizeLinear", [unit, step, middle], "tokens")
            graph_of(node).insert_before(node, made)
            self._activations[key] = (quantized, magnitude)
        return self._activations[key]

    def token_step(self) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of rows that were divided by their magnitudes."""
        step = self.constant("ptq", "token_scale", np.asarray(1 / _LEVELS, np.float32))
        return step, self.constant("ptq", "middle", np.asarray(MIDDLE, np.uint8))

    def integer(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value],
        data_scale: ir.Value,
        weight_scale: ir.Value,
        operator: str = "MatMulInteger",
        attributes: Any = (),
    ) -> ir.Value:
        """The product of integers, and the float that it stands for, of a node that it replaces."""
        name = ops.key(node)
        sums = self.before(node, operator, inputs, f"{name}_integer", attributes=attributes)
        reals = self.before(node, "Cast", [sums], f"{name}_real", to=int(ir.DataType.FLOAT))
        scale = self.before(node, "Mul", [data_scale, weight_scale], f"{name}_scale")
        return self.before(node, "Mul", [reals, scale], f"{name}_product")

    def constant(self, name: str, suffix: str, array: NDArray[Any]) -> ir.Value:
        """A constant of the main graph, which bodies see as well."""
        key = (name, suffix)
        if key in self._constants:
            known = self._constants[key].const_value
            if known is not None and np.array_equal(known.numpy(), array):
                return self._constants[key]
        made = new_constant(self.model.graph, self.free(f"{name}_{suffix}"), array)
        self._constants[key] = made
        return made

    def _node(
        self, operator: str, inputs: Sequence[ir.Value], name: str, given: Mapping[str, Any]
    ) -> ir.Node:
        node = ir.node(operator, list(inputs), given, name=self.free(f"{name}_{operator}"))
        node.outputs[0].name = self.free(name)
        return node

    def before(
        self,
        node: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Any = (),
        **given: Any,
    ) -> ir.Value:
        """The result, called so, of a new node in front of this one."""
        made = self._node(operator, inputs, name, given)
        for attr in attributes:
            made.attributes[attr.name] = attr
        graph_of(node).insert_before(node, made)
        return made.outputs[0]

    def replace(self, node: ir.Node, result: ir.Value) -> None:
        """Let a layer's result be this one, under its name."""
        self.take_over(node.outputs[0], result)
        graph_of(node).remove(node, safe=True)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let everybody read the new value, which takes the old one's name and place."""
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}_float" if name else name
        new.name = name
