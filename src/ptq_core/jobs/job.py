"""What the stages of one run share, and the clock that they run by."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ptq_core.calibration import Emit
from ptq_core.config import Config
from ptq_core.graph.prepared import Prepared
from ptq_core.jobs.report import Report, Settings
from ptq_core.plugins import PluginHost, PluginRecord, Registered
from ptq_core.types import (
    Event,
    ModelInput,
    PreprocessorEntry,
    TargetEntry,
)


@dataclass(kw_only=True)
class Job:
    """What the stages of one run share."""

    config: Config
    host: PluginHost
    settings: Settings
    target: TargetEntry
    target_record: PluginRecord | None
    prepared: Prepared
    inputs: tuple[ModelInput, ...]
    report: Report
    reader: Registered[PreprocessorEntry] | None = None
    used: list[tuple[str, str]] = field(default_factory=list)
    listeners: Emit

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell the listeners."""
        with timed(name, self.report.seconds, self.listeners):
            yield


@contextmanager
def timed(name: str, seconds: dict[str, float], emit: Emit) -> Iterator[None]:
    """Time a stage and tell the listeners that it starts and ends."""
    start = time.perf_counter()
    emit(Event(stage=name, kind="start"))
    yield
    seconds[name] = time.perf_counter() - start
    emit(Event(stage=name, kind="end"))
