"""A model as its files: which constants lie where, in the model itself or in external data."""

from __future__ import annotations

import math
import mmap
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from ptq_core.archive.container import Place, is_archive
from ptq_core.archive.wire import Constant, Scan, scan
from ptq_core.errors import Location, ModelError, Problem

# ONNX's number of each element type: its name, bits, and whether its bytes are integers.
TYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16),
    6: ("int32", 32), 7: ("int64", 64), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64),
    12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128),
    16: ("bfloat16", 16), 17: ("float8e4m3fn", 8), 18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8), 21: ("uint4", 4), 22: ("int4", 4),
    23: ("float4e2m1", 4), 24: ("float8e8m0", 8), 25: ("uint2", 2), 26: ("int2", 2),
}  # fmt: skip


@dataclass(kw_only=True)
class Source:
    """The files of a model, open, and its constants.

    Attributes:
        model: the model's file.
        names: of the files: the model's own, then the locations of external data.
        files: open, in that order.
        sizes: of the files.
        scan: what the model holds.
    """

    model: Path
    names: list[str]
    files: list[BinaryIO]
    sizes: list[int]
    scan: Scan
    _taken: dict[int, list[Place]] = field(default_factory=dict)

    def place(self, constant: Constant) -> Place | None:
        """Where the bytes of the constant are; None where that is not one piece of its size."""
        _, bits = TYPES.get(constant.data_type, ("", 0))
        size = -(-math.prod(constant.shape) * bits // 8)
        if constant.external:
            found = _external(constant, size)
            at, file = found[0], self.names.index(constant.external["location"])
            return Place(file, at, size) if size and found[1] == size else None
        if constant.span is None or constant.span[1] - constant.span[0] != size or not size:
            return None
        return Place(0, constant.span[0], size)

    def read(self, place: Place) -> bytes:
        """The bytes."""
        stream = self.files[place.file]  # read, not mapped: what was mapped counts as memory
        stream.seek(place.at)
        return stream.read(place.size)

    def is_free(self, place: Place) -> bool:
        """Whether none of these bytes was taken."""
        taken = self._taken.get(place.file, [])
        index = bisect_left(taken, place)
        return not (
            (index and taken[index - 1].end > place.at)
            or (index < len(taken) and taken[index].at < place.end)
        )

    def take(self, place: Place) -> None:
        """Say that a section has these bytes."""
        taken = self._taken.setdefault(place.file, [])
        taken.insert(bisect_left(taken, place), place)


@contextmanager
def open_source(model: Path) -> Iterator[Source]:
    """The files of a model.

    Raises:
        ModelError: it is not an ONNX model, or external data are missing or cut short.
    """
    where = Location(file=str(model))
    if not model.exists():
        raise ModelError("there is no such file", location=where, hint="check the path")
    if model.is_dir():
        raise ModelError("is a folder, expected an ONNX file", location=where)
    if is_archive(model):
        raise ModelError(
            "is an archive already, expected an ONNX model",
            location=where,
            hint=f"`ptq unpack {model}` gives the model in it",
        )
    size = model.stat().st_size
    with ExitStack() as stack:
        files: list[BinaryIO] = [stack.enter_context(model.open("rb"))]
        try:
            found = _scanned(files[0])
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"is not an ONNX model, or was cut short ({size} bytes): {error}",
                location=where,
                hint="export or copy the model again",
            ) from error
        names = _external_files(model, found)
        paths = [model.parent / name for name in names]
        files += [stack.enter_context(path.open("rb")) for path in paths]
        sizes = [path.stat().st_size for path in (model, *paths)]
        yield Source(model=model, names=[model.name, *names], files=files, sizes=sizes, scan=found)


def _scanned(stream: BinaryIO) -> Scan:
    if not stream.seek(0, 2):
        raise ValueError("it is empty")  # which cannot be mapped
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return scan(content)


def is_inside(name: str) -> bool:
    """Whether a location of external data stays inside the model's folder, on any system."""
    paths = PurePosixPath(name), PureWindowsPath(name)
    return bool(name.strip("./\\")) and not any(
        path.is_absolute() or path.drive or ".." in path.parts for path in paths
    )


def _external(constant: Constant, size: int) -> tuple[int, int]:
    """First byte and size of external data, -1 where that is not told rightly."""
    given = constant.external
    try:
        return int(given.get("offset", "0")), int(given.get("length", str(size)))
    except ValueError:
        return -1, -1


def _external_files(model: Path, found: Scan) -> list[str]:
    """The locations of external data, each once, after a look at what is there."""
    names: dict[str, None] = {}
    problems: dict[str, Problem] = {}
    for constant in found.constants:
        if not constant.external:
            continue
        name = constant.external.get("location", "")
        message, hint = "", "keep the file with the weights beside the model"
        if not is_inside(name) or name == model.name:
            message = f"its external data are at '{name}', expected a file in the model's folder"
        elif not (model.parent / name).is_file():
            message = f"its external data file '{name}' is missing"
        else:
            names[name] = None
            _, bits = TYPES.get(constant.data_type, ("", 0))
            at, size = _external(constant, -(-math.prod(constant.shape) * bits // 8))
            there = (model.parent / name).stat().st_size
            if at < 0 or there < at + size:
                message = (
                    f"its external data file '{name}' was cut short: it has {there} bytes, "
                    f"at least {at + size} are needed"
                )
                hint = "copy the file with the weights again"
        if message:
            where = Location(file=str(model), tensor=constant.name)
            problems.setdefault(name, Problem(message=message, location=where, hint=hint))
    if problems:
        raise ModelError(problems=problems.values())
    return list(names)
