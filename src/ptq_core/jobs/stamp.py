"""Say in a file what made it; nothing that differs between runs on the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from ptq_core import __version__
from ptq_core.config import render_config
from ptq_core.jobs.job import Job
from ptq_core.plugins import PluginRecord


def stamp(
    model: ir.Model, job: Job, plugins: Iterable[str], data_sha256: str, samples: int
) -> None:
    """Write the metadata.

    Args:
        model: what was made.
        job: by which job.
        plugins: that had a part in it, as ``distribution==version``; the target's is added.
        data_sha256: of the samples that it depends on, empty where there are none.
        samples: how many those are.
    """
    target = [] if job.target_record is None else [job.target_record]
    # what executes the model, and with how many threads, is no part of what is computed
    options = job.config.plugin_options.items()
    computed = {key: value for key, value in options if key[0] != "runner"}
    config = render_config(replace(job.config, runner=None, plugin_options=computed), "toml")
    model.producer_name, model.producer_version = "ptq", __version__
    facts = {
        "ptq.version": __version__,
        "ptq.job": job.config.common.quant_type,
        "ptq.target": job.target.name,
        "ptq.plugins": ", ".join(sorted({*plugins, *versions(target)})),
        "ptq.config_sha256": hashlib.sha256(config.encode()).hexdigest(),
    }
    if samples:
        facts |= {"ptq.data_sha256": data_sha256, "ptq.samples": str(samples)}
    model.metadata_props.update(facts)


def versions(records: Iterable[PluginRecord]) -> tuple[str, ...]:
    """The plugins as ``distribution==version``."""
    return tuple(sorted({f"{record.name}=={record.version}" for record in records}))
