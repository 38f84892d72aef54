"""Write integer weights into the graph, with the operators that make floats of them again.

Three forms. ``folded``: decoder, Cast, Mul and Add on constants, which runtimes compute once, when
a session is created; the model then runs as fast as the float one, with exactly these weights.
``dequantize``: DequantizeLinear, which runtimes never fold: the weights stay integers in memory and
are dequantized on every run. ``cast_add_mul``: the same for compilers that know no
DequantizeLinear; the offset is added to the code, then the scale multiplied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ptq_core.emission.qdq import forget_shapes
from ptq_core.errors import PluginError
from ptq_core.graph import operators as ops
from ptq_core.graph.constants import new_constant
from ptq_core.graph.names import Names
from ptq_core.planning import ConstantPlan
from ptq_core.types import Encoded
from ptq_core.weights.quantized import QuantizedWeight, container, is_half

Form = Literal["folded", "dequantize", "cast_add_mul"]

DOMAIN = "ptq."  # of decoders, with the encoding's name behind it
_FUNCTIONS_SINCE = 8  # IR version
_SMALL_TYPES = {"int4": 10, "uint4": 10, "int2": 13, "uint2": 13}  # IR versions
_LARGEST_HALF = float(np.finfo(np.float16).max)
_FEW = 64  # elements: below, the Cast needs more bytes than float16 saves


class WeightWriter:
    """Puts one weight after another into a prepared model, in place."""

    def __init__(self, model: ir.Model, form: Form) -> None:
        self._model, self._form = model, form
        self._names = Names(model)
        self._opset = model.graph.opset_imports[""]
        self._ours: set[str] = set()  # constants that stay as they are

    def write(
        self,
        value: ir.Value,
        plan: ConstantPlan,
        weight: QuantizedWeight,
        encoded: Encoded,
        encoding: str,
    ) -> int:
        """Replace a constant; returns the bytes of what stands for it, parameters included.

        Args:
            value: the float constant.
            plan: of this constant.
            weight: what becomes of it.
            encoded: its codes, stored.
            encoding: name of the encoding that stored them.
        """
        graph = cast(ir.Graph, value.graph)
        name = value.name or ""
        builder = _Builder(graph, self._names, name, self._ours)
        looked_up = self._form != "folded" and plan.table
        blocks = None if looked_up or self._form != "dequantize" else _blocks(weight)
        shape = weight.codes.shape if blocks is None else blocks.shape
        codes, integer = self._codes(builder, weight, encoded, encoding, shape)
        if self._form == "folded":
            decoded = _affine(builder, codes, integer, weight)
        elif looked_up:
            _look_up(builder, value, codes, integer, weight)
            decoded = None
        elif blocks is not None:
            decoded = _dequantize(builder, codes, integer, weight, blocks)
        else:
            decoded = _add_and_scale(builder, codes, integer, weight)
        if decoded is not None:
            builder.replace(value, decoded)
        else:
            builder.insert()
            del graph.initializers[name]
        return builder.stored

    def _codes(
        self,
        builder: _Builder,
        weight: QuantizedWeight,
        encoded: Encoded,
        encoding: str,
        shape: tuple[int, ...],
    ) -> tuple[ir.Value, bool]:
        """The codes in this shape; whether they are integers or float."""
        arrays = {suffix: np.asarray(array) for suffix, array in encoded.constants.items()}
        if not encoded.function:
            if [array.shape for array in arrays.values()] != [weight.codes.shape]:
                raise PluginError(
                    f"encoding {encoding}: without a function it has to give one constant in the "
                    f"shape of the codes"
                )
            # here and not by a node: runtimes reshape no integers of four bits
            arrays = {suffix: array.reshape(shape) for suffix, array in arrays.items()}
        constants = [builder.constant(suffix, array) for suffix, array in arrays.items()]
        for array in arrays.values():
            needed = _SMALL_TYPES.get(array.dtype.name, 0)
            self._model.ir_version = max(self._model.ir_version or 0, needed)
        if not encoded.function:
            return constants[0], True
        operator = self._function(encoded.function, encoding)
        own = builder.constant("shape", np.asarray(weight.codes.shape, np.int64))
        node = ir.node(
            operator,
            [*constants, own],
            {"bits": weight.bits},
            domain=DOMAIN + encoding.lower(),
            name=builder.free("decode"),
        )
        value = builder.add(node, "codes")
        return (
            value if shape == weight.codes.shape else _in_shape(builder, value, shape, "rows")
        ), False

    def _function(self, text: str, encoding: str) -> str:
        """Have the decoder in the model; returns its name."""
        domain = DOMAIN + encoding.lower()
        try:
            proto = onnx.parser.parse_function(text)
        except onnx.parser.ParseError as error:
            raise PluginError(
                f"encoding {encoding}: its function cannot be read: {error}"
            ) from error
        proto.domain = domain
        proto.attribute.append("bits")  # what the codes are, for those who read the file
        del proto.opset_import[:]
        proto.opset_import.add(domain="", version=self._opset)
        function = ir.serde.deserialize_function(proto)
        key = function.identifier()
        if key not in self._model.functions:
            self._model.functions[key] = function
            self._model.opset_imports[domain] = 1
            self._model.ir_version = max(self._model.ir_version or 0, _FUNCTIONS_SINCE)
        return proto.name

    def finish(self, *, half: bool = False) -> list[str]:
        """Tidy up; returns the names of constants that do not fit into float16.

        Args:
            half: store the float constants that are left as float16, decoded when loaded.
        """
        too_large = self._halve() if half else []
        common.RemoveUnusedNodesPass()(self._model)
        self._model.graph.sort()
        forget_shapes(self._model.graph)
        for graph in self._model.graphs():
            for value in graph.initializers.values():
                if not value.is_graph_input() and not value.is_graph_output():
                    value.type = value.shape = None  # the tensor tells both; the file is smaller
        return too_large

    def _halve(self) -> list[str]:
        """Float constants as float16 with a Cast behind, where that saves bytes."""
        too_large = []
        for graph in self._model.graphs():
            for name, value in list(graph.initializers.items()):
                array = _float_array(value)
                if array is None or name in self._ours or array.size < _FEW:
                    continue
                if value.is_graph_output() or value.is_graph_input():
                    continue
                if np.abs(array).max(initial=0.0) > _LARGEST_HALF:
                    too_large.append(name)
                    continue
                builder = _Builder(graph, self._names, name, self._ours)
                stored = builder.constant("half", array.astype(np.float16))
                builder.replace(value, builder.cast(stored, ir.DataType.FLOAT, "single"))
        return too_large


def _float_array(value: ir.Value) -> NDArray[np.float32] | None:
    tensor = value.const_value
    return tensor.numpy() if tensor is not None and value.dtype == ir.DataType.FLOAT else None


class _Builder:
    """Nodes and constants that belong to one weight, called after it."""

    def __init__(self, graph: ir.Graph, names: Names, name: str, ours: set[str]) -> None:
        self.graph, self.nodes, self.stored = graph, list[ir.Node](), 0
        self.names, self.ours, self._name = names, ours, name

    def free(self, suffix: str) -> str:
        return self.names.free(f"{self._name}.{suffix}")

    def constant(self, suffix: str, array: NDArray[Any]) -> ir.Value:
        value = new_constant(self.graph, self.free(suffix), array)
        self.ours.add(value.name or "")
        if value.const_value is not None and suffix != "shape":
            self.stored += value.const_value.nbytes
        return value

    def parameter(self, suffix: str, array: NDArray[np.float32]) -> ir.Value:
        """A float32 constant; stored as float16 where that has the same numbers in fewer bytes."""
        if array.size < _FEW or not is_half(array):
            return self.constant(suffix, array)
        stored = self.constant(suffix, array.astype(np.float16))
        return self.cast(stored, ir.DataType.FLOAT, f"{suffix}_single")

    def add(self, node: ir.Node, suffix: str) -> ir.Value:
        node.outputs[0].name = self.free(suffix)
        self.nodes.append(node)
        return node.outputs[0]

    def apply(
        self, op_type: str, inputs: list[ir.Value], suffix: str, **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=self.free(f"{suffix}_{op_type}".lower()))
        return self.add(node, suffix)

    def cast(self, value: ir.Value, kind: ir.DataType, suffix: str) -> ir.Value:
        return self.apply("Cast", [value], suffix, to=int(kind))

    def insert(self) -> None:
        """Put the nodes into the graph, before all others."""
        self.graph.insert_before(self.graph[0], self.nodes)

    def replace(self, constant: ir.Value, made: ir.Value) -> None:
        """Put the nodes into the graph; what they make takes a constant's place and its name."""
        self.insert()
        del self.graph.initializers[self._name]
        constant.name = self.free("float")
        made.name = self._name
        constant.replace_all_uses_with(made)


def _affine(builder: _Builder, codes: ir.Value, integer: bool, weight: QuantizedWeight) -> ir.Value:
    """``(float(code) * scale + offset) * input_scale``."""
    value = builder.cast(codes, ir.DataType.FLOAT, "reals") if integer else codes
    if (weight.scale != 1.0).any():
        value = builder.apply("Mul", [value, builder.parameter("scale", weight.scale)], "scaled")
    if (weight.offset != 0.0).any():
        value = builder.apply("Add", [value, builder.parameter("offset", weight.offset)], "shifted")
    value = _reshaped(builder, value, weight)
    if weight.input_scale is not None:
        factor = builder.parameter("input_scale", weight.input_scale)
        value = builder.apply("Mul", [value, factor], "balanced")
    return value


def _reshaped(builder: _Builder, value: ir.Value, weight: QuantizedWeight) -> ir.Value:
    if weight.codes.shape == weight.shape:
        return value
    return _in_shape(builder, value, weight.shape, "whole")


def _in_shape(builder: _Builder, value: ir.Value, shape: tuple[int, ...], suffix: str) -> ir.Value:
    stored = builder.constant("shape", np.asarray(shape, np.int64))
    return builder.apply("Reshape", [value, stored], suffix)


def _integers(
    builder: _Builder, codes: ir.Value, integer: bool, weight: QuantizedWeight
) -> ir.Value:
    """The codes as int8 or int16, which runtimes keep in memory."""
    if integer:
        return codes
    kind = ir.DataType.INT8 if container(weight.bits) == "int8" else ir.DataType.INT16
    value = builder.cast(codes, kind, "integers")
    value.dtype = kind
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Blocks:
    """How DequantizeLinear takes a weight: in this shape, with parameters in theirs."""

    shape: tuple[int, ...]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    attributes: dict[str, int]


def _blocks(weight: QuantizedWeight) -> _Blocks:
    scale, zero_point, shape = weight.scale, weight.zero_point, weight.codes.shape
    kept = [axis for axis, count in enumerate(scale.shape) if count > 1]
    attributes: dict[str, int] = {}
    parameters: tuple[int, ...] = (-1,)
    if not kept:
        parameters = ()
    elif len(kept) == 1:
        attributes["axis"] = kept[0]
    elif kept == list(range(len(kept))):
        # scales for each index of several leading axes: as if these were one axis
        rows = math.prod(shape[: len(kept)])
        shape = (rows, weight.codes.size // rows)
        attributes["axis"] = 0
    else:
        # groups [K/g, g, N] of a matrix: blocks of g rows; a ConvTranspose has taps behind them
        groups, size, *rest = shape
        columns, spread = math.prod(rest), (groups, 1, *rest)
        scale = np.broadcast_to(scale, spread)
        zero_point = np.broadcast_to(zero_point, spread)
        shape, parameters = (groups * size, columns), (groups, columns)
        attributes |= {"axis": 0, "block_size": size}
    return _Blocks(
        shape=shape,
        scale=scale.reshape(parameters),
        zero_point=zero_point.reshape(parameters),
        attributes=attributes,
    )


def _dequantize(
    builder: _Builder, codes: ir.Value, integer: bool, weight: QuantizedWeight, blocks: _Blocks
) -> ir.Value:
    """``(code - zero_point) * scale`` on every run; the weight has integer zero points."""
    value = _integers(builder, codes, integer, weight)
    kind = value.dtype.numpy() if value.dtype is not None else np.dtype(container(weight.bits))
    inputs = [
        value,
        builder.constant("scale", blocks.scale),
        builder.constant("zero_point", blocks.zero_point.astype(kind)),
    ]
    value = builder.apply("DequantizeLinear", inputs, "dequantized", **blocks.attributes)
    if blocks.shape == weight.shape:
        return value
    return _in_shape(builder, value, weight.shape, "whole")


def _add_and_scale(
    builder: _Builder, codes: ir.Value, integer: bool, weight: QuantizedWeight
) -> ir.Value:
    """``(float(code) + offset / scale) * scale`` on every run."""
    value = _integers(builder, codes, integer, weight)
    value = builder.cast(value, ir.DataType.FLOAT, "reals")
    shift = weight.offset / weight.scale
    if (shift != 0.0).any():
        value = builder.apply("Add", [value, builder.constant("offset", shift)], "shifted")
    value = builder.apply("Mul", [value, builder.constant("scale", weight.scale)], "scaled")
    return _reshaped(builder, value, weight)


def _look_up(
    builder: _Builder, table: ir.Value, codes: ir.Value, integer: bool, weight: QuantizedWeight
) -> None:
    """Let Gather read integers, and dequantize only what it has read."""
    value = _integers(builder, codes, integer, weight)
    if integer and codes.dtype not in (ir.DataType.INT8, ir.DataType.INT16):
        value = builder.cast(codes, ir.DataType.INT8, "integers")  # Gather takes whole bytes
    per_row = weight.scale.size > 1
    parameters = {
        suffix: builder.constant(suffix, array if per_row else array.reshape(()))
        for suffix, array in (("scale", weight.scale), ("offset", weight.offset))
        if suffix == "scale" or (array != 0.0).any()
    }
    for use in list(table.uses()):
        node = use.node
        own = _Builder(builder.graph, builder.names, ops.label(node), builder.ours)
        axis, indices = int(ops.attribute(node, "axis", 0)), node.inputs[1]
        if indices is None:
            raise AssertionError(f"'{ops.label(node)}' has no indices")
        rows = own.apply("Gather", [value, indices], "rows", axis=axis)
        result = own.cast(rows, ir.DataType.FLOAT, "reals")
        for suffix, op_type in (("scale", "Mul"), ("offset", "Add")):
            if suffix not in parameters:
                continue
            factor = parameters[suffix]
            if per_row:
                factor = own.apply("Gather", [factor, indices], f"{suffix}s", axis=axis)
            result = own.apply(op_type, [result, factor], f"with_{suffix}")
        output = node.outputs[0]
        name, type_ = output.name, output.type
        graph = node.graph
        if graph is None:
            raise AssertionError(f"'{ops.label(node)}' belongs to no graph")
        graph.insert_before(node, own.nodes)
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.type, result.shape = type_, output.shape
        graph.remove(node, safe=True)
        result.name = name
