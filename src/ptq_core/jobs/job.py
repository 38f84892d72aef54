"""What the stages of one run share, and the clock that they run by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.calibration import Emit, fixed_batch, may_batch
from ptq_core.config import Config, unused_options
from ptq_core.graph.prepared import Prepared
from ptq_core.jobs.report import Report, Settings
from ptq_core.planning import Plan
from ptq_core.plugins import PluginHost, PluginRecord, Registered
from ptq_core.samples import Batch, Sample, batches, fixed_batches
from ptq_core.target_types import TargetEntry
from ptq_core.types import Event, ModelInput, PreprocessorEntry


@dataclass(kw_only=True)
class Job:
    """What the stages of one run share.

    Attributes:
        model_files: the float model's file and those with its external data.
        target: with the spec that its options ask for.
        target_record: its plugin, None where it is a TOML file.
        target_options: as the target's class of options makes them.
        plans: for each method that was asked for; they differ only in who calibrates a tensor.
        reader: of the config's samples, None where they come from elsewhere.
        used: kind and name of the entries whose options had an effect.
        divisors: by which equalization has divided the layers' channels, if it was asked for.
        smoothing: by which smoothing has divided the channels of activations, by their names.
        make_plans: the plans of the model as it is now, by method.
    """

    config: Config
    host: PluginHost
    settings: Settings
    target: TargetEntry
    target_record: PluginRecord | None
    target_options: Any
    model_files: tuple[Path, ...]
    plans: dict[str, Plan]
    prepared: Prepared
    inputs: tuple[ModelInput, ...]
    report: Report
    reader: Registered[PreprocessorEntry] | None = None
    used: list[tuple[str, str]] = field(default_factory=list)
    divisors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    smoothing: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    listeners: Emit
    make_plans: Callable[[], dict[str, Plan]]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell the listeners."""
        with timed(name, self.report.seconds, self.listeners):
            yield

    def say_unused_options(self) -> None:
        """Warn of options in the config that nothing takes; asked once all choices are made."""
        self.report.warnings += map(str, unused_options(self.config, self.used))

    def say_unexpected(self, nodes: Sequence[str]) -> None:
        """Warn of nodes that were planned in integers and that the runtime runs in float."""
        if nodes:
            self.report.warnings.append(
                "planned in integers, but run in float by the runtime: " + ", ".join(nodes)
            )


def in_runs(job: Job, samples: Sequence[Sample], rows: int) -> Iterator[Batch]:
    """The samples as the model takes them: so many rows at once where its batch is open."""
    fixed = fixed_batch(job.inputs)
    if fixed is not None:
        return fixed_batches(iter(samples), fixed)
    together = may_batch(job.prepared.model, (), job.inputs)
    return batches(iter(samples), lambda: rows if together else 1)


def whole_runs(inputs: Sequence[ModelInput], samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples as they are, or grouped where the model's batch is fixed."""
    rows = fixed_batch(inputs)
    if rows is None:
        yield from samples
        return
    for batch in fixed_batches(iter(samples), rows):
        yield Sample(name=", ".join(dict.fromkeys(batch.names)), feeds=batch.feeds)


@contextmanager
def timed(name: str, seconds: dict[str, float], emit: Emit) -> Iterator[None]:
    """Time a stage and tell the listeners that it starts and ends."""
    start = time.perf_counter()
    emit(Event(stage=name, kind="start"))
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start  # it may come again
    emit(Event(stage=name, kind="end"))
