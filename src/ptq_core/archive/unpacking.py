"""``unpack``: the files in an archive, byte for byte; ``load``: its model as bytes."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ptq_core.archive import forms
from ptq_core.archive.coders import Coders
from ptq_core.archive.container import (
    Archive,
    File,
    Index,
    Place,
    Section,
    gaps,
    is_archive,
    open_archive,
)
from ptq_core.archive.report import UnpackReport
from ptq_core.archive.source import is_inside, open_source
from ptq_core.errors import InputError, Location, ModelError, Problem
from ptq_core.plugins import PluginHost, discover
from ptq_core.types import Event

# A model of more bytes cannot be one protobuf; see EXTERNAL_DATA_THRESHOLD in graph.model.
_LARGEST = 1_800_000_000
_FROM_FILE = "onnxruntime takes a model with external data by its path"

Emit = Callable[[Event], None]


def unpack(
    archive: str | Path,
    output: str | Path | None = None,
    *,
    host: PluginHost | None = None,
    progress: Emit | None = None,
) -> UnpackReport:
    """Write the model in an archive, with its external data, as it was packed.

    Args:
        archive: of :func:`~ptq_core.archive.pack`.
        output: the model's file; the archive's name with ``.onnx`` by default. External data lie
            beside it, where the model expects them.
        host: plugins; all installed ones by default.
        progress: called with an :class:`~ptq_core.types.Event` for every step.

    Raises:
        InputError: the archive is none, damaged, of another version, or needs an encoding that is
            not there; or the output cannot be written. Nothing was written.
        PluginError: an encoding failed; nothing was written.
    """
    from ptq_core.graph.model import check_writable  # which takes a while to import

    start = time.perf_counter()
    archive = Path(archive)
    output = archive.with_suffix(".onnx") if output is None else Path(output)
    emit = progress or _nobody
    with open_archive(archive) as opened:
        if output.resolve() == archive.resolve():
            raise InputError(
                "is the archive itself, expected another file for the model",
                location=Location(file=str(output)),
                hint="choose another output with -o",
            )
        check_writable(output)
        names = [output.name, *(file.name for file in opened.index.files[1:])]
        _check_names(opened, output, names)
        with tempfile.TemporaryDirectory(prefix=".ptq-", dir=output.parent) as folder:
            scratch = [Path(folder) / str(number) for number in range(len(names))]
            streams = [path.open("w+b") for path in scratch]
            try:
                _restore(opened, streams, host or discover(), emit)
            finally:
                for stream in streams:
                    stream.close()
            emit(Event(stage="save", kind="start"))
            files = [output.parent / name for name in names]
            for made, path in reversed([*zip(scratch, files, strict=True)]):  # the model last
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(made, path)
            emit(Event(stage="save", kind="end"))
        sizes = [file.size for file in opened.index.files]
    return UnpackReport(
        archive=archive,
        files=files,
        bytes_before=archive.stat().st_size,
        bytes_after=sum(sizes),
        seconds=time.perf_counter() - start,
    )


def load(path: str | Path, host: PluginHost | None = None) -> bytes:
    """The model in an archive, or in an ONNX file, as one serialized protobuf.

    ``onnxruntime.InferenceSession(ptq_core.load("model.ptqz"))`` runs it. External data are put
    into it.

    Args:
        path: an archive of ``ptq pack``, or an ONNX model.
        host: plugins; all installed ones by default.

    Raises:
        InputError: the file is neither, damaged, or too large for one protobuf.
        PluginError: an encoding failed.
    """
    path = Path(path)
    where = Location(file=str(path))
    if path.is_file() and is_archive(path):
        with open_archive(path) as opened:
            files = opened.index.files
            _check_size(
                sum(file.size for file in files), where, f"use `ptq unpack {path}`; {_FROM_FILE}"
            )
            if len(files) == 1:
                stream = io.BytesIO()
                _restore(opened, [stream], host or discover(), _nobody)
                return stream.getvalue()
        with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
            unpacked = Path(folder) / "model.onnx"
            unpack(path, unpacked, host=host)
            return _with_external_data(unpacked)
    with open_source(path) as source:
        if len(source.files) == 1:
            return path.read_bytes()
        _check_size(sum(source.sizes), where, _FROM_FILE)
    return _with_external_data(path)


def _check_size(size: int, where: Location, hint: str) -> None:
    if size > _LARGEST:
        raise InputError(
            f"its model has {size} bytes, too many for one piece: at most {_LARGEST}",
            location=where,
            hint=hint,
        )


def _with_external_data(path: Path) -> bytes:
    import onnx

    try:
        return bytes(onnx.load(path).SerializeToString())
    except Exception as error:
        raise ModelError(
            f"its external data cannot be read: {error}", location=Location(file=str(path))
        ) from error


def _nobody(_: Event) -> None:
    pass


# ------------------------------------------------------------------------------------- the files


def _check_names(archive: Archive, output: Path, names: Sequence[str]) -> None:
    """Raise InputError if a file would lie outside the folder, or in place of another one."""
    problems = []
    for file, name in zip(archive.index.files[1:], names[1:], strict=True):
        where = Location(file=str(archive.path))
        path = output.parent / name
        if not is_inside(name) or names.count(name) > 1:
            problems.append(
                Problem(
                    message=f"holds a file '{name}', expected one in the folder of '{output}'",
                    location=where,
                    hint="choose another name with -o" if name == output.name else "",
                )
            )
        elif path.exists() and not _is(path, file):
            problems.append(
                Problem(
                    message=f"the model needs a file '{path}', and there is another one",
                    location=where,
                    hint="unpack into a folder of its own",
                )
            )
    if problems:
        raise InputError(problems=problems)


def _is(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _restore(archive: Archive, streams: Sequence[BinaryIO], host: PluginHost, emit: Emit) -> None:
    """Write every section's bytes to where they belong, and check all files."""
    index, where = archive.index, Location(file=str(archive.path))
    coders = _needed(archive, host)
    emit(Event(stage="unpack", kind="start", total=len(index.sections)))
    for done, (section, data) in enumerate(archive.sections(), 1):
        places = section.places
        if section.rest is not None:
            places = tuple(gaps(index.sections, section.rest, index.files[section.rest].size))
        size = sum(place.size for place in places)
        try:
            raw = _decoded(section, data, size, coders)
        except (ValueError, TypeError, MemoryError) as error:
            raise _damaged(places, str(error), where) from error
        if len(raw) != size or zlib.crc32(raw) != section.crc32:
            raise _damaged(places, _changed(section, index, coders), where)
        at = 0
        for place in places:
            streams[place.file].seek(place.at)
            streams[place.file].write(raw[at : at + place.size])
            at += place.size
        emit(Event(stage="unpack", kind="advance", done=done, total=len(index.sections)))
    for file, stream in zip(index.files, streams, strict=True):
        stream.seek(0)
        if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:  # type: ignore[arg-type]
            raise InputError(f"the file '{file.name}' in it does not come back", location=where)
    emit(Event(stage="unpack", kind="end"))


def _changed(section: Section, index: Index, coders: Coders) -> str:
    """What to say where the bytes of a section do not come back."""
    used = [name for name in (section.coder, section.encoding) if name]
    versions = [
        f"{name} is of {coders.versions[name]}, it was packed with {index.encodings[name]}"
        for name in used
        if coders.versions.get(name) != index.encodings[name]
    ]
    return "; ".join(["other bytes come out than went in", *versions])


def _damaged(places: Sequence[Place], reason: str, where: Location) -> InputError:
    at = f"{places[0].size} bytes at {places[0].at}" if places else "nothing"
    return InputError(
        f"a section ({at} of the model) cannot be decoded: {reason}",
        location=where,
        hint="pack the model again, with the plugins that are installed here",
    )


def _needed(archive: Archive, host: PluginHost) -> Coders:
    """The encodings that an archive needs.

    Raises:
        InputError: some are not there; all of them are told.
    """
    coders = Coders(host)
    problems = []
    for name, version in archive.index.encodings.items():
        try:
            coders.get(name)
        except InputError as error:
            distribution = version.partition(" ")[0]
            there = any(record.name == distribution for record in host.records)
            problems += [
                Problem(
                    message=f"needs the encoding {name} of {version}: {problem.message}",
                    location=Location(file=str(archive.path)),
                    hint=problem.hint if there else f"pip install {distribution}",
                )
                for problem in error.problems
            ]
    if problems:
        raise InputError(problems=problems)
    return coders


def _decoded(section: Section, data: bytes, size: int, coders: Coders) -> bytes:
    """The bytes of a section, of which there should be so many.

    Raises:
        ValueError: they cannot be found.
    """
    match section.form:
        case "bytes":
            return forms.decompress(data, size)
        case "planes":
            return forms.from_planes(data, section.width, size)
    codes = coders.decode(section.coder, data, section.bits, section.shape)
    if section.form == "codes":
        return forms.from_codes(codes, section.kind)
    arrays = coders.encode(section.encoding, codes, section.bits, section.opset)
    return b"".join(array.tobytes() for array in arrays.values())
