"""Equalization as a stage of a job: rescale channels where a layer has one weight scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ptq_core.equalization import Watched, equalize, observe, watched
from ptq_core.graph import operators as ops
from ptq_core.graph.model import runnable, with_outputs
from ptq_core.jobs.job import Job, in_runs
from ptq_core.jobs.replay import replayed
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Sample, Samples
from ptq_core.types import Event, RunnerEntry

# So many of the first samples are kept, if they are no larger together; some of them, spread
# evenly, are looked at. Fewer, or from fewer classes, cost MobileNetV2 a point of accuracy.
_KEPT, _BYTES = 128, 64 << 20
_SAMPLES = 48


def equalized(job: Job, samples: Samples, runner: Registered[RunnerEntry], options: Any) -> Samples:
    """Equalize the job's model in place; the samples, to be read from the first one again.

    What the first samples show decides, besides the weights. They are kept until they have been
    read again, so that data that can be read only once will do.
    """
    layers = {ops.key(node) for node in job.prepared.model.graph if node.op_type in ops.LINEAR}
    layers &= {
        weight.node for weight in next(iter(job.plans.values())).weights if weight.axis is None
    }
    tensors = watched(job.prepared)
    if not tensors or not layers:
        return samples
    first, samples = replayed(samples)
    with job.stage("equalize"):
        seen = first[:: max(1, round(len(first) / _SAMPLES))]
        observed = observe(tensors, _runs(job, tensors, seen, runner, options)) if seen else None
        found = equalize(job.prepared, layers=layers, observed=observed)
    job.divisors = found.divisors
    job.report.notes += found.notes
    return samples


def _runs(
    job: Job,
    tensors: Mapping[str, Watched],
    samples: list[Sample],
    runner: Registered[RunnerEntry],
    options: Any,
) -> Iterator[Mapping[str, NDArray[Any]]]:
    inputs = {item.name for item in job.inputs}
    names = [name for name in tensors if name not in inputs]
    with (
        runnable(with_outputs(job.prepared.model, names)) as form,
        blame(runner.record, "loading the model"),
    ):
        session = runner.entry.factory(form, options)
    done = 0
    for batch in in_runs(job, samples, 1):
        with blame(runner.record, f"running {batch.names[0]}"):
            results = session.run(batch.feeds)
        yield {**batch.feeds, **results}
        done += batch.rows
        job.listeners(Event(stage="equalize", kind="advance", done=done, total=len(samples)))
