"""What a running job shows: bars on a terminal, one line per stage elsewhere, log lines with -v."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ptq_core.types import Event

if TYPE_CHECKING:
    from rich.console import Console

    from ptq_core.cli.state import State

_DOING = {
    "prepare": "preparing the model",
    "plan": "deciding on every node",
    "equalize": "equalizing channels",
    "smooth": "smoothing outliers",
    "load": "loading the model and samples",
    "calibrate": "measuring activations",
    "correct": "correcting biases",
    "tune": "searching for the scales of weights",
    "weights": "quantizing weights",
    "emit": "writing integers into the graph",
    "verify": "comparing with the float model",
    "compare": "running both models",
    "check": "checking the device's rules",
    "save": "writing the file",
    "pack": "packing constants",
    "unpack": "restoring constants",
}

_log = logging.getLogger("ptq")


@contextmanager
def showing(state: State) -> Iterator[Callable[[Event], None]]:
    """A listener for the events of a job; what it shows ends with the block, however that ends."""
    maker = _logs if state.verbose else _bars if state.out.is_terminal else _lines
    with maker(state.out) as show:

        def listen(event: Event) -> None:
            if event.stage == "save" and event.kind == "end":
                state.saved = True
            show(event)

        yield listen


def _doing(stage: str) -> str:
    return _DOING.get(stage, stage)


@contextmanager
def _logs(_: Console) -> Iterator[Callable[[Event], None]]:
    def show(event: Event) -> None:
        match event.kind:
            case "start":
                _log.info("%s: %s", event.stage, _doing(event.stage))
            case "advance":
                _log.debug("%s: %s of %s", event.stage, event.done, event.total or "?")
            case "end":
                _log.info("%s: done", event.stage)

    yield show


@contextmanager
def _lines(console: Console) -> Iterator[Callable[[Event], None]]:
    """The line is there when its stage starts, and gets its end when that is over."""
    open_stages: list[str] = []  # a stage may start again inside itself, for its passes
    started, counted = 0.0, 0

    def write(text: str) -> None:
        console.print(text, end="")
        console.file.flush()

    def show(event: Event) -> None:
        nonlocal started, counted
        if event.kind == "start":
            if not open_stages:
                started, counted = time.perf_counter(), 0
                write(f"{_doing(event.stage)} ... ")
            open_stages.append(event.stage)
        elif event.kind == "end" and open_stages:
            counted = max(counted, event.done)
            open_stages.pop()
            if not open_stages:
                unit = "sample" if counted == 1 else "samples"
                samples = f"{counted} {unit}, " if counted else ""
                write(f"{samples}{time.perf_counter() - started:.1f} s\n")

    try:
        yield show
    finally:
        if open_stages:
            write("\n")


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Event], None]]:
    """One bar per stage; all are gone at the end, for the summary says what they said."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[counted]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def show(event: Event) -> None:
            if event.kind == "start" and event.stage not in tasks:
                description = _doing(event.stage)
                tasks[event.stage] = progress.add_task(description, total=event.total, counted="")
                return
            task = tasks.get(event.stage)
            if task is None:
                return
            if event.kind == "start":  # a pass over the samples, perhaps not the first
                progress.reset(task, total=event.total, counted="")
            elif event.kind == "advance":
                counted = f"{event.done}/{event.total or '?'}"
                progress.update(task, completed=event.done, total=event.total, counted=counted)
            elif event.kind == "end":
                progress.update(task, total=event.done or 1, completed=event.done or 1)

        yield show
