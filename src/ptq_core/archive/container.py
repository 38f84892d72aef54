"""The file format ``.ptqz``: sections one behind the other, an index that describes them, checks.

::

    header    magic, 8 bytes; version, uint32; bytes of the index, uint32; of the file, uint64
    sections  see :class:`Section`
    index     see :class:`Index`; JSON, compressed by zlib
    SHA-256   of all that is before it, 32 bytes

All numbers are little endian. Besides, the index has a CRC-32 of what each section gives back, and
the SHA-256 of each file that is given back.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ptq_core.errors import InputError, Location

MAGIC = b"\x89PTQZ\r\n\x1a"  # no text; altered where ends of lines are translated
VERSION = 1

_HEADER = struct.Struct("<8sIIQ")
_SHA = 32
_LARGEST_INDEX = 1 << 28  # bytes of JSON

Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(NamedTuple):
    """Bytes of a file: the file's number, the first one, and how many."""

    file: Count
    at: Count
    size: Count

    @property
    def end(self) -> int:
        """Behind the last one."""
        return self.at + self.size


class File(_Strict):
    """A file that is given back.

    Attributes:
        name: of external data the location that the model knows, relative to the model.
        size: in bytes.
        sha256: of its bytes, in hexadecimal digits.
    """

    name: str
    size: Count
    sha256: str


class Array(_Strict):
    """One of an encoding's constants: its short name, type and shape."""

    name: str
    dtype: str
    shape: tuple[Count, ...]


class Section(_Strict):
    """Bytes of the files, in the form in which they are stored.

    Attributes:
        form: ``bytes``: compressed as they are; ``planes``: by the bytes of elements of ``width``
            bytes; ``codes``: integers of the type ``kind``, coded; ``encoded``: what ``encoding``
            makes of codes of so many ``bits`` for a model of this ``opset``; the codes are stored.
        places: where the bytes belong, in this order.
        rest: instead of places: a file, of which these are all bytes that no other section holds.
        size: as stored.
        crc32: of the bytes that it gives back.
        shape: of the codes.
        coder: the encoding in which the codes are stored.
        arrays: what ``encoding`` has to give, in the order of ``places``.
    """

    form: Literal["bytes", "planes", "codes", "encoded"]
    places: tuple[Place, ...] = ()
    rest: Count | None = None
    size: Count
    crc32: Count
    width: Annotated[int, Field(ge=1, le=16)] = 1
    kind: Literal["int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"] = "int8"
    shape: tuple[Count, ...] = ()
    bits: Annotated[int, Field(ge=1, le=16)] = 8
    coder: str = ""
    encoding: str = ""
    opset: Count = 0
    arrays: tuple[Array, ...] = ()


class Index(_Strict):
    """What an archive holds.

    Attributes:
        ptq: the version that made it.
        encodings: those that are needed, and the distribution and version of the plugin of each.
        files: the model first, then its external data.
        sections: in the order in which they lie in the archive.
    """

    ptq: str
    encodings: dict[str, str]
    files: tuple[File, ...] = Field(min_length=1)
    sections: tuple[Section, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """An archive that was opened and found undamaged."""

    path: Path
    index: Index
    stream: BinaryIO

    def sections(self) -> Iterator[tuple[Section, bytes]]:
        """Each section and what is stored of it."""
        self.stream.seek(_HEADER.size)
        for section in self.index.sections:
            yield section, self.stream.read(section.size)


def is_archive(path: Path) -> bool:
    """Whether a file begins as archives do."""
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


class Writer:
    """Writes an archive: sections first, in :meth:`add`, then the index, in :meth:`finish`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sections: list[Section] = []
        stream.write(bytes(_HEADER.size))

    def add(self, section: Section, data: bytes) -> None:
        """Write a section."""
        self.sections.append(section)
        self._stream.write(data)

    def finish(self, index: Index) -> None:
        """Write what comes behind the sections, and the header."""
        stream = self._stream
        text = index.model_dump_json(exclude_defaults=True).encode()
        packed = zlib.compress(text, 9)
        stream.write(packed)
        total = stream.tell() + _SHA
        stream.seek(0)
        stream.write(_HEADER.pack(MAGIC, VERSION, len(packed), total))
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]
        stream.seek(0, 2)
        stream.write(digest)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive in the file, after all checks that need no decoding.

    Raises:
        InputError: there is no such file, it is no archive, it is of another version, or it was
            cut short or altered.
    """
    where = Location(file=str(path))
    if not path.exists():
        raise InputError("there is no such file", location=where, hint="check the path")
    if path.is_dir():
        raise InputError("is a folder, expected a .ptqz archive", location=where)
    with path.open("rb") as stream:
        index_size = _check(stream, path.stat().st_size, where)
        stream.seek(-_SHA - index_size, 2)
        packed = stream.read(index_size)
        try:
            text = zlib.decompressobj().decompress(packed, _LARGEST_INDEX)
            index = Index.model_validate_json(text)
            _check_index(index, stream.tell() - index_size - _HEADER.size)
        except (zlib.error, ValidationError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"its index is malformed: {first}", location=where, hint=_AGAIN
            ) from error
        yield Archive(path=path, index=index, stream=stream)


_AGAIN = "copy or download the archive again"


def _check(stream: BinaryIO, size: int, where: Location) -> int:
    """Magic, version, size, SHA-256; returns the bytes of the index."""
    head = stream.read(_HEADER.size)
    if not head.startswith(MAGIC[: len(head)]) or not head:
        raise InputError(
            f"is no .ptqz archive: it begins with {head[:8]!r}, expected {MAGIC!r}",
            location=where,
            hint="`ptq pack MODEL -o FILE.ptqz` makes one of an ONNX model",
        )
    if len(head) < _HEADER.size:
        raise InputError(f"was cut short: it has {size} bytes", location=where, hint=_AGAIN)
    _, version, index_size, total = _HEADER.unpack(head)
    if version != VERSION:
        raise InputError(
            f"is an archive of version {version}, expected version {VERSION}",
            location=where,
            hint="unpack it with the ptq that made it, or a newer one",
        )
    if size != total:
        wrong = "was cut short" if size < total else "has bytes behind its end"
        raise InputError(
            f"{wrong}: it has {size} bytes, expected {total}", location=where, hint=_AGAIN
        )
    stream.seek(0)
    digest = hashlib.sha256()
    left = size - _SHA
    while left > 0 and (block := stream.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    if left or digest.digest() != stream.read(_SHA) or _HEADER.size + index_size + _SHA > size:
        raise InputError(
            "was altered: its content does not have the SHA-256 that is stored with it",
            location=where,
            hint=_AGAIN,
        )
    return int(index_size)


def _check_index(index: Index, size: int) -> None:
    """Raise ValueError unless the sections fill the archive, and the files to the last byte."""
    if sum(section.size for section in index.sections) != size:
        raise ValueError("its sections are not as large as the archive")
    sizes = [file.size for file in index.files]
    rests = [section.rest for section in index.sections if section.rest is not None]
    if len(rests) != len(set(rests)) or any(rest >= len(sizes) for rest in rests):
        raise ValueError("it has a rest of no file, or twice of one")
    for section in index.sections:
        for place in section.places:
            if place.file >= len(sizes) or place.end > sizes[place.file]:
                raise ValueError("a section is outside of its file")
        if not {section.coder, section.encoding} <= {"", *index.encodings}:
            raise ValueError("a section needs an encoding that is not named")
        if section.form == "encoded" and len(section.arrays) != len(section.places):
            raise ValueError("a section does not say where its arrays belong")
    for number, size in enumerate(sizes):
        if number not in rests and gaps(index.sections, number, size):
            raise ValueError("bytes of a file are in no section")


def gaps(sections: Iterable[Section], file: int, size: int) -> list[Place]:
    """The bytes of a file that no section has a place for."""
    taken = sorted(place for one in sections for place in one.places if place.file == file)
    found, at = [], 0
    for place in taken:
        if place.at > at:
            found.append(Place(file, at, place.at - at))
        at = max(at, place.end)
    if at < size:
        found.append(Place(file, at, size - at))
    return found
