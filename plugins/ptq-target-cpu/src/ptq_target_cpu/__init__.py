"""The target CPU: integer models for onnxruntime on x86-64 and ARM64. The rules are in cpu.toml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files

from ptq_core.api import Arithmetic, TargetEntry, hookimpl, target_from_toml

ptq_api_version = (1, 0)


def _arithmetic() -> Arithmetic:
    from ptq_target_cpu.arithmetic import OnnxRuntimeArithmetic  # imports numba

    return OnnxRuntimeArithmetic()


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer CPU."""
    yield replace(target_from_toml(files(__package__) / "cpu.toml"), arithmetic=_arithmetic)
