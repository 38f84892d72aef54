"""Run the float model over samples and hand out activations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ptq_core.graph.model import runnable, with_outputs
from ptq_core.jobs.job import Job, in_runs
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Sample
from ptq_core.types import Event, RunnerEntry


def activations(
    job: Job,
    names: Collection[str],
    samples: Sequence[Sample],
    runner: Registered[RunnerEntry],
    options: Any,
    stage: str,
    *,
    total: int | None = None,
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The inputs and these tensors of the prepared model, for one sample after another.

    Args:
        job: with the model.
        names: tensors, inputs of the model among them.
        samples: grouped only where the model's batch is fixed.
        runner: executes the model.
        options: its options.
        stage: that listeners are told of.
        total: what the stage has to do, if that is more than the samples.
    """
    inputs = {item.name for item in job.inputs}
    inner = [name for name in names if name not in inputs]
    session = None
    if inner:
        with (
            runnable(with_outputs(job.prepared.model, inner)) as form,
            blame(runner.record, f"loading the model to {stage}"),
        ):
            session = runner.entry.factory(form, options)
    done = 0
    for batch in in_runs(job, samples, 1):
        with blame(runner.record, f"running {batch.names[0]}"):
            results = {} if session is None else session.run(batch.feeds)
        yield {**batch.feeds, **results}
        done += batch.rows
        job.listeners(Event(stage=stage, kind="advance", done=done, total=total or len(samples)))
