"""Hand the result over: with the device's own files, checked by its rules, written at once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import onnx_ir as ir

from ptq_core.checks import check_model
from ptq_core.config import expand
from ptq_core.emission import integer_ends
from ptq_core.errors import InputError, Location, PluginError
from ptq_core.graph.model import runnable, save_model
from ptq_core.jobs.job import Job
from ptq_core.plugins import blame
from ptq_core.target_types import Deployment, ExtraFile


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
        with nullcontext() if job.target_record is None else blame(job.target_record, "checking"):
            report.findings = check_model(model, entry)
        report.rules = len(entry.spec.checks)
    with job.stage("save"):
        beside = {extra.name: extra.content for extra in extras}
        report.files = save_model(model, output, beside)
    report.extras = {output.parent / extra.name: extra.summary for extra in extras}
    report.bytes_after = sum(path.stat().st_size for path in report.files)


def _extras(job: Job, model: ir.Model, output: Path) -> tuple[ExtraFile, ...]:
    """The device's own files."""
    entry, record = job.target, job.target_record
    if entry.lower is None or record is None:
        return ()
    with runnable(model) as form, blame(record, f"making the files for {entry.name}"):
        try:
            extras = tuple(entry.lower(form, _deployment(job, output)))
        except ValueError as error:
            raise InputError(f"no files for {entry.name}: {error}") from error
    for extra in extras:
        path = output.parent / extra.name
        if Path(extra.name).name != extra.name or extra.name == output.name:
            raise PluginError(f"{record}: '{extra.name}' is no name for a file beside the model")
        if path.exists() and any(path.samefile(file) for file in job.model_files):
            raise InputError(
                f"{entry.name} writes '{extra.name}' ({extra.summary}), which is the float model",
                location=Location(file=str(path)),
                hint="choose another output with -o",
            )
    return extras


def _deployment(job: Job, output: Path) -> Deployment:
    ascend = job.config.ascend
    shapes = {
        item.name: tuple(dim if isinstance(dim, int) else -1 for dim in item.shape)
        for item in job.inputs
    }
    if ascend is not None:
        shapes |= ascend.input_shape
    dims = () if ascend is None else ascend.dynamic_dims
    return Deployment(
        name=output.stem,
        shapes=shapes,
        profiles=expand(dims[0]) if dims else (),
        rescaled=bool(job.divisors or job.smoothing),
        options=job.target_options,
    )
