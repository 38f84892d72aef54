"""Rules on the borders between integers and floats, and on who reads what."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ptq_core.checks.coded import Coded
from ptq_core.checks.subject import DEQUANTIZE, QUANTIZE, Subject, decoded, readers
from ptq_core.checks.suspicion import Suspicion
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import only_consumer


def check_borders(subject: Subject) -> Iterator[Suspicion]:
    """D-FLOAT-EDGE-IN, R-RESIDUAL, A-S8-MULTI-CONSUMER and A-OP-NOT-QUANTISABLE."""
    for coded in subject.all_coded():
        if coded.role == "activation" and coded.dtype == "int8":
            yield from _int8(subject, coded)
    for node in subject.nodes:
        if subject.pair(node) is not None:
            continue
        rule = subject.rule(node)
        if rule is None:
            yield from _not_quantizable(subject, node)
        elif rule.quantize == "residual":
            yield from _residual(subject, node)
        else:
            yield from _mixed(subject, node)


def _int8(subject: Subject, coded: Coded) -> Iterator[Suspicion]:
    node = coded.node
    if node.op_type.startswith("QLinear"):
        message = f"{node.op_type} computes with int8 activations, expected uint8"
        yield Suspicion("A-S8-MULTI-CONSUMER", node, coded.tensor, message)
    data = node.inputs[0]
    if node.op_type != QUANTIZE or data is None:
        return
    others = map(subject.pair, readers(data, QUANTIZE))
    equal = [one.node for one in others if one is not None and one.same_as(coded)]
    count = sum(map(_count_readers, equal))  # onnxruntime makes one of them
    if count > 1 and node is equal[0]:
        message = f"the int8 codes have {count} readers, expected one, or uint8"
        yield Suspicion("A-S8-MULTI-CONSUMER", node, coded.tensor, message)


def _count_readers(encode: ir.Node) -> int:
    """Of the codes that a QuantizeLinear makes, or of what is dequantized from them."""
    count = int(encode.outputs[0].is_graph_output())
    for reader in readers(encode.outputs[0]):
        behind = reader.outputs[0]
        decodes = reader.op_type == DEQUANTIZE
        count += len(list(behind.uses())) + behind.is_graph_output() if decodes else 1
    return count


def _mixed(subject: Subject, node: ir.Node) -> Iterator[Suspicion]:
    rule = subject.spec.operators[node.op_type]
    operands = subject.operands(node)
    integers = [one for one in map(subject.activation, operands) if one is not None]
    floats = [one for one in operands if subject.source(one) is None]
    if not integers or not floats:
        return
    if node.op_type in ops.LINEAR:
        if subject.is_static(floats[0]):
            if subject.spec.skip_guard != "none" or not subject.is_float_constant(floats[0]):
                return
            if rule.output == "quantized" and _is_of_use(subject, integers[0], node):
                return  # it was left in float, and the layer in front cannot do without codes
        elif not rule.two_activations:
            return
    elif rule.quantize != "always" and not readers(subject.behind(node)[0], QUANTIZE):
        return
    for value in floats:
        message = (
            f"'{value.name}' is float beside '{integers[0].node.outputs[0].name}', which is "
            "dequantized; expected both behind DequantizeLinear"
        )
        yield Suspicion("D-FLOAT-EDGE-IN", node, value.name or "", message)


def _residual(subject: Subject, node: ir.Node) -> Iterator[Suspicion]:
    operands = [one for one in subject.operands(node) if not subject.is_static(one)]
    coded = [subject.activation(one) for one in operands]
    own = [_own_result(subject, one, code) for one, code in zip(operands, coded, strict=True)]
    layers = [layer for layer in own if layer is not None]
    count = sum(code is not None for code in coded)
    if len(set(operands)) != 2 or not layers or count == 1:
        return
    message = (
        f"{'both' if count else 'none'} of its operands are quantized, expected one: not that of "
        f"{layers[0].op_type} '{ops.label(layers[0])}'"
    )
    yield Suspicion("R-RESIDUAL", node, node.outputs[0].name or "", message)


def _own_result(subject: Subject, value: ir.Value, coded: Coded | None) -> ir.Node | None:
    """The integer convolution that an operand comes straight from, if nobody else reads it."""
    source: ir.Value | None = value if only_consumer(value) is not None else None
    if coded is not None:
        data = coded.node.inputs[0]
        encode = None if data is None else data.producer()
        if encode is None or encode.op_type != QUANTIZE or len(decoded(encode)) > 1:
            return None
        source = encode.inputs[0]
    layer = None if source is None else source.producer()
    if layer is None or layer.op_type not in ops.CONVOLUTIONS or not subject.is_integer(layer):
        return None
    return layer


def _not_quantizable(subject: Subject, node: ir.Node) -> Iterator[Suspicion]:
    """Of an operator that the target has no integer form of."""
    if not ops.is_standard(node) or not node.inputs or ops.has_subgraph(node):
        return
    values = subject.operands(node) if node.op_type in ops.LINEAR else list(node.inputs)
    found = [one for one in map(subject.source, values) if one is not None]
    constants = [one for one in found if one.role != "activation"]
    activations = [one for one in found if one.role == "activation" and not subject.is_guard(one)]
    if not activations or not any(readers(output, QUANTIZE) for output in node.outputs):
        return
    if constants:
        message = f"its constant '{constants[0].tensor}' is quantized"
    elif not any(_is_of_use(subject, one, node) for one in activations):
        message = f"nobody else needs the codes '{activations[0].tensor}' in front of it"
    else:
        return
    rule = subject.spec.operators.get(node.op_type)
    attributes = "" if rule is None or rule.quantize == "never" else " with these attributes"
    message += f", but the target has no integer form of {node.op_type}{attributes}"
    yield Suspicion("A-OP-NOT-QUANTISABLE", node, node.outputs[0].name or "", message)


def _is_of_use(subject: Subject, coded: Coded, node: ir.Node) -> bool:
    """Whether an integer operator makes or reads the codes in front of a node."""
    value = coded.node.inputs[0]
    encode = None if value is None else value.producer()
    if encode is None or encode.op_type != QUANTIZE:
        return True  # they come from elsewhere as integers
    if any(one is not node and subject.is_integer(one) for one in decoded(encode)):
        return True
    value, activated = encode.inputs[0], False
    while value is not None and (maker := value.producer()) is not None:
        rule = subject.rule(maker)
        if rule is not None and subject.is_integer(maker):
            return rule.output == "quantized" or (rule.output == "as_needed" and activated)
        if maker.op_type not in ("Relu", "Clip", "Add"):  # what is merged into a layer
            return False
        activated = activated or maker.op_type != "Add"
        value = maker.inputs[0]
    return False
