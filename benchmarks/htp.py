"""The target DSP on Qualcomm's HTP library: where nodes run, and how close the results are."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.judge import feeds, open_model
from benchmarks.measure import LEFT_OUT, Row
from benchmarks.suite import Options
from ptq_core import quantize
from ptq_core.errors import PtqError
from ptq_core.jobs import Settings
from tests import htp as library

_CALIBRATED = 48  # samples
_EVALUATED = 16  # the library computes a picture in a second or two
_METHOD = "MAX_MIN"

Outputs = list[NDArray[Any]]


def htp(case: Case, options: Options) -> list[Row]:
    """A file with 8 and one with 16 bits.

    ``on CPU``: operators that a session left to the CPU; "none" where a strict session takes the
    whole model. ``steps``: of an output, between the library and what the file says, the median and
    the largest. ``HTP ~ file``, ``HTP ~ float``, ``file ~ float``: mean cosine of the worst output.
    ``agreement``: of the HTP with the float model's classes, in percent. ``ms``: an inference in
    the library, which is no measure of the device.
    """
    missing = library.missing()
    if missing:
        print(f"{case.name}: {missing}", file=sys.stderr)
        return []
    return [row for bits in (8, 16) for row in _row(case, options.work, bits)]


def _row(case: Case, work: Path, bits: int) -> Iterator[Row]:
    row: Row = {"model": case.name, "bits": bits}
    path = work / f"{case.name}.htp{bits}.onnx"
    floats = open_model(case.model, 0)
    samples = list(islice(feeds(case.evaluation, floats), _EVALUATED))
    try:
        _quantize(case, path, bits, {name: one.shape for name, one in samples[0].items()})
    except PtqError as error:
        yield {**row, LEFT_OUT: str(error).split("\n")[0]}
        return
    session, left = _open(path)
    reference = library.open_reference(path)
    times: list[float] = []
    found: list[tuple[Outputs, Outputs, Outputs]] = []
    for sample in samples:
        start = time.perf_counter()
        device = session.run(None, sample)
        times.append(time.perf_counter() - start)
        found.append((device, reference.run(None, sample), floats.run(None, sample)))
    steps = _steps(found)
    row |= {"on CPU": left, "steps median": float(np.median(steps)), "most": float(steps.max())}
    for name, first, second in (
        ("HTP ~ file", 0, 1), ("HTP ~ float", 0, 2), ("file ~ float", 1, 2),
    ):  # fmt: skip
        row[name] = round(_cosine(found, first, second), 5)
    if case.classifier:
        same = [np.argmax(one[0][0]) == np.argmax(one[2][0]) for one in found]
        row["agreement"] = 100 * float(np.mean(same))
    yield {**row, "ms": 1e3 * median(times)}


def _quantize(case: Case, path: Path, bits: int, shapes: dict[str, tuple[int, ...]]) -> None:
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": _METHOD, "target_device": "DSP"},
        "data_preprocess_param": {**case.data, "calibrate_size": _CALIBRATED},
        "target.DSP": {"activation_bits": bits},
    }
    quantize(case.model, path, config=config, settings=Settings(input_shapes=shapes))


def _open(path: Path) -> tuple[Any, str]:
    """A strict session, or another one with what it leaves to the CPU."""
    try:
        return library.open_htp(path), "none"
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions have no base of their own
        session = library.open_htp(path, strict=False)
        left = library.on_cpu(session)
        return session, ", ".join(f"{count} {name}" for name, count in left.most_common())


def _steps(found: list[tuple[Outputs, Outputs, Outputs]]) -> NDArray[np.float64]:
    """Differences between library and file, in steps that an output's codes have at most."""
    steps = []
    for output in range(len(found[0][0])):
        device, reference = (np.stack([one[kind][output] for one in found]) for kind in (0, 1))
        values = np.unique(reference)
        step = np.diff(values).min() if values.size > 1 else 1.0  # neighbouring codes
        steps.append(np.abs(device.astype(np.float64) - reference).reshape(-1) / step)
    return np.concatenate(steps)


def _cosine(found: list[tuple[Outputs, Outputs, Outputs]], first: int, second: int) -> float:
    def of_one(output: int) -> float:
        cosines = []
        for one in found:
            a, b = (one[kind][output].astype(np.float64).reshape(-1) for kind in (first, second))
            cosines.append(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
        return float(np.mean(cosines))

    return min(of_one(output) for output in range(len(found[0][0])))
