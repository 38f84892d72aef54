"""The calibration table: what calibration found, as a file to keep and to quantize from.

A table is JSON that people can read. It belongs to one model, whose hash it carries, and may hold
the ranges of several methods. TensorRT's calibration cache is written, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ptq_core.arithmetic import Correction
from ptq_core.errors import InputError, Location, Problem
from ptq_core.types import Range

FORMAT: Literal[1] = 1


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"expected low <= high, found {bounds[0]:g} and {bounds[1]:g}")
    return bounds


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class OutputFigures(_Part):
    """How close one output of the quantized model came; sqnr is None where it was exact."""

    name: str
    cosine: float
    worst_cosine: float
    sqnr: float | None


class Figures(_Part):
    """How close the quantized model came to the float one, on how many samples."""

    samples: int
    held_out: bool
    outputs: tuple[OutputFigures, ...]


class LayerCorrection(_Part):
    """What a layer's integer result lacks, a number for each output channel; see Correction."""

    gain: tuple[float, ...]
    offset: tuple[float, ...]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len(self.gain) != len(self.offset):
            raise ValueError(f"has {len(self.gain)} gains and {len(self.offset)} offsets")
        return self


class MethodTable(_Part):
    """What one method found.

    Attributes:
        plugins: who had a part in it, as ``distribution==version``.
        ranges: lowest and highest value to represent, of every calibrated tensor.
        verification: what the quantized model was worth.
        corrections: of layers with weights, by the name of their first output; good for the
            table's own plan only.
    """

    plugins: tuple[str, ...] = ()
    ranges: dict[str, Annotated[tuple[float, float], AfterValidator(_ordered)]]
    verification: Figures | None = None
    corrections: dict[str, LayerCorrection] = Field(default_factory=dict)

    def observed(self) -> dict[str, Range]:
        """The ranges as stages take them."""
        return {name: Range(low=low, high=high) for name, (low, high) in self.ranges.items()}

    def layer_corrections(self) -> dict[str, Correction]:
        """The corrections as stages take them."""
        return {
            layer: Correction(gain=np.array(one.gain), offset=np.array(one.offset))
            for layer, one in self.corrections.items()
        }


class ModelFacts(_Part):
    """The float model: its file's name, and the hash of its content (external data included)."""

    file: str
    sha256: str


class PlanFacts(_Part):
    """What the plan came from, and the hash of what it decided."""

    target: str
    per_channel: bool
    skip: tuple[str, ...] = ()
    sha256: str


class DataFacts(_Part):
    """How many samples were seen, and the hash of what the model was fed."""

    samples: int
    sha256: str


class CalibrationTable(_Part):
    """All of it; the fields stand in this order in the file.

    Attributes:
        format: of the file.
        ptq: the version that made it.
        model: that it belongs to.
        plan: that it was made for.
        data: that it was made from.
        equalization: by what each layer's output channels were divided before they were watched,
            by the name of the layer's first output; empty where each channel has a weight scale.
        smoothing: by what channels of activations were divided then, by the activation's name.
        methods: what each has found.
    """

    format: Literal[1] = FORMAT
    ptq: str
    model: ModelFacts
    plan: PlanFacts
    data: DataFacts
    equalization: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    smoothing: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    methods: dict[str, MethodTable] = Field(min_length=1)


def content_sha256(files: Iterable[Path]) -> str:
    """Hash of what these files hold, in this order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# --------------------------------------------------------------------------- reading and writing


def read_table(path: Path) -> CalibrationTable:
    """The table in this file.

    Raises:
        InputError: the file cannot be read, is no table, or everything that is wrong in it.
    """
    where = Location(file=str(path))
    hint = "give a file that `ptq calibrate` has written"
    try:
        text = path.read_bytes().decode("utf-8")
        found = json.loads(text)
    except OSError as error:
        raise InputError(
            f"the calibration table cannot be read: {error.strerror or error}",
            location=where,
            hint=hint,
        ) from error
    except (ValueError, RecursionError) as error:
        kind = "text" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise InputError(
            f"is no calibration table: not {kind} ({error})", location=where, hint=hint
        ) from error
    if not isinstance(found, dict) or not {"format", "methods"} <= set(found):
        raise InputError(
            "is no calibration table: it lacks 'format' and 'methods'", location=where, hint=hint
        )
    if found["format"] != FORMAT:
        raise InputError(
            f"is a calibration table of format {found['format']!r}, expected {FORMAT}",
            location=where,
            hint="make it again with `ptq calibrate`, or use the ptq that has written it",
        )
    try:
        return CalibrationTable.model_validate_json(text)
    except ValidationError as error:
        problems = [
            Problem(message=f"{_place(one['loc'])}: {_reason(one)}", location=where)
            for one in error.errors()
        ]
        raise InputError(problems=problems) from error


def _place(parts: tuple[int | str, ...]) -> str:
    """Such as ``methods.KL.ranges.conv1[0]``."""
    return "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in parts).lstrip(".")


def _reason(detail: Mapping[str, Any]) -> str:
    message = str(detail.get("ctx", {}).get("error", detail["msg"]))
    return message.replace("Input should be", "expected")


def table_text(table: CalibrationTable) -> str:
    """The table as it is written: a line for each tensor."""
    text = json.dumps(table.model_dump(), indent=2, ensure_ascii=False, allow_nan=False)
    # a line break never stands inside a JSON string, so this can only match lists of numbers
    return re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda m: _on_one_line(m[0]), text) + "\n"


def _on_one_line(numbers: str) -> str:
    return "[" + ", ".join(numbers.strip("[]").replace(",", " ").split()) + "]"


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is never half-written: a temporary one, then renamed."""
    with tempfile.TemporaryDirectory(prefix=".ptq-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        scratch.write_text(text, encoding="utf-8", newline="\n")
        os.replace(scratch, path)


# ---------------------------------------------------------------------------------- TensorRT

_TENSORRT = 8601  # TensorRT 8.6.1, the last with int8 calibration before it was deprecated


def tensorrt_cache(ranges: Mapping[str, Range], *, min_max: bool) -> str:
    """The ranges as TensorRT's calibration cache, for its builder's ``readCalibrationCache``.

    The first line names TensorRT's version and the algorithm; then a line for each tensor with the
    bits, in hexadecimal and the highest first, of the float32 scale: the largest magnitude in the
    range, by 127. A tensor that was always zero takes the scale of [0, 1], as everywhere.

    Source   TensorRT's sampleINT8, README, "Calibration file": ``TRT-7000-EntropyCalibration2``,
             ``data: 3c008912``; read so by onnxruntime's tensorrt_execution_provider_utils.h.

    Args:
        ranges: of every tensor.
        min_max: they are those of MAX_MIN, which TensorRT calls another algorithm.

    Raises:
        InputError: a tensor's name contains a line break.
    """
    broken = [name for name in ranges if len(name.splitlines()) > 1]
    if broken:
        raise InputError(f"TensorRT's format has no way to write these names: {broken}")
    algorithm = "MinMaxCalibration" if min_max else "EntropyCalibration2"
    lines = [f"TRT-{_TENSORRT}-{algorithm}"]
    for name, one in ranges.items():
        peak = max(abs(one.low), abs(one.high)) or 1.0
        lines.append(f"{name}: {struct.pack('>f', peak / 127).hex()}")
    return "\n".join(lines) + "\n"
