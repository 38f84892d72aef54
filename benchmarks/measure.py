"""Time things in turns, run processes, and put numbers into tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

Row = dict[str, Any]
LEFT_OUT = "left out"  # of a row: why there are no figures
_T = TypeVar("_T")

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
        lines = [line for line in errors.splitlines() if line.strip("^~ ")]  # no underlining
        lines = lines or [f"exit code {found['code']}"]
        raise RuntimeError("; ".join(line.strip() for line in lines[-_COMPLAINT:]))
    return Process(seconds=found["seconds"], peak_mb=found["peak"] / 1e6, stdout=done.stdout)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def turns(rounds: int, things: Sequence[_T]) -> Iterator[_T]:
    """Each thing once a round; every other round in the opposite order."""
    for index in range(rounds):
        yield from things[:: -1 if index % 2 else 1]


def in_turns(rounds: int, functions: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each function measures, once a round."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for name in turns(rounds, [*functions]):
        found[name].append(functions[name]())
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median of the ratios of each round, and their smallest and largest."""
    each = [one / other for one, other in zip(above, below, strict=True)]
    spread = f" ({min(each):.2f}-{max(each):.2f})" if len(each) > 1 else ""
    return f"{median(each):.2f}{spread}"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; below it, what was left out and why."""
    measured = [row for row in rows if LEFT_OUT not in row]
    columns = list(dict.fromkeys(name for row in measured for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name)) for name in columns] for row in measured]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    for row in rows:
        if LEFT_OUT in row:
            text += f"\n\nLeft out of {row['model']}: {row['tool']}: {row[LEFT_OUT]}"
    return text


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    # four significant digits
    return f"{value:.4g}" if isinstance(value, float) else str(value)
