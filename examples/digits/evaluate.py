"""What the example measures: accuracy on eval/, agreement and latency of ONNX files.

`prepare` is the one definition of this network's input: training, evaluation and the keys of
`full_quant.cfg` all describe the same steps in the same order.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

HERE = Path(__file__).parent
INPUT_SIZE = 32  # resize_width, resize_height
MEAN = STD = np.float32(127.5)  # normalize_mean, normalize_std

FloatArray = NDArray[np.float32]


def prepare(rgb: NDArray[Any]) -> FloatArray:
    """The network's input, shape (1, 3, 32, 32), of one RGB picture (height, width, 3), 0..255.

    Normalization comes before resizing, as in ptq's own preprocessing: the picture is resized in
    float32, without rounding to 8 bits.
    """
    normalized = (rgb.astype(np.float32) - MEAN) / STD
    resized = cv2.resize(normalized, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)


def load_eval() -> tuple[FloatArray, NDArray[np.int64]]:
    """All pictures of eval/, prepared, and their digits."""
    with (HERE / "eval" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = np.concatenate([_read(HERE / "eval" / row["file"]) for row in rows])
    return pictures, np.array([int(row["class_index"]) for row in rows])


def open_model(path: Path) -> onnxruntime.InferenceSession:
    """A session on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def predict(model: onnxruntime.InferenceSession, pictures: FloatArray) -> NDArray[np.int64]:
    """The digit that the model sees in each picture."""
    logits = model.run(None, {"image": pictures})[0]
    digits: NDArray[np.int64] = np.argmax(logits, axis=1)
    return digits


def latencies(
    models: Sequence[onnxruntime.InferenceSession],
    picture: FloatArray,
    *,
    rounds: int = 300,
    runs: int = 5,
) -> list[float]:
    """Milliseconds that each model takes for one picture.

    The models take turns in short rounds, so that whatever else the machine does meets all of
    them alike; the median over the rounds ignores the rounds that were disturbed.
    """
    times = np.empty((rounds, len(models)))
    for model in models:
        for _ in range(10 * runs):  # warm-up: memory arenas, caches, clock
            model.run(None, {"image": picture})
    for row in times:
        for column, model in enumerate(models):
            start = time.perf_counter()
            for _ in range(runs):
                model.run(None, {"image": picture})
            row[column] = (time.perf_counter() - start) / runs
    return [1000 * float(median) for median in np.median(times, axis=0)]


def _read(path: Path) -> FloatArray:
    bgr = cv2.imread(str(path))
    if bgr is None:
        raise OSError(f"{path} is missing or is no picture; `git checkout {HERE}` restores it")
    return prepare(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
