"""``--data``: from a folder and a few flags to the config that they mean."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_core.cli.pictures import PictureFlags, picture_values
from ptq_core.errors import DataError, InputError, Location, Problem, did_you_mean

if TYPE_CHECKING:
    from ptq_core.cli.state import State
    from ptq_core.config import Config
    from ptq_core.jobs import Settings
    from ptq_core.plugins import PluginHost, Registered
    from ptq_core.types import ModelInput, PreprocessorEntry

_SAMPLES = 100  # the guide's advice: 100 to 500
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # known even if nothing can read them


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFlags:
    """What the command line says about samples; None where it says nothing."""

    data: tuple[str, ...] = ()
    calibrate_size: int | None = None
    pictures: PictureFlags = field(default_factory=PictureFlags)

    def given(self) -> list[str]:
        """The flags that were given, by their names on the command line."""
        own = {"--data": self.data, "--calibrate-size": self.calibrate_size}
        return [*(name for name, value in own.items() if value), *self.pictures.given()]


def config_from_flags(
    flags: DataFlags,
    model: Path,
    state: State,
    job: Mapping[str, Mapping[str, Any]],
    *,
    target: str | None,
    settings: Settings,
) -> Config:
    """The job with these samples; asks on a terminal for what pictures need.

    Raises:
        InputError: everything that is missing or wrong, at once.
    """
    from ptq_core.config import config_from_values

    inputs = _inputs(model, settings.input_shapes)
    ask = sys.stdin.isatty() and state.out.is_terminal and not state.json
    data = data_values(flags, inputs, state.host, ask=ask)
    if data["input_type"] == "BIN" and settings.data_layout is not None:
        data["input_data_format"] = settings.data_layout
    return config_from_values({**job, "data_preprocess_param": data}, target=target)


def rendered(config: Config) -> str:
    """The config as text to keep: INI, or TOML where INI cannot hold a name in it."""
    from ptq_core.config import render_config
    from ptq_core.errors import ConfigError

    try:
        return render_config(config, "ini")
    except ConfigError:
        return render_config(config, "toml")


def _inputs(model: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ModelInput, ...]:
    from ptq_core.graph.model import load_model
    from ptq_core.samples import model_inputs

    loaded = load_model(model)
    constants = loaded.graph.initializers  # old models list them among the inputs
    return tuple(item for item in model_inputs(loaded, shapes=shapes) if item.name not in constants)


def data_values(
    flags: DataFlags, inputs: Sequence[ModelInput], host: PluginHost, *, ask: bool = False
) -> dict[str, Any]:
    """The keys of ``[data_preprocess_param]`` that the flags mean.

    Args:
        flags: the flags.
        inputs: of the model.
        host: the plugins that read samples.
        ask: ask on the terminal for what is missing.

    Raises:
        InputError: everything that is missing or wrong, at once.
    """
    folders = _folders(flags.data, inputs)
    reader, count = _reader(folders, host)
    values: dict[str, Any] = {
        "calibrate_path": folders,
        "calibrate_size": flags.calibrate_size or min(count, _SAMPLES),
        "input_type": reader.entry.name,
    }
    options = {one.name for one in dataclasses.fields(reader.entry.options)}
    if {"normalize_mean", "resize_width"} <= options:
        return values | picture_values(flags.pictures, inputs[0], ask=ask)
    about_pictures = flags.pictures.given()
    if about_pictures:
        raise InputError(
            f"{', '.join(about_pictures)}: for pictures, and the samples are {reader.entry.name}",
            hint="leave them out; the files have to be as the model takes them",
        )
    return values


# ------------------------------------------------------------------------------ whose folder


def _folders(given: Sequence[str], inputs: Sequence[ModelInput]) -> dict[str, str]:
    names = [item.name for item in inputs]
    folders: dict[str, str] = {}
    problems = []
    for text in given:
        name = next((name for name in names if text.startswith(f"{name}:")), None)
        folder = text if name is None else text[len(name) + 1 :]
        where, colon, _ = text.partition(":")
        if name is None and len(names) == 1 and (Path(text).exists() or not colon):
            name = names[0]
        if name is None:
            found = (
                f"the model has no input '{where}'" if colon else f"'{text}' is for which input?"
            )
            hint = did_you_mean(where, names) if colon else _example(names)
            problems.append(Problem(message=f"--data: {found}", hint=hint))
        elif name in folders:
            hint = "put all samples into one folder"
            problems.append(Problem(message=f"--data: '{name}' is given twice", hint=hint))
        else:
            folders[name] = folder
    missing = [name for name in names if name not in folders]
    if missing and not problems:
        text = f"--data: no samples for input {', '.join(map(repr, missing))}"
        problems.append(Problem(message=text, hint=_example(names)))
    if problems:
        raise InputError(problems=problems)
    return folders


def _example(names: Sequence[str]) -> str:
    return "write " + " ".join(f"--data {name}:DIR" for name in names)


def _reader(
    folders: Mapping[str, str], host: PluginHost
) -> tuple[Registered[PreprocessorEntry], int]:
    """The reader of all these files, and how many samples there are."""
    counted = {folder: _suffixes(Path(folder)) for folder in folders.values()}
    total = sum(counted.values(), Counter[str]())
    readers = {
        one.qualified: one
        for one in host.entries("preprocessor")
        if any(suffix in one.entry.suffixes for suffix in total)
    }
    shown = ", ".join(f"{number} {suffix}" for suffix, number in total.most_common())
    where = Location(file=", ".join(counted))
    if not readers:
        if any(suffix in _PICTURES for suffix in total):
            host.preprocessor("IMAGE")  # not there: it says how to get it
        known = sorted({s for one in host.entries("preprocessor") for s in one.entry.suffixes})
        found = f"found {shown}" if shown else "it is empty"
        raise DataError(
            f"has no samples: {found}", location=where, hint=f"ptq reads {', '.join(known)}"
        )
    if len(readers) > 1:
        kinds = " and ".join(readers)
        raise DataError(
            f"has files for {kinds}: {shown}",
            location=where,
            hint="sort them: put the samples of one kind into a folder of their own",
        )
    (reader,) = readers.values()
    if any(Path(folder).is_file() for folder in counted):
        return reader, _SAMPLES  # stacked in one file, which only its reader can count
    per_folder = [
        sum(found[suffix] for suffix in reader.entry.suffixes) for found in counted.values()
    ]
    return reader, min(per_folder)


def _suffixes(folder: Path) -> Counter[str]:
    where = Location(file=str(folder))
    if not folder.exists():
        raise DataError("there is no such folder", location=where, hint="see --data")
    files = [folder] if folder.is_file() else folder.iterdir()
    visible = (file for file in files if not file.name.startswith(".") and file.is_file())
    return Counter(file.suffix.casefold() for file in visible)
