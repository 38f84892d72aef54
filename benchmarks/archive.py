"""The archive's entropy coder on a model's weights, beside zstd on the same bytes.

zstd runs in an environment of its own, as the peers do; where that cannot be made, a line says so.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.cases import Case
from benchmarks.measure import LEFT_OUT, Row, run_process
from benchmarks.suite import Options
from benchmarks.tools import SCRIPTS, environment
from ptq_core import archive as archives
from ptq_core.plugins import discover

_BITS = (8, 6, 4, 3)
_LEVELS = (3, 19)  # of zstd: its default, and the strongest that needs no more memory to decode
_MANY = 4096  # elements of a weight
_PEER = "zstandard"

Codes = NDArray[np.int8]


def archive(case: Case, options: Options) -> list[Row]:
    """Size above the entropy and speed on one core: RANS, and zstd at two levels.

    Codes are a byte each, a tensor is coded by itself, and its table counts. The speed is decoded
    bytes a second of processor time. The last row is the float model's file as ``ptq pack`` stores
    it, in real time.
    """
    rows = [row for bits in _BITS for row in _codes(case, bits, options)]
    output = options.work / f"{case.name}.ptqz"
    report = archives.pack(case.model, output)
    unpacked = archives.unpack(output, options.work / f"{case.name}.onnx")
    rows.append(
        {
            "model": case.name,
            "what": "the float file",
            "coder": "ptq pack",
            "MB": report.bytes_before / 1e6,
            "coded MB": report.bytes_after / 1e6,
            "MB/s coding": report.bytes_before / report.seconds / 1e6,
            "MB/s decoding": report.bytes_before / unpacked.seconds / 1e6,
        }
    )
    return rows


def _codes(case: Case, bits: int, options: Options) -> Iterator[Row]:
    tensors = list(weights(case.model, bits))
    least = sum(map(entropy_bytes, tensors))
    size = sum(codes.nbytes for codes in tensors)

    def row(coder: str, found: Mapping[str, Any]) -> Row:
        return {
            "model": case.name,
            "what": f"{bits} bits",
            "coder": coder,
            "MB": size / 1e6,
            "coded MB": found["bytes"] / 1e6,
            "% above entropy": 100 * (found["bytes"] / least - 1),
            "MB/s coding": size / found["encode"] / 1e6,
            "MB/s decoding": size / found["decode"] / 1e6,
        }

    folder = options.work / case.name / f"codes{bits}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, codes in enumerate(tensors):
        codes.tofile(folder / f"{number}.bin")
    with one_core():
        yield row("RANS", rans(tensors, bits, options.rounds))
        try:
            found = zstd(folder, options.rounds)
        except RuntimeError as error:
            yield {"model": case.name, "tool": _PEER, LEFT_OUT: str(error)}
            return
        for level in _LEVELS:
            yield row(f"zstd -{level}", found[str(level)])


def weights(model: Path, bits: int) -> Iterator[Codes]:
    """Every large weight, rounded to so many bits with one symmetric scale a channel."""
    most = 2 ** (bits - 1) - 1
    for tensor in onnx.load(model).graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or values.size < _MANY:
            continue
        channels = values.reshape(values.shape[0], -1)
        scale = np.maximum(np.abs(channels).max(1, keepdims=True), 1e-30) / most
        yield np.rint(channels / scale).astype(np.int8)


def entropy_bytes(codes: Codes) -> float:
    """The least that a coder takes that knows only how often each code occurs."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


def rans(tensors: Sequence[Codes], bits: int, rounds: int) -> dict[str, float]:
    """Bytes of all tensors, and median seconds of the processor for coding and decoding them."""
    entry = discover().encoding("RANS").entry
    coder = entry.factory(entry.options())
    coded = [coder.encode(codes, bits, 13).constants for codes in tensors]
    pairs = list(zip(tensors, coded, strict=True))

    def encode() -> None:
        for codes in tensors:
            coder.encode(codes, bits, 13)

    def decode() -> None:
        for codes, constants in pairs:
            coder.decode(constants, bits, codes.shape)

    for codes, constants in pairs:  # which warms up, too
        assert np.array_equal(coder.decode(constants, bits, codes.shape), codes)
    return {
        "bytes": sum(one["stream"].size for one in coded),
        "encode": median(_processor(encode) for _ in range(rounds)),
        "decode": median(_processor(decode) for _ in range(rounds)),
    }


def _processor(function: Callable[[], None]) -> float:
    """Seconds of the processor, which other jobs on it change little."""
    start = time.process_time()
    function()
    return time.process_time() - start


def zstd(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The same by level, of zstd; RuntimeError where it cannot be had."""
    script = SCRIPTS / f"run_{_PEER}.py"
    levels = ",".join(map(str, _LEVELS))
    command = [str(environment(_PEER)), "-Es", str(script), str(folder), str(rounds), levels]
    found: dict[str, dict[str, float]] = json.loads(run_process(command).stdout)
    return found


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, its threads and its children on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
