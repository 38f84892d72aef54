"""The target NVGPU: models for TensorRT's explicit quantization. The rules are in nvgpu.toml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ptq_core.api import (
    Arithmetic,
    Deployment,
    ExtraFile,
    Finding,
    TargetEntry,
    hookimpl,
    target_from_toml,
)
from ptq_target_nvgpu.channels import keep_float

ptq_api_version = (1, 0)


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer NVGPU."""
    data = target_from_toml(files(__package__) / "nvgpu.toml")
    yield replace(data, keep_float=keep_float, lower=_lower, check=_check, arithmetic=_arithmetic)


def _lower(model: bytes | Path, deployment: Deployment) -> Iterable[ExtraFile]:
    from ptq_target_nvgpu.cache import calibration_caches  # imports onnx

    return calibration_caches(model, deployment)


def _check(model: bytes | Path) -> Iterable[Finding]:
    from ptq_target_nvgpu.findings import findings_in  # imports onnx

    return findings_in(model)


def _arithmetic() -> Arithmetic:
    from ptq_target_nvgpu.arithmetic import TensorRtArithmetic  # imports numba

    return TensorRtArithmetic()
