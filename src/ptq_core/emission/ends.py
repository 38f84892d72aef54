"""Integer inputs and outputs, for devices whose host hands over codes instead of floats."""

from __future__ import annotations

import onnx_ir as ir

from ptq_core.graph import operators as ops


def integer_ends(model: ir.Model) -> list[str]:
    """Let float inputs and outputs of a quantized model be codes, in place.

    An input that everybody reads through one QuantizeLinear takes that one's codes; an output that
    a DequantizeLinear makes gives the codes before it. Names stay.

    Returns:
        A sentence for each: its type, scale and zero point, or why it stays float.
    """
    graph = model.graph
    notes = [_input(graph, value) for value in list(graph.inputs) if ops.is_float(value)]
    for index, value in enumerate(list(graph.outputs)):
        if ops.is_float(value):
            notes.append(_output(graph, index, value))
    return notes


def _input(graph: ir.Graph, value: ir.Value) -> str:
    name = f"input '{value.name}'"
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or readers[0].op_type != "QuantizeLinear" or value.is_graph_output():
        return f"{name} stays float: float operators read it"
    encode = readers[0]
    codes, described = encode.outputs[0], _described(encode)
    value.dtype = _type(encode)
    codes.replace_all_uses_with(value)
    graph.remove(encode, safe=True)
    return f"{name} takes {described}"


def _output(graph: ir.Graph, index: int, value: ir.Value) -> str:
    name = f"output '{value.name}'"
    decode = value.producer()
    codes = None if decode is None else decode.inputs[0]
    if decode is None or codes is None or decode.op_type != "DequantizeLinear":
        return f"{name} stays float: a float operator makes it"
    if value.uses() or codes.is_initializer():
        return f"{name} stays float: operators of the model read it, too"
    known, shape, described = value.name, value.shape, _described(decode)
    value.name = f"{known}_dequantized"
    codes.name, codes.shape, codes.dtype = known, shape, _type(decode)
    graph.outputs[index] = codes
    graph.remove(decode, safe=True)
    return f"{name} gives {described}"


def _type(node: ir.Node) -> ir.DataType:
    """Of the codes, which the zero point has, too."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is None or zero_point.const_value is None:
        return ir.DataType.UINT8
    return zero_point.const_value.dtype


def _described(node: ir.Node) -> str:
    """Of a QuantizeLinear or DequantizeLinear: the codes."""
    scale, zero_point = (ops.scalar(value) or 0.0 for value in node.inputs[1:3])
    return f"{_type(node).name.lower()}: real = {scale:.9g} * (code - {zero_point:.0f})"
