"""What a run may be told besides its config, and what it tells when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ptq_core.diagnosis import NodeError
from ptq_core.estimates import TensorEstimate
from ptq_core.planning import Plan
from ptq_core.types import (
    Layout,
    Range,
)
from ptq_core.verification import Verification


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a run may be told besides its config.

    Attributes:
        min_cosine: smallest acceptable mean cosine similarity of any output, None for no gate.
        strict: fewer samples than asked for are an error.
        skip_bad: samples that cannot be used are left out and counted.
        input_shapes: shapes for inputs that the model leaves open.
        data_layout: layout of 4-D BIN data; None: the config's, else the model's own.
    """

    min_cosine: float | None = None
    strict: bool = False
    skip_bad: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    data_layout: Layout | None = None


@dataclass(kw_only=True)
class Report:
    """What a run did.

    Attributes:
        model: the float model's file.
        files: what was written, the model first; empty for a plan.
        bytes_before: size of the float model's files.
        bytes_after: size of what was written.
        target: the device.
        plan: every node with a decision.
        samples: how many samples were used in calibration.
        ranges: of every calibrated tensor.
        estimates: what is lost of every calibrated tensor, estimated on a few of its values; empty
            where the ranges come from a table.
        verification: how close the result is, None for a plan.
        suspects: where a quality gate was missed, the nodes that lose most.
        gate: the gate's cosine, None where there was none.
        seconds: wall time of every stage.
        notes: what the user should know.
        warnings: what the user should look at.
    """

    model: Path
    target: str
    plan: Plan
    files: list[Path] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    samples: int = 0
    ranges: dict[str, Range] = field(default_factory=dict)
    estimates: dict[str, TensorEstimate] = field(default_factory=dict)
    verification: Verification | None = None
    suspects: tuple[NodeError, ...] = ()
    gate: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the quality gate, if there is one, was met."""
        if self.gate is None or self.verification is None:
            return True
        cosine = self.verification.cosine
        return cosine is not None and cosine >= self.gate
