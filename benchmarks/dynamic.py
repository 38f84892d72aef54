"""Dynamic quantization of a text model, beside float, onnxruntime's own, and full quantization."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.cases import Case
from benchmarks.judge import FLOAT, feeds, latencies_of, open_model
from benchmarks.measure import LEFT_OUT, Row, in_turns, ratio, run_process, seconds_of
from benchmarks.samples import Feeds, read
from benchmarks.suite import Options
from benchmarks.tools import Tool, run, sections
from ptq_core import quantize
from ptq_core.errors import PtqError

_PEER = Tool(name="onnxruntime", setting="dynamic")
_LENGTHS = (16, 64, 128)  # tokens
_LATENCY_ROUNDS = 9
_PROCESSES = 3  # of which the median's peak memory counts
_OUTPUT = "sentence_embedding"
_MASK = "attention_mask"
_COLUMNS = ("MB", "times smaller", "weights", "cosine", "worst", "Spearman")

# Loads a model, runs it a few times, and nothing else.
_SESSION = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
sample = dict(np.load(sys.argv[2]))
for _ in range(5):
    session.run(None, sample)
"""


def dynamic(case: Case, options: Options) -> list[Row]:
    """Size, closeness, memory and latency of every file.

    ``times smaller``: of the file; ``weights``: of the constants that became integers alone, with
    all that stands for them. ``cosine``, ``worst``: of the sentences' embeddings to the float
    model's. ``Spearman``: rank correlation of the similarities of all pairs of sentences. ``memory
    MB``: peak of a process that loads the file and runs it, above that of an empty model. ``N ms``:
    median and smallest latency with so many tokens, batch 1, one thread.
    """
    if not case.text:
        print(f"{case.name}: no text model, nothing to quantize dynamically", file=sys.stderr)
        return []
    rows: list[Row] = []
    files = {FLOAT: case.model}
    for name, make in _makers(case, options.work):
        try:
            files[name] = make()
        except (PtqError, RuntimeError) as error:
            complaint = str(error).split("\n")[0]
            rows.append({"model": case.name, "tool": name, LEFT_OUT: complaint})
    sessions = {name: open_model(path, 1) for name, path in files.items()}
    samples = {length: _of_length(case, length) for length in _LENGTHS}
    sizes = _sizes(files)
    close = _closeness(case, files)
    memory = _memory(files, samples[max(_LENGTHS)], options.work)
    loads = in_turns(options.rounds, {name: _loader(path) for name, path in files.items()})
    speeds = {
        length: latencies_of(sessions, sample, max(options.rounds, _LATENCY_ROUNDS))
        for length, sample in samples.items()
    }
    for name in files:
        row: Row = {"file": name, **dict.fromkeys(_COLUMNS), **sizes[name], **close.get(name, {})}
        row["load ms"] = 1e3 * min(loads[name])
        row["memory MB"] = memory[name]
        row["memory ÷ float"] = memory[name] / memory[FLOAT]
        for length, times in speeds.items():
            row[f"{length} ms"] = f"{1e3 * median(times[name]):.2f} ({1e3 * min(times[name]):.2f})"
            row[f"{length} float / file"] = ratio(times[FLOAT], times[name])
            if str(_PEER) in files:
                row[f"{length} peer / file"] = ratio(times[str(_PEER)], times[name])
        rows.append({"model": case.name, **row})
    return rows


def _makers(case: Case, work: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """The files that are compared, by name."""

    def ours(name: str, config: Mapping[str, Mapping[str, Any]]) -> Callable[[], Path]:
        output = work / f"{case.name}.{name.replace(' ', '_')}.onnx"

        def make() -> Path:
            quantize(case.model, output, config=config)
            return output

        return make

    yield str(_PEER), lambda: run(_PEER, case, work).file
    common = {"quant_type": "DYNAMIC_QUANT"}
    for strategy in ("ALWC", "ACWC", "ACWL"):
        given = {"common_quant_param": common, "dynamic_quant_param": {"quant_strategy": strategy}}
        yield strategy, ours(strategy, given)
        name = f"{strategy} data"
        yield name, ours(name, {**given, "data_preprocess_param": dict(case.data)})
    products = {"quant_strategy": "ALWC", "attention": True}
    given = {"common_quant_param": common, "dynamic_quant_param": products}
    yield "ALWC attention", ours("ALWC attention", given)
    for smoothing in (True, False):
        config = sections(case, "MAX_MIN", correction=False)
        config["full_quant_param"]["smoothing"] = smoothing
        name = "full" if smoothing else "full without smoothing"
        yield name, ours(name, config)


def _of_length(case: Case, length: int) -> Feeds:
    """A sample of so many tokens: sentences behind each other, without their padding."""
    samples = list(read(case.evaluation, {}))
    return {
        name: np.concatenate([one[name][one[_MASK] == 1] for one in samples])[None, :length]
        for name in samples[0]
    }


# -------------------------------------------------------------------------------- size, closeness


def _sizes(files: Mapping[str, Path]) -> dict[str, Row]:
    """Bytes of every file, and of the constants that are not as in the float model."""
    known = {name: _constants(path) for name, path in files.items()}
    before, total = known[FLOAT], files[FLOAT].stat().st_size
    found: dict[str, Row] = {}
    for name, path in files.items():
        size, after = path.stat().st_size, known[name]
        row: Row = {"MB": size / 1e6, "times smaller": total / size}
        gone = sum(nbytes for one, nbytes in before.items() if one not in after)
        if gone:
            row["weights"] = gone / sum(each for one, each in after.items() if one not in before)
        found[name] = row
    return found


def _constants(path: Path) -> dict[str, int]:
    """Bytes of the constants, by name and type: one with other values is the same."""
    graph = onnx.load(path).graph
    return {
        f"{one.name} {one.data_type}": numpy_helper.to_array(one).nbytes
        for one in graph.initializer
    }


def _closeness(case: Case, files: Mapping[str, Path]) -> dict[str, Row]:
    """How close embeddings are to the float model's, and their similarities in order to its."""
    vectors = {}
    for name, path in files.items():
        session = open_model(path, 0)
        each = [session.run([_OUTPUT], one)[0][0] for one in feeds(case.evaluation, session)]
        found = np.array(each, np.float64)
        vectors[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
    pairs = np.triu_indices(len(vectors[FLOAT]), 1)
    similar = {name: (each @ each.T)[pairs] for name, each in vectors.items()}
    figures: dict[str, Row] = {}
    for name, each in vectors.items():
        cosines = (each * vectors[FLOAT]).sum(axis=1)
        if name != FLOAT:
            figures[name] = {
                "cosine": round(float(cosines.mean()), 5),
                "worst": round(float(cosines.min()), 5),
                "Spearman": round(rank_correlation(similar[FLOAT], similar[name]), 5),
            }
    return figures


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's; equal values share the mean of their ranks."""

    def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
        _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[where]

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


# ------------------------------------------------------------------------------------ memory, time


def _memory(files: Mapping[str, Path], sample: Feeds, work: Path) -> dict[str, float]:
    """Peak of resident memory in MB, above that of a process with an empty model."""
    given, empty = work / "sample.npz", work / "empty.onnx"
    nothing, none = work / "nothing.npz", "an empty model"
    np.savez(given, **sample)
    np.savez(nothing, x=np.zeros(1, np.float32))
    value = [helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, [1]) for one in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "empty", value[:1], value[1:]
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), empty)

    def peak(model: Path, feed: Path) -> Callable[[], float]:
        command = [sys.executable, "-c", _SESSION, str(model), str(feed)]
        return lambda: run_process(command).peak_mb

    processes = {none: peak(empty, nothing)}
    processes |= {name: peak(path, given) for name, path in files.items()}
    found = in_turns(_PROCESSES, processes)
    return {name: median(found[name]) - median(found[none]) for name in files}


def _loader(path: Path) -> Callable[[], float]:
    return lambda: seconds_of(lambda: open_model(path, 1))
