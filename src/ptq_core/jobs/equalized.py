"""Equalization as a stage of a job: rescale channels where a layer has one weight scale."""

from __future__ import annotations

from typing import Any

from ptq_core.equalization import equalize, observe, watched
from ptq_core.graph import operators as ops
from ptq_core.jobs.activations import activations
from ptq_core.jobs.job import Job
from ptq_core.jobs.replay import replayed
from ptq_core.plugins import Registered
from ptq_core.samples import Samples
from ptq_core.types import RunnerEntry

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
        runs = activations(job, tensors, seen, runner, options, "equalize")
        observed = observe(tensors, runs) if seen else None
        found = equalize(job.prepared, layers=layers, observed=observed)
    job.divisors = found.divisors
    job.report.notes += found.notes
    return samples
