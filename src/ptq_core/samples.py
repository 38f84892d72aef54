"""Calibration samples: find them, pair them over the inputs, read ahead, check and batch them.

A sample is a dict from input name to array, with the batch axis. Nothing keeps samples: they are
read again for every pass.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.errors import ConfigError, DataError, Location, Problem, did_you_mean
from ptq_core.graph.operators import dimensions
from ptq_core.plugins import Registered, blame
from ptq_core.types import Layout, ModelInput, Preprocessor, PreprocessorEntry

Feeds = dict[str, NDArray[Any]]

_CHANNELS = (1, 3)  # an axis of this length is taken for the channels of a picture
_RECOMMENDED = (100, 500)  # samples, by the guide


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample and the name that messages use for it."""

    name: str
    feeds: Feeds


@dataclass(kw_only=True)
class Samples:
    """Where samples come from.

    Attributes:
        open: starts reading from the first sample.
        count: how many there are, None where only reading tells.
        held_out: samples of the same kind that calibration does not see, for verification.
        notes: what the user should know; may grow while samples are read.
        warnings: likewise, more serious.
        skipped: what ``skip_bad`` left out, each with its reason.
    """

    open: Callable[[], Iterator[Sample]]
    count: int | None = None
    held_out: Callable[[], Iterator[Sample]] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------------- the model


def model_inputs(
    model: ir.Model,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    data_layout: Layout | None = None,
) -> tuple[ModelInput, ...]:
    """The inputs that have to be fed.

    Args:
        model: the model.
        shapes: shapes that the user fixed (``--inputShape``).
        data_layout: how 4-D buffers are laid out; None: as the model takes them.

    Raises:
        ConfigError: a fixed shape names no input or contradicts the model.
    """
    given = dict(shapes or {})
    names = [value.name or "" for value in model.graph.inputs]
    problems = [
        Problem(
            message=f"--inputShape: the model has no input '{name}'", hint=did_you_mean(name, names)
        )
        for name in given
        if name not in names
    ]
    inputs = []
    for value in model.graph.inputs:
        name = value.name or ""
        found = dimensions(value) or ()
        fixed = given.get(name)
        if fixed is not None and found:
            if len(fixed) != len(found) or any(
                isinstance(dim, int) and dim != want
                for dim, want in zip(found, fixed, strict=False)
            ):
                problems.append(
                    Problem(
                        message=f"--inputShape: input '{name}' has shape {_shown(found)}, "
                        f"found {_shown(fixed)}"
                    )
                )
            found = fixed
        layout = layout_of(found)
        inputs.append(
            ModelInput(
                name=name,
                dtype=str(value.dtype.numpy()) if value.dtype is not None else "float32",
                shape=found,
                layout=layout,
                data_layout=data_layout or layout,
            )
        )
    if problems:
        raise ConfigError(problems=problems)
    return tuple(inputs)


def layout_of(shape: Sequence[int | str | None]) -> Layout | None:
    """NCHW or NHWC where the channel count tells it, None where it does not."""
    if len(shape) != 4:
        return None
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        return None
    return "NCHW" if first else "NHWC"


def _shown(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


# ------------------------------------------------------------------------------------- files


def samples_from_files(
    folders: Mapping[str, Path],
    size: int,
    inputs: Sequence[ModelInput],
    reader: Registered[PreprocessorEntry],
    options: Any,
    *,
    strict: bool = False,
    skip_bad: bool = False,
    location: Location | None = None,
) -> Samples:
    """Samples in a folder for each input, in byte order of their names.

    Args:
        folders: for each input its folder, or one file that holds all samples (NPY).
        size: how many samples to use.
        inputs: the model's inputs.
        reader: the preprocessor.
        options: its options.
        strict: fewer samples than ``size`` are an error.
        skip_bad: a sample that cannot be used is left out and counted, not an error.
        location: where the folders are named, for messages.

    Raises:
        ConfigError: the folders do not fit the model's inputs.
        DataError: a folder is missing or has no samples.
    """
    _check_names(folders, inputs, location)
    readers = {item.name: _make_reader(reader, item, options, location) for item in inputs}
    result = Samples(open=lambda: iter(()))
    listed = {
        item.name: _list(folders[item.name], reader.entry, readers[item.name], result.notes)
        for item in inputs
    }
    order = _pair(listed, result.warnings)
    if len(order) < size:
        text = f"calibrate_size asks for {size} samples, there are {len(order)}"
        if strict:
            raise DataError(text, location=location)
        result.warnings.append(text)
    used, rest = order[:size], order[size:]
    if not _RECOMMENDED[0] <= len(used) <= _RECOMMENDED[1]:
        result.notes.append(
            f"{len(used)} samples; {_RECOMMENDED[0]} to {_RECOMMENDED[1]} are recommended"
        )

    def reading(chosen: Sequence[dict[str, _Source]]) -> Callable[[], Iterator[Sample]]:
        return lambda: _read_files(chosen, inputs, reader, readers, result, skip_bad=skip_bad)

    result.open = reading(used)
    result.count = len(used)
    result.held_out = reading(rest) if rest else None
    return result


def _make_reader(
    reader: Registered[PreprocessorEntry],
    item: ModelInput,
    options: Any,
    location: Location | None,
) -> Preprocessor:
    with blame(reader.record, "making a reader"):
        try:
            return reader.entry.factory(item, options)
        except ValueError as error:  # this input cannot be filled this way
            raise ConfigError(str(error), location=location) from error


@dataclass(frozen=True, slots=True)
class _Source:
    """One sample of one input: how to read it, what to call it, and what to pair it by."""

    name: str
    stem: str
    read: Callable[[], NDArray[Any]]


def _check_names(
    folders: Mapping[str, Path], inputs: Sequence[ModelInput], location: Location | None
) -> None:
    names = [item.name for item in inputs]
    where = location or Location()
    problems = [
        Problem(
            message=f"calibrate_path: the model has no input '{name}'",
            location=where,
            hint=did_you_mean(name, names),
        )
        for name in folders
        if name not in names
    ]
    missing = [name for name in names if name not in folders]
    if missing:
        problems.append(
            Problem(
                message=f"calibrate_path: no samples for input {', '.join(map(repr, missing))}",
                location=where,
                hint="every input of the model needs a folder: "
                + ",".join(f"{name}:DIR" for name in names),
            )
        )
    if problems:
        raise ConfigError(problems=problems)


def _list(
    path: Path, entry: PreprocessorEntry, reader: Preprocessor, notes: list[str]
) -> list[_Source]:
    where = Location(file=str(path))
    if not path.exists():
        raise DataError("there is no such folder", location=where, hint="see calibrate_path")
    if path.is_file():
        stack = getattr(reader, "stack", None)
        if stack is None:
            raise DataError(f"is a file; {entry.name} reads folders of samples", location=where)
        rows = stack(path)
        return [
            _Source(f"{path}[{i}]", str(i), lambda i=i: rows[i])  # type: ignore[misc]
            for i in range(len(rows))
        ]
    entries = sorted(path.iterdir(), key=lambda item: item.name.encode())
    files = [
        item
        for item in entries
        if item.suffix.casefold() in entry.suffixes
        and not item.name.startswith(".")
        and item.is_file()
    ]
    passed_over = len(entries) - len(files)
    if not files:
        found = f"{passed_over} other entries" if entries else "nothing"
        raise DataError(
            f"has no samples: {entry.name} reads {', '.join(entry.suffixes)}, found {found}",
            location=where,
        )
    if passed_over:
        notes.append(f"{path}: {passed_over} entries that are no {entry.name} samples passed over")
    return [_Source(str(file), file.stem, lambda file=file: reader.read(file)) for file in files]  # type: ignore[misc]


def _pair(listed: Mapping[str, list[_Source]], warnings: list[str]) -> list[dict[str, _Source]]:
    """One dict per sample: by stem where all inputs have the same stems, else by order."""
    if len(listed) == 1:
        name, sources = next(iter(listed.items()))
        return [{name: source} for source in sources]
    stems = [{source.stem for source in sources} for sources in listed.values()]
    same = all(stem == stems[0] for stem in stems)
    if same and all(len(stems[0]) == len(sources) for sources in listed.values()):
        by_stem = {
            name: {source.stem: source for source in sources} for name, sources in listed.items()
        }
        first = next(iter(listed.values()))
        return [{name: by_stem[name][source.stem] for name in listed} for source in first]
    counts = ", ".join(f"{name}: {len(sources)}" for name, sources in listed.items())
    warnings.append(
        f"the inputs' files have different names, samples are paired by their order ({counts})"
    )
    return [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=False)]


def _read_files(
    chosen: Sequence[dict[str, _Source]],
    inputs: Sequence[ModelInput],
    reader: Registered[PreprocessorEntry],
    readers: Mapping[str, Preprocessor],
    samples: Samples,
    *,
    skip_bad: bool,
) -> Iterator[Sample]:
    for row in chosen:
        name = next(iter(row.values())).name
        try:
            feeds: Feeds = {}
            for item in inputs:
                source = row[item.name]
                feeds[item.name] = check_array(_read(source, reader), item, source.name)
        except DataError as error:
            if not skip_bad:
                raise
            reason = str(error).splitlines()[0]
            if reason not in samples.skipped:
                samples.skipped.append(reason)
            continue
        yield Sample(name=name, feeds=feeds)
    for one in readers.values():  # a reader says in its notes what it had to change on the way
        samples.notes += [note for note in getattr(one, "notes", ()) if note not in samples.notes]


def _read(source: _Source, reader: Registered[PreprocessorEntry]) -> NDArray[Any]:
    with blame(reader.record, "reading the samples"):
        try:
            return source.read()
        except (ValueError, OSError) as error:
            raise DataError(
                str(error), location=Location(file=source.name), hint="--skip-bad leaves it out"
            ) from error


# ------------------------------------------------------------------------------------ arrays


def samples_from_arrays(data: Iterable[Any], inputs: Sequence[ModelInput]) -> Samples:
    """Samples from any iterable of arrays (one input) or dicts of arrays (by input name).

    An element is one sample or a batch of them, with the batch axis; where the model's batch axis
    is 1 or open and the element lacks it, it is added. An element that is a tuple or list, as data
    loaders give (picture, label), contributes its first part. Tensors of other libraries are taken
    through ``numpy.asarray``.
    """
    used = iter(data) is data  # an iterator can be read only once

    def read() -> Iterator[Sample]:
        for index, element in enumerate(data):
            yield Sample(name=f"sample {index}", feeds=_feeds(element, inputs, index))

    count = len(data) if isinstance(data, Sized) else None
    samples = Samples(open=read, count=count)
    if used:
        samples.open = _once(read)
    return samples


def _once(read: Callable[[], Iterator[Sample]]) -> Callable[[], Iterator[Sample]]:
    opened = False

    def guarded() -> Iterator[Sample]:
        nonlocal opened
        if opened:
            raise DataError(
                "the calibrator needs a second pass, and the data can be read only once",
                hint="give a list, or an object whose __iter__ starts again",
            )
        opened = True
        return read()

    return guarded


def _feeds(element: Any, inputs: Sequence[ModelInput], index: int) -> Feeds:
    where = f"sample {index}"
    if isinstance(element, list | tuple) and element and not np.isscalar(element[0]):
        element = element[0]
    if not isinstance(element, Mapping):
        if len(inputs) != 1:
            names = ", ".join(item.name for item in inputs)
            raise DataError(
                f"{where} is one array, the model has {len(inputs)} inputs",
                hint=f"give dicts with the keys {names}",
            )
        element = {inputs[0].name: element}
    unknown = [str(name) for name in element if name not in {item.name for item in inputs}]
    missing = [item.name for item in inputs if item.name not in element]
    if unknown or missing:
        known = [item.name for item in inputs]
        raise DataError(
            f"{where} has {', '.join(map(str, element)) or 'nothing'}, "
            f"the model's inputs are {', '.join(known)}",
            hint=did_you_mean(unknown[0], known) if unknown else "",
        )
    feeds: Feeds = {}
    for item in inputs:
        array = np.asarray(element[item.name])
        if array.ndim == len(item.shape) - 1 and (item.shape[0] == 1 or not _fixed(item.shape[0])):
            array = array[None]
        feeds[item.name] = check_array(array, item, where)
    return feeds


# ----------------------------------------------------------------------------------- checking


def check_array(array: NDArray[Any], item: ModelInput, where: str) -> NDArray[Any]:
    """The array, read-only, if it is one that the input takes.

    Raises:
        DataError: wrong shape, a type that cannot be converted without loss, NaN or infinity.
    """
    location = Location(file=where, tensor=item.name)
    if not isinstance(array, np.ndarray):
        raise DataError(f"expected an array, found {type(array).__name__}", location=location)
    fits = array.ndim == len(item.shape) and all(
        want is None
        or isinstance(want, str)
        or have == want
        or (i == 0 and have > 0 and (have == 1 or have % max(want, 1) == 0))
        for i, (have, want) in enumerate(zip(array.shape, item.shape, strict=False))
    )
    if not fits:
        raise DataError(
            f"has shape {_shown(array.shape)}, the model takes {_shown(item.shape)}",
            location=location,
        )
    wanted = np.dtype(item.dtype)
    if array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise DataError(f"is {array.dtype}, the model takes {wanted}", location=location)
        array = array.astype(wanted)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"has {bad} values that are NaN or infinite",
            location=location,
            hint="--skip-bad leaves such samples out",
        )
    view = array.view()
    view.flags.writeable = False
    return view


def _fixed(dim: int | str | None) -> bool:
    return isinstance(dim, int)


# ---------------------------------------------------------------------------- ahead, batches


def read_ahead(source: Iterator[Sample], depth: int) -> Iterator[Sample]:
    """The same samples, read by a thread that stays up to ``depth`` samples ahead."""
    ready: queue.Queue[Sample | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Sample | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for sample in source:
                if not put(sample):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - carried over to the reader's thread
            put(error)

    thread = threading.Thread(target=work, name="ptq-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples that are run together.

    Attributes:
        feeds: concatenated along axis 0; a last batch that is too small for a model with a fixed
            batch repeats its last sample.
        names: the samples.
        rows: how many entries of axis 0 are real.
    """

    feeds: Feeds
    names: tuple[str, ...]
    rows: int


def batches(source: Iterator[Sample], size: Callable[[], int]) -> Iterator[Batch]:
    """Group samples of the same shapes, ``size()`` rows at a time; asked anew for every batch."""
    waiting: list[Sample] = []
    for sample in source:
        if waiting and _shapes(waiting[0]) != _shapes(sample):
            yield _batch(waiting, None)
            waiting = []
        waiting.append(sample)
        if len(waiting) >= size():
            yield _batch(waiting, None)
            waiting = []
    if waiting:
        yield _batch(waiting, None)


def fixed_batches(source: Iterator[Sample], rows: int) -> Iterator[Batch]:
    """Groups of exactly ``rows`` for a model whose batch is fixed."""
    waiting: list[Sample] = []
    for sample in source:
        for one in [sample] if _rows(sample) == rows else _single_rows(sample):
            waiting.append(one)
            if sum(map(_rows, waiting)) >= rows:
                yield _batch(waiting, rows)
                waiting = []
    if waiting:
        yield _batch(waiting, rows)


def _single_rows(sample: Sample) -> list[Sample]:
    return [
        Sample(
            name=sample.name, feeds={name: array[i : i + 1] for name, array in sample.feeds.items()}
        )
        for i in range(_rows(sample))
    ]


def _rows(sample: Sample) -> int:
    first = next(iter(sample.feeds.values()))
    return int(first.shape[0]) if first.ndim else 1


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in sample.feeds.values())


def _batch(samples: list[Sample], fixed: int | None) -> Batch:
    rows = sum(_rows(sample) for sample in samples)
    padded = samples + samples[-1:] * max(0, (fixed or rows) - rows)
    if len(padded) == 1:
        feeds = padded[0].feeds
    else:
        feeds = {
            name: np.concatenate([sample.feeds[name] for sample in padded])
            for name in samples[0].feeds
        }
    return Batch(feeds=feeds, names=tuple(sample.name for sample in samples), rows=rows)


def add_to_digest(digest: hashlib._Hash, batch: Batch) -> None:
    """Take a batch into a hash of the data, row by row: how samples were grouped does not show."""
    for row in range(batch.rows):
        for name, array in sorted(batch.feeds.items()):
            part = array[row : row + 1] if array.ndim else array
            digest.update(f"{name}{part.shape}{part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).data)
