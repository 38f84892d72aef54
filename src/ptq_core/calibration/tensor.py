"""One tensor and the calibrators that watch it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.errors import DataError, Location, PluginError
from ptq_core.planning import TensorPlan, lifted
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Batch
from ptq_core.types import Calibrator, CalibratorEntry, ObservedTensor, Range

# A few values of every tensor are kept for the estimate of its error.
_KEPT_RUNS = 8
_KEPT_OF_RUN = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A calibrator and its options."""

    entry: Registered[CalibratorEntry]
    options: Any


class Tensor:
    """One tensor and the calibrators that watch it, by their names."""

    def __init__(self, plan: TensorPlan) -> None:
        self.name = plan.name
        self._plan = plan
        self.watchers: dict[str, _Watcher] = {}
        self.waiting: list[_Watcher] = []  # who wants to see more in this pass
        self._kept: list[NDArray[np.float32]] = []

    def add(self, plan: TensorPlan, method: Method) -> None:
        """Let this method's calibrator watch as well, if it does not yet."""
        key = plan.method or ""
        if key not in self.watchers:
            self.watchers[key] = _Watcher(plan, method)
            self.waiting.append(self.watchers[key])

    def settle(self) -> bool:
        """Let calibrators go that have settled; whether nobody wants to see more."""
        self.waiting = [watcher for watcher in self.waiting if not watcher.settled()]
        return not self.waiting

    def observe(self, values: NDArray[Any], batch: Batch) -> None:
        """Show the values of one run to the calibrators, if they are finite."""
        if not self.waiting:
            return
        values = lifted(values, self._plan)
        view = values.view()
        view.flags.writeable = False
        # those that check go first, so that the others see no NaN
        order = sorted(self.waiting, key=lambda one: not one.checks_finite)
        if not order[0].checks_finite and not _finite(view):
            raise _not_finite(self.name, view, batch)
        for watcher in order:
            watcher.observe(view, batch)
        if len(self._kept) < _KEPT_RUNS:
            self._kept.append(_some(values))

    def merge(self, other: Tensor) -> None:
        """Take in what the other's calibrators have seen."""
        for key, watcher in self.watchers.items():
            watcher.merge(other.watchers[key])
        self._kept = [*self._kept, *other._kept][:_KEPT_RUNS]

    def end_pass(self) -> bool:
        """End the pass; whether a calibrator wants another one."""
        more = [watcher for watcher in self.watchers.values() if watcher.end_pass()]
        self.waiting = more
        return bool(more)

    def values(self) -> NDArray[np.float32]:
        """A few of its values."""
        return np.concatenate([np.empty(0, np.float32), *self._kept])


class _Watcher:
    """The calibrator of one tensor, and whom to blame for it."""

    def __init__(self, plan: TensorPlan, method: Method) -> None:
        self._tensor = plan.name
        self._record = method.entry.record
        self._batched = method.entry.entry.batched
        self.checks_finite = method.entry.entry.checks_finite
        self._method = method.entry.entry.name
        self._wants_more = True
        with blame(self._record, "making a calibrator"):
            self._calibrator: Calibrator = method.entry.entry.factory(
                ObservedTensor(name=plan.name, scheme=plan.scheme, bounds=plan.bounds),
                method.options,
            )

    def settled(self) -> bool:
        settled = getattr(self._calibrator, "settled", None)
        with blame(self._record, f"observing '{self._tensor}'"):
            return settled is not None and bool(settled())

    def observe(self, view: NDArray[Any], batch: Batch) -> None:
        by_row = view.ndim > 0 and len(view) == batch.size  # else axis 0 is not the batch
        whole = not by_row or batch.size == 1 or (self._batched and batch.rows == batch.size)
        with blame(self._record, f"observing '{self._tensor}'"):
            try:
                for part in [view] if whole else [view[i : i + 1] for i in range(batch.rows)]:
                    self._calibrator.observe(part)
            except FloatingPointError as error:
                if not self.checks_finite:
                    raise
                raise _not_finite(self._tensor, view, batch) from error

    def merge(self, other: _Watcher) -> None:
        with blame(self._record, f"merging what was seen of '{self._tensor}'"):
            self._calibrator.merge(other._calibrator)

    def end_pass(self) -> bool:
        """Whether it wants another pass; one that has seen enough is not asked again."""
        if self._wants_more:
            with blame(self._record, f"ending a pass over '{self._tensor}'"):
                self._wants_more = bool(self._calibrator.end_pass())
        return self._wants_more

    def result(self) -> Range:
        with blame(self._record, f"giving the range of '{self._tensor}'"):
            found = self._calibrator.result()
        numbers = isinstance(found, Range) and all(
            isinstance(bound, Real) and math.isfinite(bound) for bound in (found.low, found.high)
        )
        if not numbers or found.low > found.high:
            raise PluginError(
                f"{self._record}: {self._method} gave {found!r} for tensor '{self._tensor}', "
                "expected a finite, ordered Range",
            )
        return found

    def note(self) -> str | None:
        note = getattr(self._calibrator, "note", None)
        if note is None:
            return None
        with blame(self._record, f"giving a note on '{self._tensor}'"):
            said = note()
        if said is not None and not isinstance(said, str):
            raise PluginError(
                f"{self._record}: {self._method} gave the note {said!r} for tensor "
                f"'{self._tensor}', expected text or None",
            )
        return said


def _some(values: NDArray[Any]) -> NDArray[np.float32]:
    """A few of the values, from all over the array.

    The step shares no factor with the size, thus with no axis: it comes by every channel and
    every place of a picture.
    """
    flat = values.reshape(-1)
    step = max(1, -(-flat.size // _KEPT_OF_RUN))
    while math.gcd(step, flat.size) > 1:
        step += 1
    return np.array(flat[::step], np.float32)


def _finite(values: NDArray[Any]) -> bool:
    """Whether all values are finite; the sum of squares tells, at the speed of memory."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())  # the squares may have overflowed


def _not_finite(name: str, values: NDArray[Any], batch: Batch) -> DataError:
    return DataError(
        f"the float model gives NaN or infinity for {_culprit(values, batch)}",
        location=Location(tensor=name),
        hint="check the sample and its preprocessing (mean, std, layout)",
    )


def _culprit(values: NDArray[Any], batch: Batch) -> str:
    if values.ndim and len(values) == batch.size and len(batch.names) == batch.rows:
        rows = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        return batch.names[int(np.argmin(rows))]
    return ", ".join(batch.names)
