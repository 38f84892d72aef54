"""Smoothing as a stage of a job: outliers of activations move into weights where that helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.errors import InputError, Location, ModelError
from ptq_core.graph import operators as ops
from ptq_core.jobs.activations import activations
from ptq_core.jobs.job import Job
from ptq_core.jobs.replay import replayed
from ptq_core.planning import MAX_MIN, Plan
from ptq_core.plugins import Registered
from ptq_core.samples import Sample, Samples
from ptq_core.smoothing import (
    Activation,
    Group,
    Rounding,
    Smoothing,
    find_groups,
    find_smoothing,
    smooth,
)
from ptq_core.types import Event, QScheme, RunnerEntry

_BYTES = 64 << 20  # of the rows of activations that are kept
_ROWS, _FEWEST_ROWS = 8, 3  # of a sample, that are kept of each activation
_DYNAMIC = QScheme(dtype="uint8")  # as DynamicQuantizeLinear makes it


def smoothed(job: Job, samples: Samples, runner: Registered[RunnerEntry], options: Any) -> Samples:
    """Smooth the model of full quantization, in place; the samples, to be read again.

    Ranges of channels come from the first 128 samples: each channel of a smoothed activation fills
    the range that it was seen to have, so that a few dozen would miss what is rare.
    """
    groups = _groups(job)
    if not groups:
        return samples
    first, samples = replayed(samples)
    clips = any(method != MAX_MIN for method in job.plans)
    _smooth(job, groups, first, runner, options, "static", clips=clips)
    return samples


def smooth_dynamic(
    job: Job,
    samples: Sequence[Sample],
    rounding: Rounding,
    runner: Registered[RunnerEntry],
    options: Any,
) -> None:
    """Smooth the model of dynamic quantization, in place."""
    groups = _groups(job)
    if groups:
        _smooth(job, groups, samples, runner, options, rounding)


def smooth_as_stored(
    job: Job, divisors: Mapping[str, NDArray[np.float64]], where: Location
) -> None:
    """Smooth the model by divisors of an earlier run.

    An activation all of whose layers are skipped now is left as it is, which a note says.

    Raises:
        ModelError: they belong to another model.
        InputError: the config asks for a model that is not smoothed.
    """
    full = job.config.full
    if full is not None and not full.smoothing:
        raise InputError(
            "the table was made with smoothing, and smoothing = false here: its ranges are those "
            "of a smoothed model",
            location=where,
            hint="leave the key out, or calibrate again with smoothing = false",
        )
    graph = job.prepared.model.graph
    tensors = {value.name for node in graph for value in node.outputs}
    unknown = [name for name in divisors if name not in tensors]
    if unknown:
        raise ModelError(
            f"the stored smoothing belongs to another model: this one has no tensor '{unknown[0]}'",
            location=where,
            hint="calibrate this model again",
        )
    groups = _groups(job)
    sources = {group.source for group in groups}
    left = [name for name in divisors if name not in sources]
    if left:
        job.report.notes.append(
            f"smoothing: {len(left)} of the table's {len(divisors)} activations are not quantized "
            f"here and stay as they are: {', '.join(left[:3])}" + (" …" if left[3:] else "")
        )
    _apply(job, groups, {name: one for name, one in divisors.items() if name in sources})


def _groups(job: Job) -> list[Group]:
    """Layers with integer weights that read one float activation, inputs of the model excepted."""
    plan = job.report.plan
    keys = {weight.node for weight in plan.weights}
    inputs = {item.name for item in job.inputs}
    found = find_groups(job.prepared.model.graph, keys)
    return [one for one in found if one.source not in inputs and _is_float(plan, one.source)]


def _is_float(plan: Plan, name: str) -> bool:
    """Whether nothing but rounding lies between the activation and its readers' integers."""
    tensor = plan.tensors.get(name)
    return tensor is None or (
        not tensor.produced and tensor.source == name and tensor.fixed is None
    )


def _smooth(
    job: Job,
    groups: Sequence[Group],
    samples: Sequence[Sample],
    runner: Registered[RunnerEntry],
    options: Any,
    rounding: Rounding,
    *,
    clips: bool = False,
) -> None:
    weights = {
        ops.key(node): node.inputs[1] for node in job.prepared.model.graph if node.inputs[1:]
    }
    per_channel = any(weight.axis is not None for weight in job.report.plan.weights)
    spec = job.target.spec
    with job.stage("smooth"):
        observed = _observed(job, groups, samples, runner, options)
        found: dict[str, Smoothing] = {}
        total = len(samples) + len(groups)
        for done, group in enumerate(groups, len(samples) + 1):
            arrays = [
                np.moveaxis(np.asarray(ops.constant(weights[layer.key])), layer.axis, 0)
                for layer in group.layers
            ]
            one = find_smoothing(
                observed.pop(group.source),
                arrays,
                rounding,
                spec.activation if rounding == "static" else _DYNAMIC,
                spec.weight,
                per_channel=per_channel,
                folds=group.folds,
                clips=clips,
            )
            if one is not None:
                found[group.source] = one
            job.listeners(Event(stage="smooth", kind="advance", done=done, total=total))
        _apply(job, groups, {name: one.divisor for name, one in found.items()})
    _tell(job, groups, found, rounding)


def _observed(
    job: Job,
    groups: Sequence[Group],
    samples: Sequence[Sample],
    runner: Registered[RunnerEntry],
    options: Any,
) -> dict[str, Activation]:
    """The groups' activations over the samples, of which the float model is run once."""
    channels = {group.source: group.channels for group in groups}
    room = _BYTES // max(1, 4 * sum(channels.values()) * len(samples))
    rows = int(np.clip(room, _FEWEST_ROWS, _ROWS))
    found = {name: Activation(rows=rows) for name in channels}
    total = len(samples) + len(groups)
    for values in activations(job, found, samples, runner, options, "smooth", total=total):
        for name, activation in found.items():
            activation.observe(values[name])
    return found


def _apply(job: Job, groups: Sequence[Group], divisors: Mapping[str, NDArray[np.float64]]) -> None:
    """Smooth the model, and plan it again: what is smoothed keeps its whole range."""
    job.smoothing = dict(divisors)
    if not divisors:
        return
    read = set(smooth(job.prepared.model, groups, divisors).values())
    job.plans = {
        method: replace(plan, tensors={
            name: replace(tensor, method=MAX_MIN) if name in read else tensor
            for name, tensor in plan.tensors.items()
        })
        for method, plan in job.make_plans().items()
    }  # fmt: skip
    job.report.plan = next(iter(job.plans.values()))


def _tell(
    job: Job, groups: Sequence[Group], found: Mapping[str, Smoothing], rounding: Rounding
) -> None:
    if not found:
        job.report.notes.append(
            f"smoothing: none of {len(groups)} activations gains by it on samples held back"
        )
        return
    folded = sum(group.folds for group in groups if group.source in found)
    strengths = [one.strength for one in found.values()]
    gains = [one.gain for one in found.values()]
    how = f"{folded} in the layers before" if folded else ""
    if folded < len(found):
        how += f"{', ' if how else ''}{len(found) - folded} by a Mul"
    whole = ", which keep their whole range" if rounding == "static" else ""
    job.report.notes.append(
        f"smoothing: {len(found)} of {len(groups)} activations{whole}, strengths "
        f"{min(strengths):g} to {max(strengths):g}, {how}; on samples held back their layers' "
        f"results gain {min(gains):.1f} to {max(gains):.1f} dB"
    )
