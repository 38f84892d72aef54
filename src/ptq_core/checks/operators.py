"""Rules on operators, domains, opset and shapes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ptq_core.checks.subject import Subject
from ptq_core.checks.suspicion import Suspicion
from ptq_core.graph import operators as ops


def check_operators(subject: Subject) -> Iterator[Suspicion]:
    """X-* and S-DYNAMIC-SHAPE."""
    yield from _opset(subject)
    yield from _shapes(subject)
    for node in _remaining(subject):
        yield from _operator(subject, node)


def _remaining(subject: Subject) -> Iterator[ir.Node]:
    """The nodes that the device gets to see.

    Where what loads the model knows functions, it puts their bodies in place, and computes what
    depends on constants only, as the decoding of packed weights does.
    """
    if not subject.spec.packed_weights:
        yield from subject.nodes
        return
    functions = dict(subject.model.functions)
    waiting = [node for node in subject.nodes if not _is_folded(subject, node)]
    while waiting:
        node = waiting.pop(0)
        body = functions.pop(node.op_identifier(), None)  # each once
        if body is not None:
            waiting += body.all_nodes()
        elif node.op_identifier() not in subject.model.functions:
            yield node


def _is_folded(subject: Subject, node: ir.Node) -> bool:
    results = [value for value in node.outputs if value.name]
    return bool(results) and all(map(subject.is_static, results)) and subject.pair(node) is None


def _opset(subject: Subject) -> Iterator[Suspicion]:
    newest = subject.spec.maximum_opset
    if newest is not None and subject.opset > newest:
        yield Suspicion(
            "X-OPSET", None, "", f"the opset is {subject.opset}, expected {newest} at most"
        )


def _shapes(subject: Subject) -> Iterator[Suspicion]:
    if not subject.spec.static_shapes:
        return
    for value in subject.model.graph.inputs:
        dims = ops.dimensions(value)
        if value.is_initializer() or (dims is not None and all(type(one) is int for one in dims)):
            continue
        shown = (
            "of unknown rank"
            if dims is None
            else ("[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]")
        )
        message = f"the input is {shown}, expected numbers only"
        yield Suspicion("S-DYNAMIC-SHAPE", None, value.name or "", message)


def _operator(subject: Subject, node: ir.Node) -> Iterator[Suspicion]:
    accepts = subject.spec.accepts
    domain = "" if node.domain in ops.DEFAULT_DOMAINS else node.domain
    if domain not in accepts.domains:
        known = ", ".join(f"'{one}'" for one in accepts.domains)
        message = f"{node.op_type} is of the domain '{domain}', expected {known}"
        yield Suspicion("X-DOMAIN", node, "", message)
    elif node.op_type in accepts.forbidden:
        message = f"found {node.op_type}: {accepts.forbidden[node.op_type]}"
        yield Suspicion("X-OP-FORBIDDEN", node, "", message)
    elif not domain and accepts.operators and node.op_type not in accepts.operators:
        message = f"found {node.op_type}, which is none of the {len(accepts.operators)} known types"
        yield Suspicion("X-OP-UNSUPPORTED", node, "", message)
