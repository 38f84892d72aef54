"""Hand the result over: with the device's own files, checked by its rules, written at once."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ptq_core.checks import check_model
from ptq_core.emission import integer_ends
from ptq_core.errors import InputError, Location, PluginError
from ptq_core.graph.model import data_name, runnable, save_model
from ptq_core.jobs.deployment import deployment
from ptq_core.jobs.job import Job
from ptq_core.target_types import ExtraFile


def deliver(job: Job, model: ir.Model, output: Path) -> None:
    """Save the quantized model and what the device's toolchain needs beside it.

    What the device's rules say against the model goes into the report.

    Raises:
        InputError: one of the device's files would replace the float model.
        PluginError: the target failed.
    """
    report, entry = job.report, job.target
    with job.stage("check"):
        if entry.spec.integer_inputs_outputs and job.config.common.quant_type == "FULL_QUANT":
            report.notes += integer_ends(model)
        extras = _extras(job, model, output)
        report.findings = check_model(model, entry)
        report.rules = len(entry.spec.checks)
    with job.stage("save"):
        beside = {extra.name: extra.content for extra in extras}
        report.files = save_model(model, output, beside)
    report.extras = {output.parent / extra.name: extra.summary for extra in extras}
    report.bytes_after = sum(path.stat().st_size for path in report.files)


def _extras(job: Job, model: ir.Model, output: Path) -> tuple[ExtraFile, ...]:
    """The device's own files."""
    entry = job.target
    if entry.lower is None:
        return ()
    with runnable(model) as form:
        extras = tuple(entry.lower(form, deployment(job, output)))
    for extra in extras:
        path = output.parent / extra.name
        if extra.name in (output.name, data_name(output)):
            raise PluginError(
                f"{job.target_record}, target {entry.name}: lower gave a file called "
                f"'{extra.name}', which is the model's own"
            )
        if path.exists() and any(path.samefile(file) for file in job.model_files):
            raise InputError(
                f"{entry.name} writes '{extra.name}' ({extra.summary}), which is the float model",
                location=Location(file=str(path)),
                hint="choose another output with -o",
            )
    return extras
