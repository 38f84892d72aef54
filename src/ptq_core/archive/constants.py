"""The constants of a model, each into a section of the form that suits it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_core.archive import forms
from ptq_core.archive.coders import CODER, Coders
from ptq_core.archive.container import Array, Place, Section, Writer, gaps
from ptq_core.archive.report import PackedTensor, PackReport
from ptq_core.archive.source import TYPES, Source
from ptq_core.archive.wire import Constant, DecoderNode
from ptq_core.errors import InputError, PluginError

BLOCK = 1 << 24  # elements, or bytes: so much is in memory at once

_MANY = 1024  # elements from which a table of their shares pays off
_TINY = 64  # bytes below which a constant stays where it is
_SAMPLE = 1 << 20  # bytes, to try another form
_SMALL = 4096  # bytes below which constants of one type are stored together


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """What packing a model works with; ``step`` is called for each decoder and constant."""

    source: Source
    writer: Writer
    coders: Coders
    report: PackReport
    step: Callable[[], None]


# -------------------------------------------------------------------- constants of our decoders


def pack_decoders(work: Packing) -> None:
    """Store the codes that our decoders' constants stand for, where those come back from them."""
    source, coders = work.source, work.coders
    failures: dict[str, list[str]] = {}
    for node in source.scan.decoders:
        work.step()
        name = next(iter(node.constants.values())).name
        arrays = _arrays(node, source)
        if arrays is None:
            continue
        try:
            encoding = coders.get(node.encoding)
            codes = coders.inverted(encoding, arrays, node.bits, node.shape, source.scan.opset)
        except (PluginError, InputError) as error:
            failures.setdefault(error.problems[0].message, []).append(name)
            continue
        found = _decoder(node, arrays, encoding, codes, work)
        work.report.tensors += [] if found is None else [found]
    for reason, names in failures.items():
        work.report.notes.append(
            f"the constants of {len(names)} decoders are stored as they are, the first is "
            f"'{names[0]}': {reason}"
        )


def _arrays(node: DecoderNode, source: Source) -> dict[str, Any] | None:
    """A decoder's constants, None where they cannot be read or are not worth it."""
    if any(size >= 1 << 63 for size in node.shape) or math.prod(node.shape) < _MANY:
        return None
    arrays = {}
    for name, constant in node.constants.items():
        place = source.place(constant)
        kind, bits = TYPES.get(constant.data_type, ("", 0))
        if place is None or bits < 8 or not hasattr(np, kind):
            return None
        arrays[name] = np.frombuffer(source.read(place), kind).reshape(constant.shape)
    return arrays


def _decoder(
    node: DecoderNode, arrays: dict[str, Any], encoding: str, codes: Any, work: Packing
) -> PackedTensor | None:
    source, constants = work.source, list(node.constants.values())
    places = [place for one in constants if (place := source.place(one)) is not None]
    # what another decoder has taken, too, is given back twice
    free = [place for place in dict.fromkeys(places) if source.is_free(place)]
    before = sum(place.size for place in free)
    data = work.coders.compress(codes, node.bits)
    if len(data) >= before:
        return None
    section = Section(
        form="encoded",
        places=tuple(places),
        size=len(data),
        crc32=zlib.crc32(b"".join(map(source.read, places))),
        shape=node.shape,
        bits=node.bits,
        coder=CODER,
        encoding=encoding,
        opset=source.scan.opset,
        arrays=tuple(
            Array(name=short, dtype=str(one.dtype), shape=one.shape)
            for short, one in arrays.items()
        ),
    )
    work.writer.add(section, data)
    for place in free:
        source.take(place)
    counts = np.zeros(1 << 16, np.int64)
    forms.add_counts(codes, counts)
    return PackedTensor(
        name=constants[0].name,
        kind="encoded",
        stored_as=f"{encoding} {node.bits} bits",
        elements=codes.size,
        entropy=forms.entropy(counts),
        bytes_before=before,
        bytes_after=len(data),
    )


# ------------------------------------------------------------------------------ other constants


def pack_constants(work: Packing) -> None:
    """Store the other constants: integers coded, what else is a number by its bytes."""
    source, report = work.source, work.report
    small: dict[str, list[Place]] = {}
    for constant in source.scan.constants:
        work.step()
        place = source.place(constant)
        if place is None or place.size < _TINY or not source.is_free(place):
            continue
        source.take(place)
        kind, bits = TYPES[constant.data_type]
        count = math.prod(constant.shape)
        if count >= _MANY and (kind in forms.INTEGERS or bits == 8):
            report.tensors.append(_integers(constant, place, work))
        elif place.size < _SMALL:
            small.setdefault(kind, []).append(place)
        else:
            after = sum(_planes([part], bits, work) for part in _parts(place, bits))
            report.tensors.append(
                PackedTensor(
                    name=constant.name,
                    kind="numbers",
                    stored_as=kind,
                    elements=count,
                    bytes_before=place.size,
                    bytes_after=after,
                )
            )
    widths = dict(TYPES.values())
    for kind, places in small.items():
        size = sum(place.size for place in places)
        report.tensors.append(
            PackedTensor(
                name="",
                kind="numbers",
                stored_as=kind,
                elements=size * 8 // widths[kind],
                bytes_before=size,
                bytes_after=_planes(places, widths[kind], work),
            )
        )


def _parts(place: Place, bits: int) -> list[Place]:
    """Places of at most so many elements that they fit into memory."""
    size = BLOCK * bits // 8
    return [
        Place(place.file, at, min(size, place.end - at)) for at in range(place.at, place.end, size)
    ]


def _integers(constant: Constant, place: Place, work: Packing) -> PackedTensor:
    name, bits = TYPES[constant.data_type]
    kind: Any = name if name in forms.INTEGERS else "uint8"
    count = math.prod(constant.shape)
    after, counts = 0, np.zeros(1 << 16, np.int64)
    for start, part in zip(range(0, count, BLOCK), _parts(place, bits), strict=True):
        raw = work.source.read(part)
        codes = forms.to_codes(raw, kind, min(BLOCK, count - start))
        data = work.coders.compress(codes, bits)
        forms.add_counts(codes, counts)
        if _repeats(raw, len(data)) or forms.from_codes(codes, kind) != raw:
            after += _planes([part], bits, work)
            continue
        section = Section(
            form="codes",
            places=(part,),
            size=len(data),
            crc32=zlib.crc32(raw),
            kind=kind,
            shape=codes.shape,
            bits=bits,
            coder=CODER,
        )
        work.writer.add(section, data)
        after += len(data)
    return PackedTensor(
        name=constant.name,
        kind="integers",
        stored_as=name,
        elements=count,
        entropy=forms.entropy(counts),
        bytes_before=place.size,
        bytes_after=after,
    )


def _repeats(raw: bytes, coded: int) -> bool:
    """Whether finding repetitions does better than coding each integer; tried at the beginning."""
    sample = raw[:_SAMPLE]
    return len(zlib.compress(sample, 1)) * len(raw) <= coded * len(sample)


def _planes(places: Sequence[Place], bits: int, work: Packing) -> int:
    """Store elements by their bytes; returns how many bytes they take."""
    raw = b"".join(map(work.source.read, places))
    width = max(bits // 8, 1)
    data = forms.to_planes(raw, width)
    work.writer.add(
        Section(
            form="planes",
            places=tuple(places),
            size=len(data),
            crc32=zlib.crc32(raw),
            width=width,
        ),
        data,
    )
    return len(data)


def pack_rest(work: Packing, number: int) -> None:
    """Store what no section of a file has: the graph, names, what is between constants."""
    source, writer = work.source, work.writer
    left = gaps(writer.sections, number, source.sizes[number])
    large = [part for place in left if place.size > BLOCK for part in _parts(place, 8)]
    after = sum(_planes([place], 8, work) for place in large)
    left = gaps(writer.sections, number, source.sizes[number])
    raw = b"".join(map(source.read, left))
    data = forms.compress(raw)
    section = Section(form="bytes", rest=number, size=len(data), crc32=zlib.crc32(raw))
    writer.add(section, data)
    work.report.tensors.append(
        PackedTensor(
            name=source.names[number],
            kind="rest",
            stored_as="graph" if number == 0 else "bytes",
            elements=0,
            bytes_before=len(raw) + sum(place.size for place in large),
            bytes_after=len(data) + after,
        )
    )
