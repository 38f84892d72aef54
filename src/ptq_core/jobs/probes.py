"""Samples that weight quantization measures and judges with: the user's, or generated input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ptq_core.errors import PluginError
from ptq_core.graph.model import runnable
from ptq_core.jobs.choices import find_samples
from ptq_core.jobs.corrected import is_kept
from ptq_core.jobs.job import Job, in_runs, whole_runs
from ptq_core.jobs.measured import VERIFIED_SAMPLES, tell_of
from ptq_core.plugins import Registered
from ptq_core.samples import Sample, add_to_digest
from ptq_core.types import RunnerEntry
from ptq_core.verification import Verification, check_model, verify
from ptq_core.weights.trial import generated_samples

_GENERATED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """Samples.

    Attributes:
        kept: to measure with, a few dozen at most, spread over all that there are.
        compared: to compare the models on, each a whole run.
        held_out: those were not measured with.
        generated: there were none, all of these are made up.
        sha256: of those kept.
    """

    kept: tuple[Sample, ...]
    compared: tuple[Sample, ...]
    held_out: bool = False
    generated: bool = False
    sha256: str = ""


def find_probes(job: Job, data: Iterable[Any] | None) -> Probes:
    """The caller's samples, those of the config's folders, or generated ones, which is said."""
    if data is None and job.reader is None:
        made = generated_samples(job.inputs, _GENERATED)
        job.report.notes.append(
            "there was no data: compared on generated input, which tells little about real input; "
            "--data DIR compares on samples"
        )
        return Probes(
            kept=tuple(made), compared=tuple(whole_runs(job.inputs, made)), generated=True
        )
    with job.stage("load"):
        samples = find_samples(job, data)
        kept = [
            sample
            for index, sample in enumerate(samples.open())
            if is_kept(sample, index, samples.count)
        ]
        held_out = samples.held_out() if samples.held_out is not None else ()
        unseen = list(islice(held_out, VERIFIED_SAMPLES))
    tell_of(samples, job.report.notes, job.report.warnings)
    digest = hashlib.sha256()
    for batch in in_runs(job, kept, 1):
        add_to_digest(digest, batch)
    return Probes(
        kept=tuple(kept),
        compared=tuple(whole_runs(job.inputs, unseen or kept[:VERIFIED_SAMPLES])),
        held_out=bool(unseen),
        sha256=digest.hexdigest(),
    )


def compared(
    job: Job,
    quantized: ir.Model,
    widened: ir.Model | None,
    probes: Probes,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Verification:
    """Check the quantized model and say how close it is to the float one.

    Args:
        job: of the float model.
        quantized: what was made of it.
        widened: the prepared model before that, where the file has float16.
        probes: samples; where generated ones do not suit the model, it is only loaded.
        runner: executes both.
        runner_options: its options.

    Raises:
        ModelError: the float model is not valid ONNX.
        PluginError: the runner cannot load a model, or cannot run it on the user's samples.
    """
    model = job.report.model
    with job.stage("verify"), runnable(quantized) as after:
        check_model(after, model)
        with runnable(widened) if widened is not None else nullcontext(model) as before:
            found = _verified(job, before, after, probes, runner, runner_options)
    job.say_unexpected(found.unexpected)
    return found


def _verified(
    job: Job,
    before: bytes | Path,
    after: bytes | Path,
    probes: Probes,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Verification:
    """How close it is; where generated input does not suit the model, only that it loads."""
    plan = job.report.plan
    try:
        return verify(
            before,
            after,
            plan,
            probes.compared,
            runner,
            runner_options,
            held_out=probes.held_out,
        )
    except PluginError as error:
        if not probes.generated:
            raise
        loaded = verify(before, after, plan, (), runner, runner_options)
        reason = error.problems[0].message
        job.report.warnings.append(
            f"not compared, for the model does not run on generated input: {reason}; give samples "
            "with --data, or shapes with --input-shape"
        )
        return loaded
