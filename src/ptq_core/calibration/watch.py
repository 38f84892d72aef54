"""What calibrators have seen: of all samples, or of a part that is merged with others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ptq_core.calibration.tensor import Method, Tensor
from ptq_core.planning import TensorPlan
from ptq_core.types import Range

_SHOWN = 3  # tensors that a note names


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What calibration found.

    Attributes:
        ranges: for each method, of every watched tensor.
        samples: how many were seen.
        data_sha256: hash of the samples, as fed to the model.
        values: of every watched tensor a few values from the first samples, float32, one axis.
        notes: what calibrators want the user to know.
    """

    ranges: dict[str, dict[str, Range]]
    samples: int
    data_sha256: str
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Watch:
    """The calibrators of all tensors.

    Args:
        watched: for each method the tensors of its plan, each with the name of its calibrator;
            methods share a calibrator where their plans name the same one.
        methods: the calibrators by those names.

    Attributes:
        samples: how many were seen.
        passes: how many have ended.
        digests: hashes of the samples, one for each part that was merged.
        row_bytes: the most bytes that were observed of one row.
    """

    def __init__(
        self,
        watched: Mapping[str, Mapping[str, TensorPlan]],
        methods: Mapping[str, Method],
    ) -> None:
        self.samples = self.passes = self.row_bytes = 0
        self.digests: list[str] = []
        self._watched = watched
        self._tensors: dict[str, Tensor] = {}
        for tensors in watched.values():
            for name, plan in tensors.items():
                tensor = self._tensors.setdefault(name, Tensor(plan))
                tensor.add(plan, methods[plan.method or ""])

    def waiting(self) -> list[Tensor]:
        """The tensors that a calibrator wants to see in this pass."""
        return [tensor for tensor in self._tensors.values() if tensor.waiting]

    def merge(self, other: Watch) -> None:
        """Take in what the other has seen of other samples in the same (first) pass.

        Afterwards the pass ends for all of them here, by :meth:`end_pass`.
        """
        for name, tensor in self._tensors.items():
            tensor.merge(other._tensors[name])
        self.samples += other.samples
        self.digests += other.digests
        self.row_bytes = max(self.row_bytes, other.row_bytes)

    def end_pass(self) -> bool:
        """Tell the calibrators that all samples were seen; whether one wants to see them again."""
        self.passes += 1
        # every tensor is asked: none may miss the end of a pass because another wants more
        more = [tensor.end_pass() for tensor in self._tensors.values()]
        return any(more)

    def result(self) -> Calibration:
        """The ranges, after the last pass."""
        watchers = {
            (name, calibrator): watcher
            for name, tensor in self._tensors.items()
            for calibrator, watcher in tensor.watchers.items()
        }
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # a search may take a while
            ranges = pool.map(lambda watcher: watcher.result(), watchers.values())
            found = dict(zip(watchers, ranges, strict=True))
        digest = self.digests[0] if len(self.digests) == 1 else _joined(self.digests)
        return Calibration(
            ranges={
                method: {name: found[name, plan.method or ""] for name, plan in tensors.items()}
                for method, tensors in self._watched.items()
            },
            samples=self.samples,
            data_sha256=digest,
            values={name: tensor.values() for name, tensor in self._tensors.items()},
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        said: dict[tuple[str, str], list[str]] = {}
        for name, tensor in self._tensors.items():
            for calibrator, watcher in tensor.watchers.items():
                note = watcher.note()
                if note:
                    said.setdefault((calibrator, note), []).append(name)
        return [f"{by}: {note} ({_listed(names)})" for (by, note), names in said.items()]


def _joined(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{more}"
