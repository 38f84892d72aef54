"""Samples for the peers, whose environments have no ptq: the same files, the same arrays.

NumPy and OpenCV only. What a sample is says ptq's section [data_preprocess_param], as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

_ENDINGS = {"IMAGE": {".jpg", ".jpeg", ".png", ".bmp"}, "BIN": {".bin"}}
_UNDERSTOOD = {
    "calibrate_path", "calibrate_size", "input_type", "image_to_format", "normalize_mean",
    "normalize_std", "resize_width", "resize_height", "resize_method", "center_crop_width",
    "center_crop_height",
}  # fmt: skip


class Samples:
    """The samples that a section names: file names, and how one becomes the model's inputs."""

    def __init__(self, data: dict) -> None:
        if unknown := set(data) - _UNDERSTOOD:
            raise ValueError(f"{', '.join(sorted(unknown))}: the peers' reader does not know how")
        if data.get("resize_method", "LINEAR") != "LINEAR":
            raise ValueError(f"resize_method {data['resize_method']}: the peers' reader has LINEAR")
        self._data = data
        parts = dict(part.split(":", 1) for part in data["calibrate_path"].split(","))
        self._folders = {name: Path(folder) for name, folder in parts.items()}
        files = next(iter(self._folders.values())).iterdir()
        endings = _ENDINGS[data["input_type"]]
        names = sorted(file.name for file in files if file.suffix.lower() in endings)
        self.names = names[: data["calibrate_size"]]

    def read(self, name: str) -> dict[str, np.ndarray]:
        """One sample, batch axis included."""
        if self._data["input_type"] == "BIN":  # token ids here: [length], int64
            return {
                one: np.fromfile(folder / name, np.int64)[None]
                for one, folder in self._folders.items()
            }
        ((model_input, folder),) = self._folders.items()
        return {model_input: self._picture(folder / name)}

    def _picture(self, path: Path) -> np.ndarray:
        data = self._data
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)  # BGR
        if pixels is None:
            raise ValueError(f"{path} is no picture that OpenCV reads")
        if data.get("image_to_format") == "RGB":
            pixels = pixels[..., ::-1]
        elif data.get("image_to_format") == "GRAY":
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[..., None]
        mean = np.array(data.get("normalize_mean") or 0, np.float32)
        std = np.array(data.get("normalize_std") or 1, np.float32)
        if "resize_width" not in data:  # cropped first: the pixels that stay are the same
            return _channels_first((_crop(pixels, data).astype(np.float32) - mean) / std)
        values = (pixels.astype(np.float32) - mean) / std
        size = data["resize_width"], data["resize_height"]
        resized = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        return _channels_first(_crop(resized.reshape(size[::-1] + values.shape[2:]), data))


def arguments(settings: Collection[str]) -> tuple[Path, Samples, Path, str]:
    """The command line that every peer's script has: model, samples, output, setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path, help="JSON file of a section [data_preprocess_param]")
    parser.add_argument("output", type=Path)
    parser.add_argument("setting", choices=settings)
    given = parser.parse_args()
    samples = Samples(json.loads(given.samples.read_text()))
    return given.model, samples, given.output, given.setting


def _crop(values: np.ndarray, data: dict) -> np.ndarray:
    if "center_crop_width" not in data:
        return values
    height, width = data["center_crop_height"], data["center_crop_width"]
    top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
    return values[top : top + height, left : left + width]


def _channels_first(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])
