"""How good quantized files are: their speed and their closeness, in plain onnxruntime."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.cases import Case
from benchmarks.measure import in_turns, seconds_of
from benchmarks.samples import Feeds, folders, names, read

Sessions = Mapping[str, onnxruntime.InferenceSession]

FLOAT = "float"
_BURST = 0.15  # seconds that one file runs before it is the next one's turn


def open_model(path: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """A plain session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(data: Mapping[str, Any], session: onnxruntime.InferenceSession) -> Iterator[Feeds]:
    """The samples, as this session takes them."""
    return read(data, {one.name: one.shape for one in session.get_inputs()})


def plain_loop(case: Case, session: onnxruntime.InferenceSession) -> float:
    """Seconds of reading and inference over the calibration samples, one after the other."""
    return seconds_of(lambda: [session.run(None, one) for one in feeds(case.data, session)])


def latencies(case: Case, files: Mapping[str, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of one inference of each file, once a round: one thread, batch 1."""
    sessions = {name: open_model(path, 1) for name, path in files.items()}
    return latencies_of(sessions, next(feeds(case.evaluation, sessions[FLOAT])), rounds)


def latencies_of(sessions: Sessions, sample: Feeds, rounds: int) -> dict[str, list[float]]:
    """The same of sessions, with this sample."""
    bursts = {name: _burst(session, sample) for name, session in sessions.items()}
    found = in_turns(1 + rounds, bursts)
    return {name: each[1:] for name, each in found.items()}  # the first round warms up


def _burst(session: onnxruntime.InferenceSession, sample: Feeds) -> Callable[[], float]:
    """Median seconds of one inference, over a burst: its own weights are in the cache."""

    def measure() -> float:
        times, end = [], time.perf_counter() + _BURST
        while time.perf_counter() < end:
            times.append(seconds_of(lambda: session.run(None, sample)))
        return median(times)

    return measure


def closeness(
    case: Case, files: Mapping[str, Path], only: str | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of every file, by output: the float model's top-1, the others' distance from it.

    Args:
        case: its evaluation samples judge.
        files: one of them the float model.
        only: the output that matters; all of them by default.
    """
    sessions = {name: open_model(path, 0) for name, path in files.items()}
    every = [one.name for one in sessions[FLOAT].get_outputs()]
    outputs = every if only is None else [only]
    found: dict[str, list[list[np.ndarray]]] = {name: [] for name in files}
    for sample in feeds(case.evaluation, sessions[FLOAT]):
        for name, session in sessions.items():
            found[name].append(session.run(outputs, sample))
    labels = labels_of(case)
    figures = {}
    for index, output in enumerate(outputs):
        arrays = {name: [one[index] for one in each] for name, each in found.items()}
        logits = case.classifier and output == every[0]
        figures[output] = {
            name: figures_of(arrays[FLOAT], each, logits, labels) for name, each in arrays.items()
        }
    return figures


def figures_of(
    wanted: list[np.ndarray], found: list[np.ndarray], logits: bool, labels: np.ndarray | None
) -> dict[str, float]:
    figures = {}
    if logits:
        best = np.array([one.argmax() for one in found])
        if labels is not None:
            figures["top-1"] = 100 * float((best == labels).mean())
    if found is wanted:
        return figures
    if logits:
        agreeing = best == np.array([one.argmax() for one in wanted])
        figures["agreement"] = 100 * float(agreeing.mean())
    figures["cosine"] = round(_mean_cosine(zip(wanted, found, strict=True)), 5)
    figures["SQNR dB"] = round(_sqnr(zip(wanted, found, strict=True)), 1)
    return figures


def labels_of(case: Case) -> np.ndarray | None:
    """The classes of the evaluation samples, where their folder has a ``labels.csv``."""
    path = next(iter(folders(case.evaluation).values())) / "labels.csv"
    if not case.classifier or not path.exists():
        return None
    with path.open(newline="") as file:
        known = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    return np.array([known[name] for name in names(case.evaluation)])


def _mean_cosine(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    each = [(a.ravel().astype(float), b.ravel().astype(float)) for a, b in pairs]
    return float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in each]))


def _sqnr(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    each = [(a.astype(float), b.astype(float)) for a, b in pairs]
    signal = sum(float((a**2).sum()) for a, _ in each)
    noise = sum(float(((a - b) ** 2).sum()) for a, b in each)
    return float(10 * np.log10(signal / noise)) if noise else math.inf
