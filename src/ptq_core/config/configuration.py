"""The configuration of one job: validated, frozen, and able to say where each value stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_core.config.document import section_key
from ptq_core.config.sections import (
    AscendContext,
    CommonQuantParam,
    DataPreprocessParam,
    DynamicQuantParam,
    FullQuantParam,
    MixedBitWeightQuantParam,
    WeightQuantParam,
)
from ptq_core.errors import Location, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What the user asked for.

    Attributes:
        common: which job, and what concerns all of them.
        weight: for WEIGHT_QUANT.
        mixed: for WEIGHT_QUANT with ``bit_num = 0``.
        full: for FULL_QUANT; None where the section is absent.
        data: how samples are read; None where the section is absent.
        dynamic: for DYNAMIC_QUANT.
        ascend: None where the section is absent.
        runner: name of the runner, None for the default one.
        target: the device: a name, or the path of a ``.toml`` file as the user wrote it.
        plugin_options: keys of ``[kind.NAME]`` by (kind, name casefolded), as written; see
            ``validate_options``.
        source: the file; relative paths in it are taken from its folder.
        warnings: what is accepted but has no effect.
        notes: advice, and what was silently right.
        locations: see :meth:`locate`.
    """

    common: CommonQuantParam
    weight: WeightQuantParam
    mixed: MixedBitWeightQuantParam
    full: FullQuantParam | None
    data: DataPreprocessParam | None
    dynamic: DynamicQuantParam
    ascend: AscendContext | None
    runner: str | None
    target: str
    plugin_options: Mapping[tuple[str, str], Mapping[str, Any]]
    source: Path | None
    warnings: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    locations: Mapping[tuple[str, str | None], Location] = field(repr=False, compare=False)

    def locate(self, section: str, key: str | None = None) -> Location:
        """Where a key stands; where it was not written its section, else the file."""
        name = section_key(section)
        nowhere = Location(file=None if self.source is None else str(self.source))
        return self.locations.get((name, key)) or self.locations.get((name, None)) or nowhere


def resolve_path(config: Config, path: str) -> tuple[Path, str | None]:
    """The path that a value of this config means, and a note where that may surprise.

    Relative paths are taken from the config file's folder. One that is absent there but present
    under the working directory is taken from there, which the note says.
    """
    beside = path if config.source is None else config.source.parent / path
    if Path(path).is_absolute() or Path(beside).exists() or not Path(path).exists():
        return Path(beside), None
    here = Path(path).absolute()
    return here, f"'{path}' is not beside {config.source}; using {here}"
