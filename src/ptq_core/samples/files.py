"""Samples in files: find them, pair them over the inputs, read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ptq_core.errors import ConfigError, DataError, Location, Problem, did_you_mean
from ptq_core.plugins import Registered, blame
from ptq_core.samples.sample import Feeds, Sample, Samples, check_array
from ptq_core.types import ModelInput, Preprocessor, PreprocessorEntry


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
