"""What is measured: models with their data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.samples import folders, names
from ptq_core.config import load_config, resolve_path

SAMPLES = 100
_EVERYTHING = 1_000_000
_DIGITS = Path(__file__).parents[1] / "examples" / "digits"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model and its data.

    Attributes:
        name: for tables.
        model: the float model.
        data: the section [data_preprocess_param]: what to calibrate with.
        evaluation: the same with other samples: what to judge by.
        classifier: the first output is one logit per class.
        text: a transformer, whose peers' best is dynamic quantization, without calibration.
    """

    name: str
    model: Path
    data: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    classifier: bool = False
    text: bool = False


def repeated(case: Case, times: int, work: Path) -> Case:
    """The same samples so many times, as links."""
    linked = {}
    for name, folder in folders(case.data).items():
        linked[name] = work / f"{case.name}_{times}_times" / name
        linked[name].mkdir(parents=True, exist_ok=True)
        for index in range(times):
            for file in names(case.data):
                link = linked[name] / f"{index}_{file}"
                link.unlink(missing_ok=True)
                link.symlink_to((folder / file).resolve())
    size = times * len(names(case.data))
    return replace(case, data={**case.data, **_where(linked, size)})


# ---------------------------------------------------------------------------- where they come from


def example() -> Case:
    """The example that comes with ptq."""
    return own(_DIGITS / "digits.onnx", _DIGITS / "full_quant.toml", _DIGITS / "eval")


def own(model: Path, config: Path, evaluation: Path) -> Case:
    """A classifier of pictures with its ptq config."""
    loaded = load_config(config)
    if loaded.data is None or loaded.data.input_type != "IMAGE":
        sys.exit(f"{config}: [data_preprocess_param] has to say how pictures are read")
    data = loaded.data.model_dump(exclude_unset=True)
    ((name, folder),) = loaded.data.calibrate_path.items()
    return Case(
        name=model.stem,
        model=model,
        data={**data, **_where({name: resolve_path(loaded, folder)[0]}, data["calibrate_size"])},
        evaluation={**data, **_where({name: evaluation}, _EVERYTHING)},
        classifier=True,
    )


def listed(models: Path, data: Path, work: Path) -> Iterator[Case]:
    """The models that ``models.json`` describes; a line on stderr for each that is not there."""
    for entry in json.loads((models / "models.json").read_text())["models"]:
        model = models / entry["file"]
        calib, evaluation = (data / entry[f"{use}_data"] for use in ("calibration", "evaluation"))
        missing = [str(path) for path in (model, calib, evaluation) if not path.exists()]
        if missing:
            print(f"{entry['name']}: skipped, {missing[0]} is missing", file=sys.stderr)
            continue
        if entry["kind"] == "text":
            files = [
                _token_files(entry["arrays"], folder, work / entry["name"] / folder.name)
                for folder in (calib, evaluation)
            ]
            options = {"input_type": "BIN"}
        else:
            files = [{entry["inputs"][0]["name"]: folder} for folder in (calib, evaluation)]
            options = _image_options(entry["preprocessing"])
        yield Case(
            name=entry["name"],
            model=model,
            data={**options, **_where(files[0], SAMPLES)},
            evaluation={**options, **_where(files[1], _EVERYTHING)},
            classifier=entry["kind"] == "image-classifier",
            text=entry["kind"] == "text",
        )


def _where(paths: Mapping[str, Path], size: int) -> dict[str, Any]:
    text = ",".join(f"{name}:{folder.absolute()}" for name, folder in paths.items())
    return {"calibrate_path": text, "calibrate_size": size}


def _image_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {
        "input_type": "IMAGE",
        "image_to_format": given["channels"],
        "normalize_mean": given["mean"],
        "normalize_std": given["std"],
    }
    prefix = {"center-crop": "center_crop", "stretch": "resize", "none": ""}[given["resize"]]
    if prefix:
        options |= {f"{prefix}_{side}": given[side] for side in ("width", "height")}
    if prefix == "resize":
        options["resize_method"] = "LINEAR"
    return options


def _token_files(arrays: Mapping[str, str], source: Path, to: Path) -> dict[str, Path]:
    """A raw file per sample and input, as ptq's BIN reader takes them."""
    for name, file in arrays.items():
        (to / name).mkdir(parents=True, exist_ok=True)
        for index, row in enumerate(np.load(source / file)):
            row.astype(np.int64).tofile(to / name / f"{index:04}.bin")
    return {name: to / name for name in arrays}
