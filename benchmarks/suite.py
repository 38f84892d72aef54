"""The benchmarks of ptq beside one peer: each takes a case and gives rows of a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.cases import Case, repeated
from benchmarks.judge import FLOAT, closeness, latencies, open_model, plain_loop
from benchmarks.measure import Row, in_turns, ratio, turns
from benchmarks.samples import names
from benchmarks.tools import PTQ, Made, Tool, run, sections, try_out
from ptq_core import quantize

_LATENCY_ROUNDS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line asks of a benchmark.

    Attributes:
        work: where files may be put.
        rounds: how often everything is measured.
        methods: ptq's calibration methods; none: what the benchmark has by default.
        tools: names of the tools that are compared; none: all.
    """

    work: Path
    rounds: int
    methods: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


def calibration(case: Case, options: Options) -> list[Row]:
    """Calibration against a plain loop of reading and inference over the same samples."""
    rows: list[Row] = []
    for method in options.methods or ("MAX_MIN",):
        try_out(Tool(name=PTQ, setting=method), case, options.work)
        rows += [_calibration(case, method, threads, options) for threads in (1, 0)]
    return rows


def _calibration(case: Case, method: str, threads: int, options: Options) -> Row:
    config = sections(case, method, correction=False)
    config["runner.onnxruntime"] = {"threads": threads}
    output = options.work / f"{case.name}.calibration.onnx"
    plain = open_model(case.model, threads)

    def calibrate() -> float:
        return quantize(case.model, output, config=config).seconds["calibrate"]

    functions = {"ptq": calibrate, "loop": lambda: plain_loop(case, plain)}
    found = in_turns(options.rounds + 1, functions)
    ours, plainly = found["ptq"][1:], found["loop"][1:]  # the first round warms up
    return {
        "model": case.name,
        "method": method,
        "threads": threads or "default",
        "samples": len(names(case.data)),
        "calibration s": median(ours),
        "plain loop s": median(plainly),
        "ratio (min-max)": ratio(ours, plainly),
    }


def stages(case: Case, options: Options) -> list[Row]:
    """Where the time of ptq's process goes, what bias correction costs, and the memory it takes."""
    rows: list[Row] = []
    for method in options.methods or ("MAX_MIN",):
        plain, corrected = (
            Tool(name=PTQ, setting=method, correction=correction) for correction in (False, True)
        )
        for tool in (plain, corrected):
            try_out(tool, case, options.work)
        made: dict[Tool, list[Made]] = {plain: [], corrected: []}
        for tool in turns(options.rounds, [*made]):
            made[tool].append(run(tool, case, options.work))
        rows += [_stages(case, tool, made[tool], options) for tool in made]
        both = [[one.process.seconds for one in made[tool]] for tool in (corrected, plain)]
        rows[-1]["corrected / not (min-max)"] = ratio(*both)
    return rows


def _stages(case: Case, tool: Tool, made: Sequence[Made], options: Options) -> Row:
    row: Row = {"model": case.name, "method": tool.setting, "bias correction": tool.correction}
    row["process s"] = median(one.process.seconds for one in made)
    row["start-up s"] = median(one.process.seconds - sum(one.seconds.values()) for one in made)
    row |= {f"{stage} s": median(one.seconds[stage] for one in made) for stage in made[0].seconds}
    row["peak MB"] = median(one.process.peak_mb for one in made)
    ten_times = run(tool, repeated(case, 10, options.work), options.work)
    row["peak MB, 10 times the samples"] = ten_times.process.peak_mb
    return row


def process(case: Case, options: Options) -> list[Row]:
    """Whole processes, from the command to the file; without ptq's verification."""
    if case.text:  # the peer does another job
        return []
    verification: list[float] = []
    made: dict[str, Made] = {}

    def ptq() -> float:
        made["ptq"] = run(_PTQ, case, options.work)
        verification.append(made["ptq"].seconds["verify"])
        return made["ptq"].process.seconds - verification[-1]

    def peer() -> float:
        made["peer"] = run(_peer(case), case, options.work)
        return made["peer"].process.seconds

    peer()  # makes its environment
    found = in_turns(options.rounds, {"ptq": ptq, "peer": peer})
    return [
        {
            "model": case.name,
            "samples": len(names(case.data)),
            "ptq s": median(found["ptq"]),
            "peer s": median(found["peer"]),
            "ptq / peer (min-max)": ratio(found["ptq"], found["peer"]),
            "ptq's verification s": median(verification),
            "ptq MB": made["ptq"].megabytes,
            "peer MB": made["peer"].megabytes,
        }
    ]


def memory(case: Case, options: Options) -> list[Row]:
    """Peak of resident memory; ptq's includes its verification."""
    if case.text:
        return []
    many = repeated(case, 4, options.work)
    return [
        {
            "model": case.name,
            "samples": len(names(case.data)),
            "ptq peak MB": run(_PTQ, case, options.work).process.peak_mb,
            "ptq peak MB, 4 times the samples": run(_PTQ, many, options.work).process.peak_mb,
            "peer peak MB": run(_peer(case), case, options.work).process.peak_mb,
        }
    ]


def latency(case: Case, options: Options) -> list[Row]:
    """The float model and both int8 files in plain onnxruntime, one thread, batch 1."""
    times = latencies(case, _files(case, options.work), max(options.rounds, _LATENCY_ROUNDS))
    row: Row = {"model": case.name}
    row |= {f"{name} ms": 1000 * median(each) for name, each in times.items()}
    row |= {
        f"float / {name} (min-max)": ratio(times[FLOAT], each)
        for name, each in times.items()
        if name != FLOAT
    }
    if "peer" in times:
        row["peer / ptq (min-max)"] = ratio(times["peer"], times["ptq"])
    return [row]


def accuracy(case: Case, options: Options) -> list[Row]:
    """Every output of both int8 files against the float model's, over the evaluation samples."""
    rows = []
    for output, figures in closeness(case, _files(case, options.work)).items():
        row: Row = {"model": case.name, "output": output}
        for figure in ("top-1", "agreement", "cosine", "SQNR dB"):
            row |= {f"{figure} {name}": each.get(figure) for name, each in figures.items()}
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows


_PTQ = Tool(name=PTQ, setting="MAX_MIN")


def _peer(case: Case) -> Tool:
    return Tool(name="onnxruntime", setting="dynamic" if case.text else "MinMax")


def _files(case: Case, work: Path) -> dict[str, Path]:
    """The float model, ptq's file and, where it can make one, the peer's."""
    files = {FLOAT: case.model, "ptq": run(_PTQ, case, work).file}
    try:
        files["peer"] = run(_peer(case), case, work).file
    except RuntimeError as error:
        print(f"{case.name}: no file of the peer: {error}", file=sys.stderr)
    return files
