"""What ``[ascend_context]`` says of a model on its device: is it of this model, and all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from ptq_core.config import Config, expand
from ptq_core.errors import ConfigError, Problem, did_you_mean
from ptq_core.graph.operators import dimensions
from ptq_core.jobs.job import Job
from ptq_core.samples.sample import shown
from ptq_core.target_types import Deployment

_KEY = ("ascend_context", "input_shape")
_ORDERS = ((0, 3, 1, 2), (0, 2, 3, 1))  # NHWC to NCHW, and back


def check_deployment(config: Config, model: ir.Model) -> None:
    """Raise ConfigError unless the shapes that vary on the device can be those of the model."""
    problems = list(_problems(config, model))
    if problems:
        raise ConfigError(problems=problems)


def deployment(job: Job, output: Path) -> Deployment:
    """How the model will be used on the device."""
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


def _problems(config: Config, model: ir.Model) -> Iterator[Problem]:
    if config.ascend is None:
        return
    own = {value.name or "": dimensions(value) for value in model.graph.inputs}
    for name, given in config.ascend.input_shape.items():
        if name not in own:
            yield Problem(
                message=f"input_shape: the model has no input '{name}'",
                location=config.locate(*_KEY),
                hint=did_you_mean(name, own),
            )
            continue
        found = own[name]
        if found is not None and not _fits(given, found):
            yield Problem(
                message=f"input_shape: input '{name}' has shape {shown(found)}, found "
                f"{shown(given)}",
                location=config.locate(*_KEY),
                hint=_hint(name, given, found),
            )


def _fits(given: Sequence[int], found: Sequence[int | str | None]) -> bool:
    return len(given) == len(found) and all(
        not isinstance(dim, int) or dim == size for size, dim in zip(given, found, strict=True)
    )


def _hint(name: str, given: Sequence[int], found: Sequence[int | str | None]) -> str:
    if len(given) == len(found) == len(_ORDERS[0]):
        for order in _ORDERS:
            turned = [given[axis] for axis in order]
            if _fits(turned, found):
                text = ",".join(map(str, turned))
                return f"dimensions in the model's own order: input_shape={name}:[{text}]"
    return "-1 stands where the model leaves a dimension open; export it with that one open"
