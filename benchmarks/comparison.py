"""ptq and its peers, each a whole process in its own environment, on the same samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import onnxruntime

from benchmarks.cases import Case
from benchmarks.judge import FLOAT, closeness, latencies, open_model, plain_loop
from benchmarks.measure import LEFT_OUT, Row, ratio, turns
from benchmarks.suite import Options
from benchmarks.tools import METHODS, PTQ, Made, Tool, run, try_out

_SLOW = 15.0  # seconds: a process that takes longer is run in the first round only
_LATENCY_ROUNDS = 9

_ORT_MIN_MAX = Tool(name="onnxruntime", setting="MinMax")
_ORT_PERCENTILE = Tool(name="onnxruntime", setting="Percentile")
_ORT_ENTROPY = Tool(name="onnxruntime", setting="Entropy")
_ORT_DYNAMIC = Tool(name="onnxruntime", setting="dynamic")
_NNCF = Tool(name="nncf", setting="default")
_NNCF_ACCURATE = Tool(name="nncf", setting="accurate")
_NNCF_FOLDED = Tool(name="nncf", setting="folded accurate")
_ONC = Tool(name="onnx-neural-compressor", setting="MinMax")

_SOME = (_ORT_MIN_MAX, _ORT_PERCENTILE, _NNCF, _NNCF_ACCURATE)
_WITH_BATCH_NORM = (*_SOME, _NNCF_FOLDED)
_ALL = (*_WITH_BATCH_NORM, _ORT_ENTROPY, _ONC)
_PEERS: Mapping[str, Sequence[Tool]] = {
    "mobilenet_v2": (*_SOME, _ORT_ENTROPY, _ONC),
    "squeezenet1_1": _SOME,
    "resnet20_cifar10": _WITH_BATCH_NORM,
    "mobilenet_v1_025": _WITH_BATCH_NORM,
    "all_minilm_l6_v2_smallvocab": (_ORT_MIN_MAX, _ORT_DYNAMIC, _NNCF, _ONC),
    # not here, so that everything is done in half an hour
    "mobilenet_v1": (),
    "nanodet_m": (),
    "ultraface_rfb_320": (),
}
_COLUMNS = (
    "s", "÷ loop", "of it verification", "÷ uncorrected", "peak MB", "file MB", "top-1",
    "agreement", "cosine", "SQNR dB", "float / file",
)  # fmt: skip
_JUDGED = {"all_minilm_l6_v2_smallvocab": "sentence_embedding"}  # elsewhere the first output


def peers(case: Case, options: Options) -> list[Row]:
    """Time, memory, closeness and speed of every tool's work on one model."""
    rows = {str(tool): _empty_row(case, str(tool)) for tool in _tools(case, options)}
    plain = open_model(case.model, 0)
    made, loops = _measured(case, options, plain, rows)
    for tool, each in made.items():
        rows[str(tool)] |= _process(tool, made, loops[: len(each)])
    files = {FLOAT: case.model}
    for tool, each in made.items():
        try:
            open_model(each[0].file, 1)
            files[str(tool)] = each[0].file
        except Exception as error:  # noqa: BLE001 - onnxruntime has no base class for its own
            _leave_out(rows[str(tool)], error, options)
    if not made:
        return [*rows.values()]
    rows = {FLOAT: _empty_row(case, FLOAT) | {"s": median(loops), "÷ loop": "1"}, **rows}
    judged = _JUDGED.get(case.name, plain.get_outputs()[0].name)
    close = closeness(case, files, judged)[judged]
    times = latencies(case, files, _LATENCY_ROUNDS)
    for name in files:
        rows[name] |= close[name]
        rows[name]["float / file"] = ratio(times[FLOAT], times[name])
    return [*rows.values()]


def _measured(
    case: Case, options: Options, plain: onnxruntime.InferenceSession, rows: Mapping[str, Row]
) -> tuple[dict[Tool, list[Made]], list[float]]:
    """What every tool that works made in each round, and the seconds of the plain loop."""
    made: dict[Tool, list[Made]] = {}
    for tool in _tools(case, options):
        try:
            try_out(tool, case, options.work)
            made[tool] = []
        except RuntimeError as error:
            _leave_out(rows[str(tool)], error, options)
    loops = []
    for tool in turns(options.rounds, [None, *made] if made else []):
        if tool is None:
            loops.append(plain_loop(case, plain))
        elif tool in made and not (made[tool] and made[tool][0].process.seconds > _SLOW):
            try:
                one = run(tool, case, options.work)
                made[tool].append(one)
                print(f"{case.name}: {tool}: {one.process.seconds:.1f} s", file=sys.stderr)
            except RuntimeError as error:
                del made[tool]
                _leave_out(rows[str(tool)], error, options)
    return made, loops


def _tools(case: Case, options: Options) -> Iterator[Tool]:
    """What is compared on this model."""
    others = _PEERS.get(case.name, _ALL)
    ours = [
        Tool(name=PTQ, setting=method, correction=correction)
        for method in options.methods or METHODS
        for correction in (False, True)
    ]
    for tool in (*ours, *others) if others else ():
        if not options.tools or tool.name in options.tools:
            yield tool


def _process(tool: Tool, made: Mapping[Tool, Sequence[Made]], loops: Sequence[float]) -> Row:
    each = made[tool]
    seconds = [one.process.seconds for one in each]
    row: Row = {"s": median(seconds), "÷ loop": ratio(seconds, loops)}
    if tool.name == PTQ:
        row["of it verification"] = median(one.seconds["verify"] for one in each)
    without = Tool(name=tool.name, setting=tool.setting)
    if tool.correction and without in made:
        row["÷ uncorrected"] = ratio(seconds, [one.process.seconds for one in made[without]])
    row["peak MB"] = max(one.process.peak_mb for one in each)
    row["file MB"] = each[0].megabytes
    return row


def _empty_row(case: Case, name: str) -> Row:
    return {"model": case.name, "tool": name} | dict.fromkeys(_COLUMNS)


def _leave_out(row: Row, error: Exception, options: Options) -> None:
    row[LEFT_OUT] = " ".join(str(error).replace(f"{options.work}/", "").split())
    print(f"{row['model']}: {row['tool']}: left out: {row[LEFT_OUT]}", file=sys.stderr)
