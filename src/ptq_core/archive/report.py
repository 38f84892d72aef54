"""What packing and unpacking did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["integers", "encoded", "numbers", "rest"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTensor:
    """What became of a constant, or of several small ones together.

    Attributes:
        name: of the tensor, or the constants of a decoder; "" for several together.
        kind: ``integers`` and ``encoded`` are entropy-coded, ``numbers`` and the ``rest`` are not.
        stored_as: in the model: a type, or an encoding and its bits.
        elements: how many; 0 for the rest.
        entropy: of the codes, zeroth order, in bits for one; None where they are no codes.
        bytes_before: in the model's files.
        bytes_after: in the archive.
    """

    name: str
    kind: Kind
    stored_as: str
    elements: int
    entropy: float | None = None
    bytes_before: int
    bytes_after: int


@dataclass(kw_only=True)
class PackReport:
    """What :func:`pack` did.

    Attributes:
        model: the model.
        archive: the file that was written.
        bytes_before: of the model and its external data.
        bytes_after: of the archive.
        tensors: its constants; the last ones are the rest of each file.
        seconds: that it took.
        notes: what the user should know.
    """

    model: Path
    archive: Path
    bytes_before: int = 0
    bytes_after: int = 0
    tensors: list[PackedTensor] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class UnpackReport:
    """What :func:`unpack` did.

    Attributes:
        archive: the archive.
        files: that were written; the model first.
        bytes_before: of the archive.
        bytes_after: of the files.
        seconds: that it took.
    """

    archive: Path
    files: list[Path] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
