"""What Ascend's compiler would refuse, or compute wrongly, in a file of its own form.

The codes are described in docs/reference/ascend-target.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ptq_core.api import Finding
from ptq_target_ascend.deploy import pack_scale, unpack_scale
from ptq_target_ascend.layers import OPERATORS, attribute, channels_of, readers_of
from ptq_target_ascend.lowering import load

_MAKE_AGAIN = "make the file again from the float model"
_LOWEST, _HIGHEST = -128, 127
_LARGEST_SUM = 2**31 - 1


def check(model: bytes | Path) -> Iterator[Finding]:
    """Findings for a file with AscendQuant, or with Q/DQ for it."""
    graph = load(model).graph
    checking = _Checking(graph)
    yield from checking.biases()
    if any(node.op_type in ("AscendQuant", "AscendDequant") for node in graph.node):
        yield from checking.nodes()


class _Checking:
    """A graph with its look-ups."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.readers = readers_of(graph)
        self.outputs = {out.name for out in graph.output}
        self.constants = {one.name: one for one in graph.initializer}
        self.codes = {node.output[0] for node in self.graph.node if node.op_type == "AscendQuant"}
        self.layers: dict[str, onnx.NodeProto] = {}  # by their sums, that of a bias Add included

    def biases(self) -> Iterator[Finding]:
        """Of the file with Q/DQ, too."""
        for node in self.graph.node:
            name = node.input[0] if node.op_type == "DequantizeLinear" else ""
            if name and self._kind(name) == TensorProto.INT32:
                yield from self._saturated(node, name)

    def _saturated(self, node: onnx.NodeProto, name: str) -> Iterator[Finding]:
        most = int(np.abs(self._array(name).astype(np.int64)).max(initial=0))
        if most >= _LARGEST_SUM:
            yield Finding(
                code="A-BIAS-RANGE",
                severity="error",
                node=_label(node),
                tensor=name,
                message=f"the int32 bias reaches {most}, expected less than {_LARGEST_SUM}",
                because="the bias is cut off there, and sums with it overflow",
                fix="leave the layer out with skip_quant_node, or widen the scale of its weights",
            )

    def nodes(self) -> Iterator[Finding]:
        for node in self.graph.node:
            if node.op_type == "AscendQuant":
                yield from self._quantize(node)
            elif node.op_type == "AscendDequant":
                yield from self._dequantize(node)
            elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield self._error(
                    "A-DEPLOY-QDQ",
                    node,
                    f"{node.op_type} stands beside AscendQuant",
                    "the compiler does not merge it: what is behind it computes in float",
                )
            elif any(name in self.codes for name in node.input):
                yield from self._layer(node)
            elif node.op_type == "Add" and node.input[0] in self.layers:
                yield from self._added_bias(node)

    def _error(self, code: str, node: onnx.NodeProto, message: str, because: str) -> Finding:
        return Finding(
            code=code,
            severity="error",
            node=_label(node),
            tensor=node.output[0],
            message=message,
            because=because,
            fix=_MAKE_AGAIN,
        )

    def _quantize(self, node: onnx.NodeProto) -> Iterator[Finding]:
        scale, offset = attribute(node, "scale", None), attribute(node, "offset", None)
        if not isinstance(scale, float) or not math.isfinite(scale) or scale <= 0:
            yield self._error(
                "A-QUANT-SCALE",
                node,
                f"the attribute scale is {scale}, expected a positive float: 1 / scale of a code",
                "the compiler takes 0 for what is no float; every code becomes the offset",
            )
        whole = isinstance(offset, float) and offset.is_integer()
        if not whole or not _LOWEST <= offset <= _HIGHEST:
            yield self._error(
                "A-QUANT-OFFSET",
                node,
                f"the attribute offset is {offset}, expected a whole float in "
                f"[{_LOWEST}, {_HIGHEST}]",
                "padding is not zero: codes of zero lie between two integers, or outside",
            )
        kind = attribute(node, "dst_type", b"INT8")
        if kind != b"INT8":
            yield self._error(
                "A-QUANT-TYPE",
                node,
                f"the attribute dst_type is {kind!r}, expected INT8",
                "the weights are int8, and few chips multiply them with another type",
            )

    def _layer(self, node: onnx.NodeProto) -> Iterator[Finding]:
        if node.op_type not in OPERATORS or node.input[0] not in self.codes:
            yield self._error(
                "A-DEPLOY-OPERATOR",
                node,
                f"{node.op_type} reads codes, expected {', '.join(OPERATORS)} as the first input",
                "the compiler has no integer form of it",
            )
            return
        self.layers[node.output[0]] = node
        weight = node.input[1]
        if self._kind(weight) != TensorProto.INT8:
            yield self._error(
                "A-DEPLOY-WEIGHT",
                node,
                f"the weights '{weight}' are {self._kind_name(weight)}, expected an int8 constant",
                "the compiler has no form of int8 activations with other weights",
            )
        if len(node.input) > 2 and node.input[2]:
            yield from self._bias(node, node, node.input[2])
        yield from self._only_dequantized(node, bias_may_follow=node.op_type == "MatMul")

    def _added_bias(self, node: onnx.NodeProto) -> Iterator[Finding]:
        layer = self.layers[node.output[0]] = self.layers[node.input[0]]
        yield from self._bias(node, layer, node.input[1])
        yield from self._only_dequantized(node, bias_may_follow=False)

    def _bias(self, node: onnx.NodeProto, layer: onnx.NodeProto, name: str) -> Iterator[Finding]:
        size = math.prod(self.constants[name].dims) if name in self.constants else 0
        channels = self._channels(layer)
        if self._kind(name) != TensorProto.INT32 or size != channels:
            yield self._error(
                "A-DEPLOY-BIAS",
                node,
                f"the bias '{name}' is {self._kind_name(name)} with {size} values, expected int32 "
                f"with {channels}",
                "it is added to sums of int32 products",
            )

    def _only_dequantized(
        self, node: onnx.NodeProto, *, bias_may_follow: bool
    ) -> Iterator[Finding]:
        sums = node.output[0]
        kinds = [reader.op_type for reader in self.readers.get(sums, [])]
        expected = {"AscendDequant"} | ({"Add"} if bias_may_follow else set())
        if len(kinds) != 1 or kinds[0] not in expected or sums in self.outputs:
            found = ", ".join(kinds + ["the graph's output"] * (sums in self.outputs))
            yield self._error(
                "A-DEPLOY-DEQUANT",
                node,
                f"its int32 sums are read by {found or 'nobody'}, expected one AscendDequant",
                "sums without a scale mean nothing to what follows",
            )

    def _dequantize(self, node: onnx.NodeProto) -> Iterator[Finding]:
        name = node.input[1] if len(node.input) > 1 else ""
        kind = self._kind_name(name)
        if self._kind(name) != TensorProto.UINT64:
            yield self._error(
                "A-DEPLOY-PARAM",
                node,
                f"the parameter '{name}' is {kind}, expected a uint64 constant",
                "the compiler reads a float32 scale in the lower half of each value",
            )
            return
        param = self._array(name)
        scale = unpack_scale(param)
        layer = self.layers.get(node.input[0])
        lengths = {1} if layer is None else {1, self._channels(layer)}
        problems = []
        if param.ndim != 1 or (layer is not None and param.size not in lengths):
            shown = " or ".join(map(str, sorted(lengths)))
            problems.append(f"has the shape {list(param.shape)}, expected [{shown}]")
        if not np.all(np.isfinite(scale) & (scale > 0)):
            problems.append("holds scales that are not positive")
        if not np.array_equal(pack_scale(scale), param):
            problems.append("has an offset of the weights in the upper half, expected 0")
        for problem in problems:
            yield self._error(
                "A-DEPLOY-PARAM",
                node,
                f"the parameter '{name}' {problem}",
                "channels get the wrong scale",
            )

    def _channels(self, layer: onnx.NodeProto) -> int:
        weight = self.constants.get(layer.input[1])
        return 0 if weight is None else channels_of(layer, tuple(weight.dims))

    def _kind(self, name: str) -> int | None:
        return self.constants[name].data_type if name in self.constants else None

    def _kind_name(self, name: str) -> str:
        kind = self._kind(name)
        return "no constant" if kind is None else str(helper.tensor_dtype_to_np_dtype(kind))

    def _array(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.constants[name])


def _label(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]
