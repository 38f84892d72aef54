"""Find the layers that compute with integers in a file with QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BIAS = 2  # the input of Conv, ConvTranspose and Gemm
_SCALES_DIFFER = 1e-5  # more than the rounding of a product of two float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer whose activation and weights are integers.

    Attributes:
        node: the layer.
        codes: the tensor with the activation's codes.
        input_scale: of the activation.
        input_zero_point: of the activation.
        weight: name of the constant with the codes of the weights.
        weight_codes: int8, in the shape of the weights.
        weight_scale: [output channels], or [1].
        bias: int32 codes with the scale of the sums, [output channels], None without one.
        added_by: behind a MatMul, the Add that reads the bias.
        float_bias: the tensor with a bias that stays float, "" without one.
    """

    node: onnx.NodeProto
    codes: str
    input_scale: np.float32
    input_zero_point: int
    weight: str
    weight_codes: NDArray[np.int8]
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.int32] | None = None
    added_by: onnx.NodeProto | None = None
    float_bias: str = ""

    @property
    def name(self) -> str:
        """The layer's name; without one, its result's."""
        return self.node.name or self.node.output[0]

    @property
    def sum_scale(self) -> NDArray[np.float32]:
        """What one unit of the sums stands for: [output channels], or [1]."""
        return self.input_scale * self.weight_scale

    @property
    def channels(self) -> int:
        """Output channels."""
        return channels_of(self.node, self.weight_codes.shape)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or what ONNX takes where it is not written."""
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def channels_of(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    """Output channels of a layer whose weights have this shape."""
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * int(attribute(node, "group", 1))
    return shape[0] if attribute(node, "transB", 0) else shape[-1]


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """The layers with integer activations and weights, in the order of the file.

    Raises:
        ValueError: layers that the device has no form for, all of them with the reason.
    """
    reading = _Reading(model.graph)
    layers, problems = [], []
    for node in model.graph.node:
        if node.op_type not in OPERATORS or not reading.is_quantized(node):
            continue
        try:
            layers.append(reading.layer(node))
        except ValueError as error:
            problems.append(f"{node.op_type} '{node.name or node.output[0]}': {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return layers


def readers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes of a graph that read each tensor; for a body's reads, the node with the body."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in names_read(node):
            readers.setdefault(name, []).append(node)
    return readers


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of tensors that a node reads, those that its bodies read included."""
    yield from filter(None, node.input)
    for one in node.attribute:
        for body in (*([one.g] if one.HasField("g") else []), *one.graphs):
            for inner in body.node:
                yield from names_read(inner)
            yield from (out.name for out in body.output)


class _Reading:
    """A graph with its look-ups."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers = readers_of(graph)
        self.outputs = {out.name for out in graph.output}
        self._initializers = {one.name: one for one in graph.initializer}

    def is_quantized(self, node: onnx.NodeProto) -> bool:
        return self._produced_by("DequantizeLinear", node.input[0]) is not None

    def layer(self, node: onnx.NodeProto) -> Layer:
        decode = self.producers[node.input[0]]
        encode = self._produced_by("QuantizeLinear", decode.input[0])
        if encode is None:
            raise ValueError("its activation is dequantized but not quantized before")
        scale, zero_point = self._parameters(decode)
        if any(
            not np.array_equal(one, other)
            for one, other in zip((scale, zero_point), self._parameters(encode), strict=True)
        ):
            raise ValueError("its activation is quantized and dequantized with other parameters")
        if scale.ndim or zero_point.dtype != np.int8:
            raise ValueError(
                f"its activation is {zero_point.dtype} with scales of shape {scale.shape}, "
                "expected int8 with one scale"
            )
        weight, codes, weight_scale = self._weight(node)
        layer: dict[str, Any] = {
            "node": node,
            "codes": encode.output[0],
            "input_scale": np.float32(scale),
            "input_zero_point": int(zero_point),
            "weight": weight,
            "weight_codes": codes,
            "weight_scale": weight_scale,
        }
        return Layer(**layer, **self._bias(Layer(**layer)))

    def _weight(self, node: onnx.NodeProto) -> tuple[str, NDArray[np.int8], NDArray[np.float32]]:
        decode = self._produced_by("DequantizeLinear", node.input[1])
        codes = None if decode is None else self._constant(decode.input[0])
        if decode is None or codes is None:
            raise ValueError("its weights are no integer constant behind a DequantizeLinear")
        scale, zero_point = self._parameters(decode)
        if codes.dtype != np.int8 or zero_point.any():
            raise ValueError(
                f"its weights are {codes.dtype} with zero point {zero_point.reshape(-1)[0]}, "
                "expected int8 with zero point 0"
            )
        channels = channels_of(node, codes.shape)
        if scale.size not in (1, channels):
            raise ValueError(f"its weights have {scale.size} scales for {channels} channels")
        return decode.input[0], codes, scale.reshape(-1)

    def _bias(self, layer: Layer) -> Mapping[str, Any]:
        """The fields of the layer that say where its bias is."""
        node = layer.node
        if node.op_type == "MatMul":
            add = self._only_reader(node.output[0])
            if add is None or add.op_type != "Add":
                return {}
            other = add.input[1 if add.input[0] == node.output[0] else 0]
            codes = self._bias_codes(layer, other)
            return {} if codes is None else {"bias": codes, "added_by": add}
        name = node.input[_BIAS] if len(node.input) > _BIAS else ""
        if not name:
            return {}
        codes = self._bias_codes(layer, name)
        if codes is not None:
            return {"bias": codes}
        if node.op_type != "Gemm":
            raise ValueError("its bias is no integer constant behind a DequantizeLinear")
        return {"float_bias": name}

    def _bias_codes(self, layer: Layer, name: str) -> NDArray[np.int32] | None:
        decode = self._produced_by("DequantizeLinear", name)
        codes = None if decode is None else self._constant(decode.input[0])
        if decode is None or codes is None or codes.dtype != np.int32:
            return None
        scale, _ = self._parameters(decode)
        if not np.allclose(scale.reshape(-1), layer.sum_scale, rtol=_SCALES_DIFFER, atol=0):
            raise ValueError("its bias has another scale than the sums that it is added to")
        return np.ascontiguousarray(np.broadcast_to(codes.reshape(-1), (layer.channels,)))

    def _parameters(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]]:
        scale = self._constant(node.input[1])
        zero_point = self._constant(node.input[2]) if len(node.input) > _BIAS else None
        if scale is None or zero_point is None:
            raise ValueError(f"the scale or zero point of '{node.name}' is no constant")
        return scale, zero_point

    def _constant(self, name: str) -> NDArray[Any] | None:
        found = self._initializers.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def _produced_by(self, op_type: str, name: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        return node if node is not None and node.op_type == op_type else None

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None
