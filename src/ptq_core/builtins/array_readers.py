"""Reads array files into samples: raw buffers (BIN), ``.npy`` and ``.npz`` (NPY).

What a file holds is never guessed: a buffer has to have the exact size, an array has to have the
shape, or a shape from which there is one way to the model's. What was changed on the way is put
into ``notes``, in words that are the same for all files, for core to say once.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ptq_core.api import ModelInput

Array: TypeAlias = NDArray[Any]
Axes: TypeAlias = tuple[int, ...]

# Axes that bring an array from the other layout to this one.
_TRANSPOSE = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 2, 3, 1)}
_OTHER = {"NCHW": "NHWC", "NHWC": "NCHW"}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # what a .npz file starts with; the latter is an empty one
_DAMAGED = (  # what NumPy and zipfile raise for bytes that make no sense to them
    *(ValueError, EOFError, SyntaxError, RuntimeError, ArithmeticError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_OF_WIDTH = {1: "uint8 or int8", 2: "float16", 4: "float32 or int32", 8: "float64 or int64"}


class BinReader:
    """Reads raw little-endian buffers that hold one full input each.

    An open batch dimension is taken as 1; one other open dimension is derived from the file's
    size. A 4-D buffer in ``data_layout`` is transposed to the model's ``layout``.

    Attributes:
        notes: what the user should know about how files are read.

    Raises:
        ValueError: the model leaves more than one dimension open.
    """

    def __init__(self, model_input: ModelInput) -> None:
        self.notes: list[str] = []
        self._name = model_input.name
        self._dtype = _dtype(model_input)
        shape = list(model_input.shape)
        if len(shape) > 1 and not isinstance(shape[0], int):
            shape[0] = 1
        if sum(not isinstance(dim, int) for dim in shape) > 1:
            raise ValueError(
                f"input '{self._name}' has shape {_text(model_input.shape)}; the size of a BIN "
                f"file tells only one open dimension besides the batch: fix the others with "
                f"--inputShape, or give NPY files"
            )
        self._axes: Axes | None = None
        wanted, given = model_input.layout, model_input.data_layout
        if len(shape) == 4 and given is not None and given != wanted:
            if wanted is None:
                self.notes.append(
                    f"input '{self._name}': BIN files are read in the model's own order of "
                    f"dimensions; {given} has no effect, because it is not known where the model "
                    f"has its channels"
                )
            else:
                self._axes = _TRANSPOSE[wanted]
                shape = [shape[self._axes.index(axis)] for axis in range(4)]
        self._file_shape = tuple(shape)

    def read(self, path: Path, /) -> Array:
        """The sample in this file.

        Raises:
            ValueError: the file has not the size that the input needs.
            OSError: the file cannot be read.
        """
        shape = self._shape_for(path.stat().st_size)
        values = np.fromfile(path, self._dtype.newbyteorder("<")).reshape(shape)
        if self._dtype.kind == "b" and values.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"input '{self._name}' is bool, the file has bytes besides 0 and 1")
        if self._axes is not None:
            values = values.transpose(self._axes)
        return np.asarray(values, self._dtype, order="C")

    def _shape_for(self, found: int) -> tuple[int, ...]:
        """The shape of a file of so many bytes."""
        step = math.prod(dim for dim in self._file_shape if isinstance(dim, int))
        expected = step * self._dtype.itemsize
        is_open = any(not isinstance(dim, int) for dim in self._file_shape)
        times = found // expected if expected else 0
        if found == times * expected and (times > 0 if is_open else found == expected):
            return tuple(dim if isinstance(dim, int) else times for dim in self._file_shape)
        guess = "the file is empty" if found == 0 else ""
        if not is_open and found:
            guess = self._guess(found, step)
        raise ValueError(
            f"the file has {found} bytes, expected {'a multiple of ' if is_open else ''}{expected} "
            f"= {_text(self._file_shape)} x {self._dtype.itemsize} ({self._dtype.name}) for input "
            f"'{self._name}'" + (f"; {guess}" if guess else "")
        )

    def _guess(self, found: int, count: int) -> str:
        """What a file of another size than ``count`` elements need probably is."""
        guesses = [
            f"as {names} it would have this size: write the file as {self._dtype.name}"
            for width, names in _OF_WIDTH.items()
            if found == count * width
        ]
        samples, rest = divmod(found, count * self._dtype.itemsize) if count else (0, 0)
        if samples > 1 and rest == 0:
            guesses.append(f"{samples} samples would have this size: give each a file of its own")
        return "; or ".join(guesses)


class NpyReader:
    """Reads ``.npy`` and ``.npz`` files with one sample each, or one file of stacked samples.

    The array's shape decides: as the model's, without the batch axis, or 4-D in the other layout.
    The element type is converted where that is safe: between widths of floats, and between
    integers where the values fit.

    Attributes:
        notes: what was changed on the way, in words that are the same for all files.
    """

    def __init__(self, model_input: ModelInput) -> None:
        self.notes: list[str] = []
        self._input = model_input
        self._dtype = _dtype(model_input)

    def read(self, path: Path, /) -> Array:
        """The sample in this file.

        Raises:
            ValueError: no NumPy file, a truncated one, or no array that fits the input.
            OSError: the file cannot be read.
        """
        values = _load(path, self._input.name)
        self._check_type(values.dtype)
        sample = self._arrange(values, self._axes_for(values.shape))
        if sample.ndim > 1 and sample.shape[0] > 1 and not isinstance(self._input.shape[0], int):
            self._note("files hold batches of several samples; each file is one run")
        return sample

    def stack(self, path: Path, /) -> Sequence[Array]:
        """The samples that are stacked along axis 0 of the array in this file.

        Each item is shaped as :meth:`read` would return it. An ``.npy`` file is mapped into
        memory and read where an item is asked for; an ``.npz`` file is read whole.

        Raises:
            ValueError: as for :meth:`read`; or there is nothing along axis 0.
            OSError: the file cannot be read.
        """
        values = _load(path, self._input.name, memory_map=True)
        if values.ndim == 0 or len(values) == 0:
            raise ValueError(
                f"the array has shape {_text(values.shape)}, samples along axis 0 were expected"
            )
        self._check_type(values.dtype)
        axes = self._axes_for(values.shape[1:])
        return _Stack(len(values), lambda index: self._arrange(values[index], axes))

    def _axes_for(self, shape: tuple[int, ...]) -> Axes | None:
        """How to transpose an array of this shape, None for not at all.

        Raises:
            ValueError: there is no way, or more than one.
        """
        model = self._input
        whole = shape if len(shape) == len(model.shape) else (1, *shape)
        if _matches(whole, model.shape):
            return None
        layouts = [
            layout
            for layout in ((model.layout,) if model.layout else ("NCHW", "NHWC"))
            if len(whole) == 4
            and _matches(tuple(whole[axis] for axis in _TRANSPOSE[layout]), model.shape)
        ]
        if len(layouts) == 1:
            layout = layouts[0]
            self._note(f"the arrays are {_OTHER[layout]}, the model is {layout}: transposed")
            return _TRANSPOSE[layout]
        raise ValueError(
            f"the array has shape {_text(shape)}, input '{model.name}' takes {_text(model.shape)}, "
            f"with or without the batch axis" + (", NCHW or NHWC" if len(model.shape) == 4 else "")
        )

    def _arrange(self, values: Array, axes: Axes | None) -> Array:
        """One sample as the model takes it; a view of ``values`` where nothing changes."""
        if values.ndim < len(self._input.shape):
            values = values[None]
        if axes is not None:
            values = values.transpose(axes)
        self._check_values(values)
        with np.errstate(over="ignore"):  # checked: only infinities stay infinite
            return np.asarray(values, self._dtype, order="C")

    def _check_type(self, found: np.dtype[Any]) -> None:
        if found.newbyteorder("=") == self._dtype:
            return
        wanted = self._dtype
        if found.kind == "f" == wanted.kind or {found.kind, wanted.kind} <= set("biu"):
            self._note(f"the arrays are {found.name}, converted to the model's {wanted.name}")
            return
        todo = "save them as such"
        if found.kind in "biu" and wanted.kind == "f":
            todo = "bring the values to the range that the model was trained on and save floats"
        raise ValueError(
            f"the array is {found.name}, input '{self._input.name}' takes {wanted.name}: {todo}"
        )

    def _check_values(self, values: Array) -> None:
        """Raises ValueError where the model's element type cannot hold a value."""
        if np.can_cast(values.dtype, self._dtype, "safe"):
            return
        if self._dtype.kind == "f":
            outside = np.isfinite(values) & (np.abs(values) > np.finfo(self._dtype).max)
        else:
            bounds = None if self._dtype.kind == "b" else np.iinfo(self._dtype)
            low, high = (bounds.min, bounds.max) if bounds else (0, 1)
            outside = (values < low) | (values > high)
        if outside.any():
            raise ValueError(
                f"the array is {values.dtype.name} and holds {values[outside][0]}, which "
                f"{self._dtype.name}, the type of input '{self._input.name}', cannot hold"
            )

    def _note(self, text: str) -> None:
        note = f"input '{self._input.name}': {text}"
        if note not in self.notes:
            self.notes.append(note)


class _Stack(Sequence[Array]):
    """Samples that are made where they are asked for."""

    def __init__(self, count: int, sample: Callable[[int], Array]) -> None:
        self._indices = range(count)
        self._sample = sample

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [self._sample(each) for each in self._indices[index]]
        return self._sample(self._indices[index])


def _load(path: Path, name: str, *, memory_map: bool = False) -> Array:
    """The array in a ``.npy`` file, the only one or the one of this name in a ``.npz`` file."""
    names: list[str] = []
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if not start.startswith((b"\x93NUMPY", *_ZIP)):
            found = f"it starts with {start.hex(' ')}" if start else "it is empty"
            raise ValueError(f"not a NumPy file: {found}")
        try:
            if start.startswith(_ZIP):
                with np.load(file, allow_pickle=False) as archive:
                    names = archive.files
                    wanted = names[0] if len(names) == 1 else name
                    if wanted in names:
                        return np.asarray(archive[wanted])
            elif memory_map:
                return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            else:
                return np.asarray(np.load(file, allow_pickle=False))
        except _DAMAGED as error:
            if "allow_pickle" in str(error) or "Python objects" in str(error):
                raise ValueError("the array holds Python objects, not numbers") from error
            raise ValueError(f"truncated or damaged NumPy file: {error}") from error
    raise ValueError(
        f"the file holds {len(names)} arrays ({', '.join(names)}): "
        f"give one, or name one of them '{name}' as the input"
    )


def _dtype(model_input: ModelInput) -> np.dtype[Any]:
    try:
        dtype = np.dtype(model_input.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fbiu":
        raise ValueError(
            f"input '{model_input.name}' is {model_input.dtype}; files can hold floats, integers "
            f"and booleans of NumPy's own types"
        )
    return dtype


def _matches(shape: tuple[int, ...], model_shape: tuple[int | str | None, ...]) -> bool:
    """Whether an array of this shape can be given to a model of that one."""
    return len(shape) == len(model_shape) and all(
        have == want if isinstance(want, int) else have > 0
        for have, want in zip(shape, model_shape, strict=True)
    )


def _text(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
