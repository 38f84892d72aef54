"""``pack``: a model into an archive, every constant in the form that suits it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import BinaryIO

from ptq_core.archive.coders import Coders
from ptq_core.archive.constants import Packing, pack_constants, pack_decoders, pack_rest
from ptq_core.archive.container import File, Index, Writer
from ptq_core.archive.report import PackReport
from ptq_core.archive.source import Source, open_source
from ptq_core.errors import InputError, Location
from ptq_core.plugins import PluginHost, discover
from ptq_core.types import Event

Emit = Callable[[Event], None]


def pack(
    model: str | Path,
    output: str | Path | None = None,
    *,
    host: PluginHost | None = None,
    progress: Emit | None = None,
) -> PackReport:
    """Write an ONNX model with its external data into an archive, which gives back the same bytes.

    Args:
        model: any ONNX file.
        output: the archive; the model's name with ``.ptqz`` by default.
        host: plugins; all installed ones by default.
        progress: called with an :class:`~ptq_core.types.Event` for every step.

    Raises:
        InputError: the model cannot be read, or the archive not be written; nothing was written.
        PluginError: an encoding failed; nothing was written.
    """
    from ptq_core.graph.model import check_writable  # which takes a while to import

    start = time.perf_counter()
    model = Path(model)
    output = model.with_suffix(".ptqz") if output is None else Path(output)
    emit = progress or _nobody
    report = PackReport(model=model, archive=output)
    with open_source(model) as source:
        if output.resolve() in {(model.parent / name).resolve() for name in source.names}:
            raise InputError(
                "is a file of the model, expected another one for the archive",
                location=Location(file=str(output)),
                hint="choose another output with -o",
            )
        check_writable(output)
        with tempfile.TemporaryDirectory(prefix=".ptq-", dir=output.parent) as folder:
            scratch = Path(folder) / output.name
            with scratch.open("w+b") as stream:
                _write(source, Writer(stream), Coders(host or discover()), report, emit)
            report.bytes_before = sum(source.sizes)
            report.bytes_after = scratch.stat().st_size
            emit(Event(stage="save", kind="start"))
            os.replace(scratch, output)
            emit(Event(stage="save", kind="end"))
    report.seconds = time.perf_counter() - start
    return report


def _nobody(_: Event) -> None:
    pass


def _write(source: Source, writer: Writer, coders: Coders, report: PackReport, emit: Emit) -> None:
    total = len(source.scan.decoders) + len(source.scan.constants)
    done = count(1)

    def step() -> None:
        emit(Event(stage="pack", kind="advance", done=next(done), total=total))

    emit(Event(stage="pack", kind="start", total=total))
    work = Packing(source=source, writer=writer, coders=coders, report=report, step=step)
    pack_decoders(work)
    pack_constants(work)
    for number in range(len(source.files)):
        pack_rest(work, number)
    files = [
        File(name=name, size=size, sha256=_digest(stream))
        for name, size, stream in zip(source.names, source.sizes, source.files, strict=True)
    ]
    used = {one.coder for one in writer.sections} | {one.encoding for one in writer.sections}
    writer.finish(
        Index(
            ptq=metadata.version("ptq-core"),
            encodings={name: coders.versions[name] for name in sorted(used - {""})},
            files=tuple(files),
            sections=tuple(writer.sections),
        )
    )
    emit(Event(stage="pack", kind="end"))


def _digest(stream: BinaryIO) -> str:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
