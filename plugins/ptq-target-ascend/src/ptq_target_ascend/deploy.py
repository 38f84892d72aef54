"""Write layers with integers in the form that Ascend's compiler takes.

The form is that of AMCT, the toolkit of the NPU's vendor: AscendQuant in front of a layer, integer
weights and biases as they are, AscendDequant behind it. ONNX does not know such a Conv, so no
checker passes the file and no other runtime loads it; :mod:`ptq_target_ascend.reference` runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ptq_target_ascend.layers import Layer, attribute, names_read

_SHOWN = 5  # names in a message
_LARGEST = (1 << 31) - 1  # bytes of a protobuf


def to_deploy(model: onnx.ModelProto, layers: Sequence[Layer]) -> onnx.ModelProto:
    """Change a model with Q/DQ, in place, into the one for the compiler; it is returned, too.

    What follows a layer (Relu, Add, pools) stays float: the compiler merges it.

    Raises:
        ValueError: some other node reads what is quantized for a layer.
    """
    graph = model.graph
    kept = list(_nodes(graph, layers))
    read = {name for node in kept for name in names_read(node)}
    read.update(out.name for out in graph.output)
    produced = {name for node in graph.node for name in node.output}
    gone = produced - {name for node in kept for name in node.output}
    if left := sorted(read & gone):
        shown = ", ".join(left[:_SHOWN]) + ("" if len(left) <= _SHOWN else ", ...")
        raise ValueError(
            f"{len(left)} quantized tensors are read by more than the layers that compute with "
            f"integers: {shown}"
        )
    constants = {one.name: one for one in graph.initializer}
    added = {one.name: one for one in _constants(layers)}
    names = Counter(name for node in kept for name in node.output)
    names.update(constants.keys() | {one.name for one in graph.input})
    names.update(added.keys())
    if taken := sorted(name for name, times in names.items() if name and times > 1):
        raise ValueError(f"the model has tensors called {', '.join(taken[:_SHOWN])}; rename them")
    constants |= added
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(one for name, one in constants.items() if name in read)
    return model


def serialized(model: onnx.ModelProto) -> bytes:
    """The file's bytes; the same model gives the same.

    Raises:
        ValueError: it is larger than a protobuf can be.
    """
    size = model.ByteSize()
    if size > _LARGEST:
        raise ValueError(
            f"the file for the compiler would have {size} bytes, a protobuf can have {_LARGEST}: "
            "split the model"
        )
    return bytes(model.SerializeToString(deterministic=True))


def pack_scale(scale: NDArray[np.float32]) -> NDArray[np.uint64]:
    """AscendDequant's parameter: the bits of the float32 scale in the lower half of 64.

    The upper half has place for an offset of the weights, which the compiler takes as 0 only.
    """
    return np.ascontiguousarray(scale, np.float32).view(np.uint32).astype(np.uint64)


def unpack_scale(param: NDArray[np.uint64]) -> NDArray[np.float32]:
    """The scales in AscendDequant's parameter."""
    return (param & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)


def _nodes(graph: onnx.GraphProto, layers: Sequence[Layer]) -> Iterator[onnx.NodeProto]:
    """The nodes of the new graph, in order."""
    integer = {one.node.output[0]: one for one in layers}
    adds = {one.added_by.output[0]: one for one in layers if one.added_by is not None}
    encoders = {one.codes: one for one in layers}
    taken = {name for one in layers for name in one.node.input}
    taken.update(name for one in layers if one.added_by for name in one.added_by.input)
    for node in graph.node:
        name = node.output[0]
        if name in encoders:
            yield _quantize(node, encoders[name])
        elif node.op_type == "DequantizeLinear" and name in taken:
            continue
        elif name in adds:
            yield from _bias_and_dequantize(adds[name], node)
        elif name in integer:
            yield from _layer(integer[name])
        else:
            yield node


def _quantize(encode: onnx.NodeProto, layer: Layer) -> onnx.NodeProto:
    return helper.make_node(
        "AscendQuant",
        [encode.input[0]],
        [encode.output[0]],
        f"{encode.input[0]}.quant",
        scale=float(np.float32(1) / layer.input_scale),  # the parser takes floats only
        offset=float(layer.input_zero_point),
        dst_type="INT8",
    )


def _layer(layer: Layer) -> Iterator[onnx.NodeProto]:
    node, result = layer.node, layer.node.output[0]
    inputs = [layer.codes, _weight_name(layer)]
    if layer.added_by is not None:  # the Add behind it has the bias
        yield _sums(node, inputs, result)
        return
    if layer.bias is not None:
        inputs.append(_bias_name(layer))
    yield _sums(node, inputs, f"{result}.sums")
    if not layer.float_bias:
        yield _dequantize(layer, result)
        return
    yield _dequantize(layer, f"{result}.dequantized")
    yield helper.make_node(
        "Add",
        [f"{result}.dequantized", layer.float_bias],
        [result],
        f"{layer.name}.add_bias",
    )


def _bias_and_dequantize(layer: Layer, add: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The Add behind a MatMul, of integers; the toolkit wants the bias second."""
    product = layer.node.output[0]
    yield _sums(add, [product, _bias_name(layer)], f"{product}.sums")
    yield _dequantize(layer, add.output[0])


def _sums(node: onnx.NodeProto, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    made = helper.make_node(node.op_type, inputs, [output], node.name)
    made.attribute.extend(one for one in node.attribute if one.name != "transB")
    return made


def _dequantize(layer: Layer, result: str) -> onnx.NodeProto:
    return helper.make_node(
        "AscendDequant",
        [f"{layer.node.output[0]}.sums", _param_name(layer)],
        [result],
        f"{layer.name}.dequant",
        dtype=0,  # float32
    )


def _param_name(layer: Layer) -> str:
    return f"{layer.node.output[0]}.dequant.param"


def _bias_name(layer: Layer) -> str:
    return f"{layer.node.output[0]}.bias"


def _weight_name(layer: Layer) -> str:
    turned = attribute(layer.node, "transB", 0)
    return f"{layer.weight}.transposed" if turned else layer.weight


def _constants(layers: Iterable[Layer]) -> Iterator[onnx.TensorProto]:
    for layer in layers:
        arrays: dict[str, NDArray[Any]] = {_param_name(layer): pack_scale(layer.sum_scale)}
        if layer.bias is not None:
            arrays[_bias_name(layer)] = layer.bias
        if attribute(layer.node, "transB", 0):
            # as the toolkit has it: the matrix of weights is never transposed on the NPU
            arrays[_weight_name(layer)] = np.ascontiguousarray(layer.weight_codes.T)
        for name, array in arrays.items():
            yield numpy_helper.from_array(array, name)
