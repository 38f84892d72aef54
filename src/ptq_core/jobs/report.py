"""What a run may be told besides its config, and what it tells when it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptq_core.diagnosis import NodeError
from ptq_core.estimates import TensorEstimate
from ptq_core.planning import Plan
from ptq_core.target_types import Finding
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
        fp16: what stays float is stored as float16 (weight quantization).
        save_scales: where the scales that mixed bits have found are written, to be used again.
    """

    min_cosine: float | None = None
    strict: bool = False
    skip_bad: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    data_layout: Layout | None = None
    fp16: bool = False
    save_scales: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredWeight:
    """A weight in the file: what it takes, what it has lost, and its parameters.

    Attributes:
        tensor: the constant that it replaces.
        readers: the nodes that read it.
        shape: of the float weight.
        bits: width of a code; with mixed bits the width that the largest code would need.
        encoding: how the codes are stored.
        bytes_before: as float32.
        bytes_after: of codes and parameters.
        entropy: of the codes, bits a weight: no code that looks at single weights takes less.
        sqnr: signal to quantization noise, dB; infinite where nothing is lost.
        scale: float32, of every channel (or group), CorrectionVar included.
        offset: float32; ``(code * scale + offset) * input_scale`` is the weight.
        zero_point: the code nearest to zero.
        variance: CorrectionVar, the factor that is in ``scale``.
        mean: CorrectionMean; ``(code - zero_point) * scale + mean`` is the same as with ``offset``.
        input_scale: float32, of every input; None where it is 1.
        step: of mixed bits, what ``scales`` takes again; None else.
    """

    tensor: str
    readers: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int
    encoding: str
    bytes_before: int
    bytes_after: int
    entropy: float
    sqnr: float
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    variance: NDArray[np.float64]
    mean: NDArray[np.float64]
    input_scale: NDArray[np.float32] | None = None
    step: float | None = None

    @property
    def size(self) -> int:
        """How many weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """What it takes, parameters included."""
        return 8.0 * self.bytes_after / self.size


@dataclass(kw_only=True)
class Report:
    """What a run did.

    Attributes:
        model: the float model's file.
        files: what was written, the model first; empty for a plan.
        extras: further files for the device's toolchain, and what each is for.
        bytes_before: size of the float model's files.
        bytes_after: size of the model that was written.
        target: the device.
        plan: every node with a decision.
        samples: how many samples were used in calibration.
        ranges: of every calibrated tensor.
        estimates: what is lost of every calibrated tensor, estimated on a few of its values; empty
            where the ranges come from a table.
        weights: of weight quantization, in the order of the plan.
        generated: the comparison is on generated input, for there was no data.
        verification: how close the result is, None for a plan.
        suspects: where a quality gate was missed, the nodes that lose most.
        rules: how many rules the device has for `ptq check`.
        findings: what those say against the result.
        gate: the gate's cosine, None where there was none.
        seconds: wall time of every stage.
        notes: what the user should know.
        warnings: what the user should look at.
    """

    model: Path
    target: str
    plan: Plan
    files: list[Path] = field(default_factory=list)
    extras: dict[Path, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    samples: int = 0
    ranges: dict[str, Range] = field(default_factory=dict)
    estimates: dict[str, TensorEstimate] = field(default_factory=dict)
    weights: tuple[StoredWeight, ...] = ()
    generated: bool = False
    verification: Verification | None = None
    suspects: tuple[NodeError, ...] = ()
    rules: int = 0
    findings: tuple[Finding, ...] = ()
    gate: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether the device takes the result: no rule that it has to keep is broken."""
        return all(one.severity != "error" for one in self.findings)

    @property
    def passed(self) -> bool:
        """Whether the quality gate, if there is one, was met."""
        if self.gate is None or self.verification is None:
            return True
        cosine = self.verification.cosine
        return cosine is not None and cosine >= self.gate
