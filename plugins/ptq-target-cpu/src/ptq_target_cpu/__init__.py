"""The target CPU: integer models for onnxruntime on x86-64 and ARM64. The rules are in cpu.toml."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from ptq_core.api import TargetEntry, hookimpl, target_from_toml

ptq_api_version = (1, 0)


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer CPU."""
    yield target_from_toml(files(__package__) / "cpu.toml")
