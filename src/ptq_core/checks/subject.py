"""The model as the rules of ``ptq check`` look at it: who reads codes, with which parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.checks.coded import Coded, Role
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import only_consumer
from ptq_core.target_types import OperatorRule, TargetSpec

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

# The QOperator form: inputs with codes, scale and zero point of weights; scale and zero point of
# the result.
_QLINEAR = {"QLinearConv": ((3, 4, 5), (6, 7)), "QLinearMatMul": ((3, 4, 5), (6, 7))}


class Subject:
    """A quantized model and the device that it is looked at for.

    Constants are initializers: nodes of type Constant have been replaced.
    """

    def __init__(self, model: ir.Model, spec: TargetSpec) -> None:
        self.model = model
        self.spec = spec
        opsets = model.graph.opset_imports
        self.opset = max(opsets.get(domain, 1) for domain in ops.DEFAULT_DOMAINS)
        self.nodes = tuple(model.graph.all_nodes())
        self._static, self._decoded = _static_values(model, self.nodes)
        self._coded = {node: self._read(node) for node in self.nodes if _is_pair(node)}

    # ---------------------------------------------------------------------- codes and parameters

    def pair(self, node: ir.Node | None) -> Coded | None:
        """The parameters of a QuantizeLinear or DequantizeLinear, None for any other node."""
        return None if node is None else self._coded.get(node)

    def all_coded(self) -> Iterator[Coded]:
        """Everything that has scale and zero point, in the order of the graph."""
        for node in self.nodes:
            if node in self._coded:
                yield self._coded[node]
            elif ops.is_standard(node) and node.op_type in _QLINEAR and len(node.inputs) > 7:
                weight, result = _QLINEAR[node.op_type]
                role: Role = "weight" if self.is_static(node.inputs[weight[0]]) else "activation"
                yield self._coded_at(node, role, node.inputs[weight[0]], *weight[1:])
                yield self._coded_at(node, "activation", node.outputs[0], *result)

    def is_static(self, value: ir.Value | None) -> bool:
        """Whether the value is a constant, or computed from constants only."""
        return value is not None and value in self._static

    def is_float_constant(self, value: ir.Value | None) -> bool:
        """Whether the value is a constant that no DequantizeLinear has a part in."""
        return self.is_static(value) and value not in self._decoded

    def source(self, value: ir.Value | None) -> Coded | None:
        """The DequantizeLinear that a value comes from, also by way of data movers."""
        while value is not None:
            node = value.producer()
            found = self.pair(node)
            if node is None or (found is not None and node.op_type == DEQUANTIZE):
                return found
            rule = self.rule(node)
            if rule is None or not rule.same_parameters or not node.inputs:
                return None
            value = node.inputs[0]
        return None

    def activation(self, value: ir.Value | None) -> Coded | None:
        """The same, if it gives an activation and is no guard of a layer that stays float."""
        found = self.source(value)
        if found is None or found.role != "activation" or self.is_guard(found):
            return None
        return found

    def is_guard(self, coded: Coded) -> bool:
        """Whether a DequantizeLinear with equal entries keeps the layers behind it in float."""
        if self.spec.skip_guard != "per_axis_dequantize" or coded.node.op_type != DEQUANTIZE:
            return False
        if coded.scale is None or not coded.per_axis or not coded.alike:
            return False
        readers = [use.node for use in coded.node.outputs[0].uses()]
        return bool(readers) and all(
            node.op_type in ops.LINEAR
            and len(node.inputs) > 1
            and self.is_float_constant(node.inputs[1])
            for node in readers
        )

    # ---------------------------------------------------------------------------------- operators

    def rule(self, node: ir.Node) -> OperatorRule | None:
        """What the target says of this node, None where it has no integer form of it."""
        rule = self.spec.operators.get(node.op_type) if ops.is_standard(node) else None
        if rule is None or rule.quantize == "never":
            return None
        for name, allowed in rule.attributes.items():
            default = ops.schema_default(node, name, self.opset)
            if ops.attribute(node, name, default) not in allowed:
                return None
        return rule

    def count(self) -> int:
        """How many operators read integers, dequantized or as they are."""
        return sum(
            node not in self._coded
            and (
                any(self.activation(value) is not None for value in node.inputs)
                or (node.op_type in ops.QUANTIZED and bool(node.inputs))
            )
            for node in self.nodes
        )

    def operands(self, node: ir.Node) -> list[ir.Value]:
        """The inputs that a node computes with: activations and weights, no axes and no biases."""
        if node.op_type in ops.LINEAR:
            values = list(node.inputs[:2])
        elif node.op_type in ops.ALIKE_OPERANDS:
            values = list(node.inputs)
        elif node.op_type == "Where":
            values = list(node.inputs[1:])
        else:
            values = list(node.inputs[:1])
        return [value for value in values if value is not None]

    def is_integer(self, node: ir.Node) -> bool:
        """Whether the device finds all it needs to compute the node with integers."""
        rule = self.rule(node)
        if rule is None:
            return False
        operands = self.operands(node)
        activations = [one for one in operands if self.activation(one) is not None]
        if rule.quantize == "residual":
            return len(activations) == 1
        if node.op_type in ops.LINEAR and not rule.two_activations and len(activations) > 1:
            return False
        return bool(activations) and all(self.source(one) is not None for one in operands)

    def bias(self, node: ir.Node) -> ir.Value | None:
        """The bias of a layer: its own, or what is added to a MatMul's result."""
        facts = ops.LINEAR.get(node.op_type)
        if facts is None:
            return None
        if facts.bias is not None:
            return node.inputs[facts.bias] if facts.bias < len(node.inputs) else None
        add = self._bias_add(node)
        return None if add is None else _other_operand(add, node.outputs[0])

    def behind(self, node: ir.Node) -> tuple[ir.Value, ir.Node | None]:
        """A node's result behind what the device merges into it, and the activation among that."""
        rule = self.spec.operators.get(node.op_type)
        value = self.total(node)
        follower = only_consumer(value)
        if (
            rule is not None
            and follower is not None
            and ops.is_standard(follower)
            and follower.op_type in rule.fuse
            and follower.inputs[0] is value
        ):
            return follower.outputs[0], follower
        return value, None

    def total(self, node: ir.Node) -> ir.Value:
        """A layer's result, its bias included."""
        add = self._bias_add(node) if node.op_type == "MatMul" else None
        return node.outputs[0] if add is None else add.outputs[0]

    def _bias_add(self, matmul: ir.Node) -> ir.Node | None:
        add = only_consumer(matmul.outputs[0])
        if add is None or add.op_type != "Add" or not ops.is_standard(add):
            return None
        other = _other_operand(add, matmul.outputs[0])
        codes = self.source(other)
        constant = self.is_static(other) if codes is None else codes.role != "activation"
        return add if constant else None

    # ------------------------------------------------------------------------------------ reading

    def _read(self, node: ir.Node) -> Coded:
        codes = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
        return self._coded_at(node, self._role(node, codes), codes, 1, 2)

    def _coded_at(
        self, node: ir.Node, role: Role, codes: ir.Value | None, scale: int, zero_point: int
    ) -> Coded:
        """The parameters at these inputs of the node."""
        scales = node.inputs[scale] if scale < len(node.inputs) else None
        zeros = node.inputs[zero_point] if zero_point < len(node.inputs) else None
        array = ops.constant(scales)
        middle = np.zeros(()) if zeros is None else ops.constant(zeros)
        return Coded(
            node=node,
            tensor=(codes.name if codes is not None else "") or "",
            role=role,
            dtype=type_of(zeros) or _type_of_codes(node, codes),
            has_zero_point=zeros is not None,
            scale=_numbers(array),
            scale_type=type_of(scales),
            zero_point=_numbers(middle),
            axis=int(ops.attribute(node, "axis", 1)),
        )

    def _role(self, node: ir.Node, codes: ir.Value | None) -> Role:
        if not self.is_static(codes):
            return "activation"
        if node.op_type == QUANTIZE:  # of a constant: what becomes of it behind DequantizeLinear
            readers = [use.node for use in node.outputs[0].uses()]
            decoded = next((one for one in readers if one.op_type == DEQUANTIZE), None)
            return "operand" if decoded is None else self._role(decoded, codes)
        role = _use_of(node.outputs[0])
        return "bias" if role == "operand" and type_of(codes) == "int32" else role


def readers(value: ir.Value, op_type: str = "") -> list[ir.Node]:
    """The nodes that read a value, all or those of one type, each once."""
    found = dict.fromkeys(use.node for use in value.uses())
    return [node for node in found if not op_type or node.op_type == op_type]


def decoded(encode: ir.Node) -> list[ir.Node]:
    """Who reads what a QuantizeLinear made, behind DequantizeLinear."""
    decodes = readers(encode.outputs[0], DEQUANTIZE)
    return [reader for decode in decodes for reader in readers(decode.outputs[0])]


def _is_pair(node: ir.Node) -> bool:
    known = ops.is_standard(node) or node.domain == "com.microsoft"
    return known and node.op_type in (QUANTIZE, DEQUANTIZE) and bool(node.inputs)


def _static_values(
    model: ir.Model, nodes: tuple[ir.Node, ...]
) -> tuple[set[ir.Value], set[ir.Value]]:
    """What is constant or computed from constants, and which of that by DequantizeLinear."""
    decoded: set[ir.Value] = set()
    found = {
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if not value.is_graph_input()
    }
    for node in nodes:
        given = [value for value in node.inputs if value is not None]
        if given and all(value in found for value in given) and not ops.has_subgraph(node):
            found.update(node.outputs)
            if node.op_type == DEQUANTIZE or not decoded.isdisjoint(given):
                decoded.update(node.outputs)
    return found, decoded


def _use_of(constant: ir.Value) -> Role:
    """What a constant is to those that read it, also behind Transpose and the like."""
    for use in constant.uses():
        reader = use.node
        facts = ops.LINEAR.get(reader.op_type) if ops.is_standard(reader) else None
        if facts is not None and use.idx == facts.bias:
            return "bias"
        if use.idx in ops.weight_positions(reader):
            return "weight"
        if ops.is_standard(reader) and reader.op_type in ops.RESHAPERS and use.idx == 0:
            role = _use_of(reader.outputs[0])
            if role != "operand":
                return role
    return "operand"


def _numbers(array: NDArray[Any] | None) -> NDArray[np.float64] | None:
    """Scales or zero points; None where there are none."""
    return None if array is None or array.size == 0 else np.asarray(array, np.float64)


def _other_operand(add: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((one for one in add.inputs if one is not value), None)


def type_of(value: ir.Value | None) -> str:
    """The type of a value's elements, "" where it is not known."""
    if value is None:
        return ""
    dtype = value.dtype or (None if value.const_value is None else value.const_value.dtype)
    return "" if dtype is None else dtype.name.lower()


def _name(dtype: int) -> str:
    """The name of a type, "" where ONNX has none of this number."""
    known = dtype in ir.DataType.__members__.values() and dtype != ir.DataType.UNDEFINED
    return ir.DataType(dtype).name.lower() if known else ""


def _type_of_codes(node: ir.Node, codes: ir.Value | None) -> str:
    """The type of codes without a zero point."""
    if node.op_type == QUANTIZE:
        return _name(int(ops.attribute(node, "output_dtype", 0))) or "uint8"
    known = type_of(codes)
    producer = None if codes is None else codes.producer()
    if known or producer is None:
        return known
    if producer.op_type == "Cast":
        return _name(int(ops.attribute(producer, "to", 0)))
    if producer.op_type == QUANTIZE:
        zero_point = producer.inputs[2] if len(producer.inputs) > 2 else None
        return type_of(zero_point) or _type_of_codes(producer, codes)
    return ""
