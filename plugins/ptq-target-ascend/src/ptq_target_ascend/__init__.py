"""The target ASCEND: weights in the form that Ascend's compiler takes. See ascend.toml."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from ptq_core.api import TargetEntry, hookimpl, target_from_toml

ptq_api_version = (1, 0)


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer ASCEND."""
    yield target_from_toml(files(__package__) / "ascend.toml")
