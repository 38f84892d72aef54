"""The benchmarks: each takes a case and gives rows of a table."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from benchmarks.cases import Case, peer_file, ptq_file, quantized, repeated, run_peer, run_ptq
from benchmarks.measure import Row, in_turns, ratio, seconds_of
from benchmarks.samples import folders, names, read
from ptq_core import quantize

_BURST = 0.15  # seconds that one file runs before it is the next one's turn
_LATENCY_ROUNDS = 15


def calibration(case: Case, work: Path, rounds: int) -> list[Row]:
    """Calibration against a plain loop of reading and inference over the same samples."""
    rows: list[Row] = []
    for threads in (1, 0):
        config = {**case.config, "runner.onnxruntime": {"threads": threads}}
        output = ptq_file(case, work).with_suffix(".calibration.onnx")
        plain = open_model(case.model, threads)

        def calibrate(config: dict = config, output: Path = output) -> float:
            return quantize(case.model, output, config=config).seconds["calibrate"]

        def loop(plain: onnxruntime.InferenceSession = plain) -> float:
            return seconds_of(lambda: [plain.run(None, one) for one in feeds(case.data, plain)])

        found = in_turns(rounds + 1, {"ptq": calibrate, "loop": loop})
        ours, plainly = found["ptq"][1:], found["loop"][1:]  # the first round warms up
        rows.append(
            {
                "model": case.name,
                "threads": threads or "default",
                "samples": len(names(case.data)),
                "calibration s": median(ours),
                "plain loop s": median(plainly),
                "ratio (min-max)": ratio(ours, plainly),
            }
        )
    return rows


def process(case: Case, work: Path, rounds: int) -> list[Row]:
    """Whole processes, from the command to the file; without ptq's verification."""
    if case.dynamic:  # the peer does another job
        return []
    reports = []

    def ptq() -> float:
        done, report = run_ptq(case, work)
        reports.append(report["seconds"])
        return done.seconds - report["seconds"]["verify"]

    found = in_turns(rounds, {"ptq": ptq, "peer": lambda: run_peer(case, work).seconds})
    return [
        {
            "model": case.name,
            "samples": len(names(case.data)),
            "ptq s": median(found["ptq"]),
            "peer s": median(found["peer"]),
            "ptq / peer (min-max)": ratio(found["ptq"], found["peer"]),
            "ptq's verification s": median(one["verify"] for one in reports),
            "ptq MB": ptq_file(case, work).stat().st_size / 1e6,
            "peer MB": peer_file(case, work).stat().st_size / 1e6,
        }
    ]


def memory(case: Case, work: Path, rounds: int) -> list[Row]:
    """Peak of resident memory; ptq's includes its verification."""
    if case.dynamic:
        return []
    many = repeated(case, 4, work)
    return [
        {
            "model": case.name,
            "samples": len(names(case.data)),
            "ptq peak MB": run_ptq(case, work)[0].peak_mb,
            "ptq peak MB, 4 times the samples": run_ptq(many, work)[0].peak_mb,
            "peer peak MB": run_peer(case, work).peak_mb,
        }
    ]


def latency(case: Case, work: Path, rounds: int) -> list[Row]:
    """The float model and both int8 files in plain onnxruntime, one thread, batch 1."""
    files = {"float": case.model, **quantized(case, work)}
    sessions = {name: open_model(path, 1) for name, path in files.items()}
    sample = next(feeds(case.evaluation, sessions["float"]))
    bursts = {name: _burst(session, sample) for name, session in sessions.items()}
    found = in_turns(1 + max(rounds, _LATENCY_ROUNDS), bursts)
    times = {name: each[1:] for name, each in found.items()}  # the first round warms up
    row: Row = {"model": case.name}
    row |= {f"{name} ms": 1000 * median(each) for name, each in times.items()}
    row |= {
        f"float / {name} (min-max)": ratio(times["float"], each)
        for name, each in times.items()
        if name != "float"
    }
    if "peer" in times:
        row["peer / ptq (min-max)"] = ratio(times["peer"], times["ptq"])
    return [row]


def accuracy(case: Case, work: Path, rounds: int) -> list[Row]:
    """Every output of both int8 files against the float model's, over the evaluation samples."""
    files = {"float": case.model, **quantized(case, work)}
    sessions = {name: open_model(path, 0) for name, path in files.items()}
    results: dict[str, list[list[np.ndarray]]] = {name: [] for name in files}
    for sample in feeds(case.evaluation, sessions["float"]):
        for name, session in sessions.items():
            results[name].append(session.run(None, sample))
    labels = _labels(case)
    rows = []
    for index, output in enumerate(sessions["float"].get_outputs()):
        arrays = {name: [one[index] for one in each] for name, each in results.items()}
        row: Row = {"model": case.name, "output": output.name, "samples": len(arrays["float"])}
        if case.classifier and index == 0:
            best = {name: np.array([one.argmax() for one in each]) for name, each in arrays.items()}
            for name, each in best.items() if labels is not None else ():
                row[f"top-1 {name}"] = 100 * float((each == labels).mean())
            for name in [name for name in best if name != "float"]:
                row[f"agreement {name}"] = 100 * float((best[name] == best["float"]).mean())
        for name in [name for name in arrays if name != "float"]:
            row[f"cosine {name}"] = round(_mean_cosine(arrays["float"], arrays[name]), 5)
            row[f"SQNR dB {name}"] = round(_sqnr(arrays["float"], arrays[name]), 1)
        rows.append(row)
    return rows


BENCHMARKS: Mapping[str, Callable[[Case, Path, int], list[Row]]] = {
    "calibration": calibration,
    "process": process,
    "memory": memory,
    "latency": latency,
    "accuracy": accuracy,
}


def open_model(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A plain session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(data, session):
    """The samples, as this session takes them."""
    return read(data, {one.name: one.shape for one in session.get_inputs()})


def _burst(session: onnxruntime.InferenceSession, sample: dict) -> Callable[[], float]:
    """Median seconds of one inference, over a burst: its own weights are in the cache."""

    def measure() -> float:
        times, end = [], time.perf_counter() + _BURST
        while time.perf_counter() < end:
            times.append(seconds_of(lambda: session.run(None, sample)))
        return median(times)

    return measure


def _labels(case: Case) -> np.ndarray | None:
    """The classes of the evaluation samples, where their folder has a ``labels.csv``."""
    path = next(iter(folders(case.evaluation).values())) / "labels.csv"
    if not case.classifier or not path.exists():
        return None
    with path.open(newline="") as file:
        known = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    return np.array([known[name] for name in names(case.evaluation)])


def _mean_cosine(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    pairs = [
        (a.ravel().astype(float), b.ravel().astype(float))
        for a, b in zip(wanted, found, strict=True)
    ]
    return float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs]))


def _sqnr(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    signal = sum(float((a.astype(float) ** 2).sum()) for a in wanted)
    noise = sum(
        float(((a - b).astype(float) ** 2).sum()) for a, b in zip(wanted, found, strict=True)
    )
    return float(10 * np.log10(signal / noise))
