"""The target ASCEND: models for Ascend NPUs.

The rules are in ascend.toml; this module adds what they cannot say, and imports the rest only when
it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from ptq_core.api import (
    Arithmetic,
    Deployment,
    ExtraFile,
    Finding,
    NodeFacts,
    TargetEntry,
    TargetSpec,
    hookimpl,
    target_from_toml,
)

ptq_api_version = (1, 0)

_MATRIX, _PICTURES, _VOLUMES = 2, 4, 5  # dimensions of weights


@dataclass(frozen=True, kw_only=True, slots=True)
class AscendOptions:
    """Keys of ``[target.ASCEND]``.

    Attributes:
        chip: the NPU that the compiler's command names, such as ``Ascend310P3`` or ``310P3``; a
            series (``910B``) is asked for its member when the command runs.

    Raises:
        ValueError: no name of a chip.
    """

    chip: str | None = None

    def __post_init__(self) -> None:
        if self.chip is not None and not re.fullmatch(r"\w+", self.chip):
            raise ValueError(f"chip = '{self.chip}': expected a name such as Ascend310P3")


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer ASCEND."""
    entry = target_from_toml(files(__package__) / "ascend.toml")
    yield replace(
        entry,
        options=AscendOptions,
        configure=configure,
        keep_float=keep_float,
        lower=lower,
        check=check,
        arithmetic=_arithmetic,
    )


def configure(spec: TargetSpec, options: AscendOptions) -> TargetSpec:
    """The same rules for every chip: it is the compiler's command that names it."""
    return spec


def keep_float(node: NodeFacts) -> str | None:
    """Why a layer that the rules would quantize has no integer form on the NPU."""
    rank = len(node.weight_shape or ())
    if node.op_type == "Conv" and rank == _VOLUMES:
        return "convolutions of volumes take symmetric activations only, ASCEND's have an offset"
    if node.op_type == "ConvTranspose":
        if rank != _PICTURES:
            return f"a ConvTranspose has an integer form in 4 dimensions only, this one has {rank}"
        if any(step != 1 for step in node.attributes.get("dilations", ())):
            return "a ConvTranspose with dilations has no integer form"
    if node.op_type == "MatMul" and rank != _MATRIX:
        return f"its weights have {rank} dimensions, the integer form takes a matrix"
    return None


def lower(model: bytes | Path, deployment: Deployment) -> Iterable[ExtraFile]:
    """The files for Ascend's tools, beside the model."""
    from ptq_target_ascend import lowering

    return lowering.lower(model, deployment)


def check(model: bytes | Path) -> Iterable[Finding]:
    """What Ascend's compiler would not take in a file of its own form."""
    from ptq_target_ascend import findings

    return findings.check(model)


def _arithmetic() -> Arithmetic:
    """The NPU's integer arithmetic, to predict its results."""
    from ptq_target_ascend.arithmetic import AscendArithmetic  # imports numba

    return AscendArithmetic()
