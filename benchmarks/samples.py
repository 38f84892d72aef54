"""The samples that a config names, read with the same reader that ptq uses; imports little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ptq_core.api import ModelInput

Feeds = dict[str, Any]
Shapes = Mapping[str, Sequence[int | str | None]]


def folders(data: Mapping[str, Any]) -> dict[str, Path]:
    """The folder of each input."""
    given = data["calibrate_path"]
    if isinstance(given, str):
        given = dict(part.split(":", 1) for part in given.split(","))
    return {name: Path(folder) for name, folder in given.items()}


def names(data: Mapping[str, Any]) -> list[str]:
    """File names of the samples, in the order in which ptq takes them."""
    folder = next(iter(folders(data).values()))
    suffixes = {".bin"} if data["input_type"] == "BIN" else {".jpg", ".jpeg", ".png", ".bmp"}
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return found[: data["calibrate_size"]]


def read(data: Mapping[str, Any], shapes: Shapes) -> Iterator[Feeds]:
    """One dict of arrays after the other, nothing read ahead.

    Args:
        data: the section [data_preprocess_param] of a config.
        shapes: of the model's inputs.
    """
    where = folders(data)
    if data["input_type"] == "BIN":  # of token arrays here: [1, length], int64
        for name in names(data):
            yield {one: np.fromfile(where[one] / name, np.int64)[None] for one in where}
        return
    from ptq_preprocess_image.options import ImageOptions
    from ptq_preprocess_image.pipeline import ImageReader

    keys = {field.name for field in fields(ImageOptions)}
    ((model_input, folder),) = where.items()
    reader = ImageReader(
        ModelInput(name=model_input, dtype="float32", shape=tuple(shapes[model_input])),
        ImageOptions(**{key: value for key, value in data.items() if key in keys}),
    )
    for name in names(data):
        yield {model_input: reader.read(folder / name)}
