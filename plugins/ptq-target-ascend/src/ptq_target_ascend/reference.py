"""Run a deploy file without the device: the same integers with ONNX's own operators.

onnxruntime loads the result of :func:`runnable`. Sums are exact; between them it computes what the
file says (a product with 1/scale, rounding half to even, a product with the packed scale) in
float32. The NPU may compute float parts in float16, which this does not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ptq_target_ascend.deploy import unpack_scale
from ptq_target_ascend.layers import attribute, names_read

_SHIFT = 128  # of int8 codes to uint8, which onnxruntime has all integer kernels for
_HALF = 16.0  # codes are split so that float32 adds up 8000 of their products exactly


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The deploy file with standard operators; ``model`` is not changed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    writing = _Writing(graph)
    nodes = [new for node in model.graph.node for new in writing.nodes(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in names_read(node)}
    read.update(out.name for out in graph.output)
    kept = [one for one in graph.initializer if one.name in read - writing.constants.keys()]
    kept += [numpy_helper.from_array(array, name) for name, array in writing.constants.items()]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return made


class _Writing:
    """Makes standard nodes of each node, and collects their constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants: dict[str, NDArray[np.generic]] = {}
        self._stored = {one.name: one for one in graph.initializer}
        self._offsets: dict[str, int] = {}  # of tensors of codes
        self._rank: dict[str, int] = {}  # of sums of convolutions

    def nodes(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        if node.op_type == "AscendQuant":
            yield from self._quantize(node)
        elif node.op_type == "AscendDequant":
            yield from self._dequantize(node)
        elif node.input and node.input[0] in self._offsets:
            yield from self._layer(node)
        else:
            yield node

    def _constant(self, name: str, array: object) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def _array(self, name: str) -> NDArray[np.generic]:
        return numpy_helper.to_array(self._stored[name])

    def _quantize(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        out = node.output[0]
        offset = int(attribute(node, "offset", 0.0))
        self._offsets[out] = offset
        scale = self._constant(f"{out}.scale", np.float32(attribute(node, "scale", 0.0)))
        shift = self._constant(f"{out}.shift", np.float32(offset + _SHIFT))
        low = self._constant("codes.low", np.float32(0))
        high = self._constant("codes.high", np.float32(255))
        yield helper.make_node("Mul", [node.input[0], scale], [f"{out}.scaled"])
        yield helper.make_node("Round", [f"{out}.scaled"], [f"{out}.round"])
        yield helper.make_node("Add", [f"{out}.round", shift], [f"{out}.shifted"])
        yield helper.make_node("Clip", [f"{out}.shifted", low, high], [f"{out}.clipped"])
        yield helper.make_node("Cast", [f"{out}.clipped"], [out], to=TensorProto.UINT8)

    def _layer(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        codes, weight, *rest = node.input
        out = node.output[0]
        sums = f"{out}.products" if rest else out
        if node.op_type == "ConvTranspose":
            yield from self._transposed(node, sums)
        else:
            zero = self._constant(f"{codes}.zero", np.uint8(self._offsets[codes] + _SHIFT))
            op_type = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
            # of uint8, too: onnxruntime up to 1.23 has no ConvInteger of int8 weights
            shifted = (self._array(weight).astype(np.int16) + _SHIFT).astype(np.uint8)
            factors = self._constant(f"{weight}.shifted", shifted)
            middle = self._constant("weights.zero", np.uint8(_SHIFT))
            inputs = [codes, factors, zero, middle]
            made = helper.make_node(op_type, inputs, [sums], node.name)
            if node.op_type == "Conv":
                made.attribute.extend(node.attribute)
            yield made
        if node.op_type in ("Conv", "ConvTranspose"):
            self._rank[out] = len(self._stored[weight].dims)
        if rest:
            bias = self._constant(
                f"{out}.shaped_bias", self._per_channel(self._array(rest[0]), out)
            )
            yield helper.make_node("Add", [sums, bias], [out])

    def _transposed(self, node: onnx.NodeProto, sums: str) -> Iterator[onnx.NodeProto]:
        """ConvTranspose knows no integers: twice in float32, on the halves of the codes."""
        codes, out = node.input[0], node.output[0]
        weight = self._constant(
            f"{node.input[1]}.real", self._array(node.input[1]).astype(np.float32)
        )
        offset = self._constant(f"{codes}.offset", np.float32(self._offsets[codes] + _SHIFT))
        half = self._constant("codes.half", np.float32(_HALF))
        yield helper.make_node("Cast", [codes], [f"{out}.codes"], to=TensorProto.FLOAT)
        yield helper.make_node("Sub", [f"{out}.codes", offset], [f"{out}.centred"])
        yield helper.make_node("Div", [f"{out}.centred", half], [f"{out}.parts"])
        yield helper.make_node("Floor", [f"{out}.parts"], [f"{out}.upper"])
        yield helper.make_node("Mul", [f"{out}.upper", half], [f"{out}.rounded"])
        yield helper.make_node("Sub", [f"{out}.centred", f"{out}.rounded"], [f"{out}.lower"])
        for part in ("upper", "lower"):
            made = helper.make_node(
                "ConvTranspose", [f"{out}.{part}", weight], [f"{out}.{part}.sums"]
            )
            made.attribute.extend(node.attribute)
            yield made
            yield helper.make_node(
                "Cast", [f"{out}.{part}.sums"], [f"{out}.{part}.integer"], to=TensorProto.INT32
            )
        factor = self._constant("codes.factor", np.int32(_HALF))
        yield helper.make_node("Mul", [f"{out}.upper.integer", factor], [f"{out}.whole"])
        yield helper.make_node("Add", [f"{out}.whole", f"{out}.lower.integer"], [sums])

    def _dequantize(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        sums, param = node.input
        out = node.output[0]
        values = unpack_scale(self._array(param).astype(np.uint64))
        scale = self._constant(f"{out}.scale", self._per_channel(values, sums))
        yield helper.make_node("Cast", [sums], [f"{out}.real"], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [f"{out}.real", scale], [out])

    def _per_channel(self, array: NDArray[np.generic], sums: str) -> NDArray[np.generic]:
        """One value per channel, in the shape that broadcasts to the sums."""
        spatial: Sequence[int] = (1,) * (self._rank.get(sums, 2) - 2)
        return array.reshape(-1, *spatial)
