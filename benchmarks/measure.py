"""Time things in turns, run processes, and put numbers into tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = dict[str, Any]

_COMPLAINT = 3  # lines: a message and its hint

# Starts the command from a process of its own: a child's peak memory counts what its parent
# occupied when it was started, which here would be the benchmark itself.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
unit = 1 if sys.platform == "darwin" else 1024
sys.stderr.write("\\n" + json.dumps({
    "seconds": time.perf_counter() - start,
    "peak": usage.ru_maxrss * unit,
    "code": os.waitstatus_to_exitcode(status),
}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A finished process: wall time, peak of resident memory, what it printed."""

    seconds: float
    peak_mb: float
    stdout: str


def run_process(command: Sequence[str]) -> Process:
    """Run a command; RuntimeError with its last lines of complaint if it fails."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCHER, *command],
        capture_output=True,
        text=True,
        check=True,
    )
    errors, _, last = done.stderr.rpartition("\n")
    found = json.loads(last)
    if found["code"] != 0:
        lines = errors.strip().splitlines() or [f"exit code {found['code']}"]
        raise RuntimeError("; ".join(line.strip() for line in lines[-_COMPLAINT:]))
    return Process(seconds=found["seconds"], peak_mb=found["peak"] / 1e6, stdout=done.stdout)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(rounds: int, functions: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each function measures, once a round; every other round in the opposite order."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds):
        for name in list(functions)[:: -1 if index % 2 else 1]:
            found[name].append(functions[name]())
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median of the ratios of each round, and their smallest and largest."""
    each = [one / other for one, other in zip(above, below, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f}-{max(each):.2f})"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; numbers with three significant digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
