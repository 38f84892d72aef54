"""Where a model's constants lie in its file, found without reading them.

An ONNX file is a protobuf: fields, each with a number and a kind, some of which are messages again.
Walking them tells at which byte every constant begins, so that its bytes can be cut out and put
back, and the file is the same again, whoever wrote it and whatever fields it has.
Source: protobuf.dev/programming-guides/encoding and onnx.proto.
"""

from __future__ import annotations

import math
import mmap
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Buffer: TypeAlias = bytes | mmap.mmap
_Span = tuple[int, int]

_VARINT, _LONG, _BYTES, _INT = 0, 1, 2, 5  # kinds of fields

DECODERS = "ptq."  # domains of functions that decode constants begin with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """A constant of the model.

    Attributes:
        name: of the tensor; "" for an attribute's.
        data_type: ONNX's number of the element type.
        shape: its dimensions.
        span: where its bytes begin and end in the model's file; None where they are elsewhere, or
            not one piece.
        external: ``location``, ``offset``, ``length`` where they are in another file.
        numbers: the values of a short int64 vector; they tell a shape.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    span: _Span | None
    external: Mapping[str, str]
    numbers: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderNode:
    """A node that decodes constants by a function in ``ptq.<encoding>``.

    Attributes:
        encoding: the domain behind ``ptq.``.
        bits: its attribute.
        constants: by the names of the function's inputs, without ``shape``.
        shape: of the codes.
    """

    encoding: str
    bits: int
    constants: Mapping[str, Constant]
    shape: tuple[int, ...]


@dataclass(kw_only=True)
class Scan:
    """What a model's file holds.

    Attributes:
        constants: all, in the order of the file; of subgraphs and attributes too.
        decoders: nodes that decode constants.
        opset: of the standard domain.
    """

    constants: list[Constant] = field(default_factory=list)
    decoders: list[DecoderNode] = field(default_factory=list)
    opset: int = 1


def scan(data: Buffer) -> Scan:
    """Walk a serialized ModelProto.

    Raises:
        ValueError: it is not one, or was cut short.
    """
    found = Scan()
    functions: dict[tuple[str, str], tuple[str, ...]] = {}
    graphs: list[_Span] = []
    for number, kind, start, end in _fields(data, 0, len(data)):
        if kind != _BYTES:
            continue
        if number == 7:
            graphs.append((start, end))
        elif number == 8:
            domain, version = _opset(data, start, end)
            if domain in ("", "ai.onnx"):
                found.opset = version
        elif number == 25:
            _function(data, start, end, functions, found)
    if len(graphs) != 1:
        raise ValueError("it has no graph")
    _graph(data, graphs[0], ChainMap(), functions, found)
    return found


# -------------------------------------------------------------------------------------- messages

_Functions = dict[tuple[str, str], tuple[str, ...]]


def _opset(data: Buffer, start: int, end: int) -> tuple[str, int]:
    domain, version = "", 1
    for number, kind, one, other in _fields(data, start, end):
        if number == 1 and kind == _BYTES:
            domain = _text(data, one, other)
        elif number == 2 and kind == _VARINT:
            version = one
    return domain, version


def _function(data: Buffer, start: int, end: int, functions: _Functions, found: Scan) -> None:
    name = domain = ""
    inputs: list[str] = []
    nodes: list[_Span] = []
    for number, kind, one, other in _fields(data, start, end):
        if kind != _BYTES:
            continue
        if number == 1:
            name = _text(data, one, other)
        elif number == 4:
            inputs.append(_text(data, one, other))
        elif number == 7:
            nodes.append((one, other))
        elif number == 10:
            domain = _text(data, one, other)
    functions[domain, name] = tuple(inputs)
    for node in nodes:
        _node(data, node, ChainMap(), {}, found)


def _graph(
    data: Buffer,
    span: _Span,
    outer: ChainMap[str, Constant],
    functions: _Functions,
    found: Scan,
) -> None:
    scope, nodes = outer.new_child(), []
    for number, kind, start, end in _fields(data, *span):
        if kind != _BYTES:
            continue
        if number == 1:
            nodes.append((start, end))
        elif number == 5:
            constant = _tensor(data, start, end)
            scope[constant.name] = constant
            found.constants.append(constant)
        elif number == 15:
            _sparse(data, start, end, found)
    for node in nodes:  # which stand before the constants in a file
        _node(data, node, scope, functions, found)


def _node(
    data: Buffer,
    span: _Span,
    scope: ChainMap[str, Constant],
    functions: _Functions,
    found: Scan,
) -> None:
    inputs: list[str] = []
    op_type = domain = ""
    bits = None
    for number, kind, start, end in _fields(data, *span):
        if kind != _BYTES:
            continue
        if number == 1:
            inputs.append(_text(data, start, end))
        elif number == 4:
            op_type = _text(data, start, end)
        elif number == 5:
            name, value = _attribute(data, start, end, scope, functions, found)
            bits = value if name == "bits" else bits
        elif number == 7:
            domain = _text(data, start, end)
    names = functions.get((domain, op_type), ())
    if not domain.startswith(DECODERS) or bits is None or len(names) != len(inputs) or not names:
        return
    constants = [scope.get(name) for name in inputs]
    shape = constants[-1].numbers if constants[-1] is not None else None
    there = {name: one for name, one in zip(names[:-1], constants, strict=False) if one is not None}
    if shape is not None and len(there) == len(names) - 1:
        found.decoders.append(
            DecoderNode(
                encoding=domain.removeprefix(DECODERS), bits=bits, constants=there, shape=shape
            )
        )


def _attribute(
    data: Buffer,
    start: int,
    end: int,
    scope: ChainMap[str, Constant],
    functions: _Functions,
    found: Scan,
) -> tuple[str, int | None]:
    name, value = "", None
    for number, kind, one, other in _fields(data, start, end):
        if number == 3 and kind == _VARINT:
            value = one
        if kind != _BYTES:
            continue
        if number == 1:
            name = _text(data, one, other)
        elif number in (5, 10):
            found.constants.append(_tensor(data, one, other))
        elif number in (6, 11):
            _graph(data, (one, other), scope, functions, found)
        elif number in (22, 23):
            _sparse(data, one, other, found)
    return name, value


def _sparse(data: Buffer, start: int, end: int, found: Scan) -> None:
    for number, kind, one, other in _fields(data, start, end):
        if kind == _BYTES and number in (1, 2):
            found.constants.append(_tensor(data, one, other))


def _tensor(data: Buffer, start: int, end: int) -> Constant:
    name, data_type = "", 0
    shape: list[int] = []
    pieces: list[_Span] = []  # of raw_data, or of float_data, which has the same bytes
    numbers: list[int] = []
    external: dict[str, str] = {}
    for number, kind, one, other in _fields(data, start, end):
        if number == 1:
            shape += [one] if kind == _VARINT else _varints(data, one, other)
        elif number == 2 and kind == _VARINT:
            data_type = one
        elif number in (4, 9) and kind == _BYTES:
            pieces.append((one, other))
        elif number == 7 and (kind == _VARINT or other - one < 1000):
            numbers += [one] if kind == _VARINT else _varints(data, one, other)
        elif number == 8 and kind == _BYTES:
            name = _text(data, one, other)
        elif number == 13 and kind == _BYTES:
            key, value = _entry(data, one, other)
            external[key] = value
    span = pieces[0] if len(pieces) == 1 else None
    if data_type == 7 and span is not None and span[1] - span[0] < 1000:
        raw = bytes(data[span[0] : span[1]])
        numbers = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    return Constant(
        name=name,
        data_type=data_type,
        shape=tuple(shape),
        span=span,
        external=external,
        numbers=tuple(numbers) if len(numbers) == math.prod(shape) and len(shape) == 1 else None,
    )


def _entry(data: Buffer, start: int, end: int) -> tuple[str, str]:
    key = value = ""
    for number, kind, one, other in _fields(data, start, end):
        if kind == _BYTES and number == 1:
            key = _text(data, one, other)
        elif kind == _BYTES and number == 2:
            value = _text(data, one, other)
    return key, value


# ---------------------------------------------------------------------------------------- fields


def _fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number and kind of each field, and its value, or where its bytes begin and end."""
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield number, kind, value, 0
        elif kind == _BYTES:
            size, at = _varint(data, at, end)
            if at + size > end:
                raise ValueError(f"a field of {size} bytes begins at {at}, but there are fewer")
            yield number, kind, at, at + size
            at += size
        elif kind in (_LONG, _INT):
            at += 8 if kind == _LONG else 4
        else:
            raise ValueError(f"there is no field of the kind {kind}, at byte {at}")
    if at != end:
        raise ValueError(f"a field goes on behind byte {end}")


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number does not end at byte {at}")


def _varints(data: Buffer, at: int, end: int) -> list[int]:
    values = []
    while at < end:
        value, at = _varint(data, at, end)
        values.append(value)
    return values


def _text(data: Buffer, start: int, end: int) -> str:
    return bytes(data[start:end]).decode()
