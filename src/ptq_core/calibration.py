"""Run the float model over the samples and let a calibrator watch every tensor that needs a range.

Three things happen side by side: a thread decodes the samples to come, the runner executes the
model, another thread takes statistics of the run before. Memory holds a few runs, whatever the
number of samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.errors import DataError, Location, PluginError
from ptq_core.graph.model import runnable, with_outputs
from ptq_core.graph.operators import dimensions
from ptq_core.planning import TensorPlan
from ptq_core.plugins import Registered, blame
from ptq_core.samples import (
    Batch,
    Sample,
    Samples,
    add_to_digest,
    batches,
    fixed_batches,
    read_ahead,
)
from ptq_core.types import (
    Calibrator,
    CalibratorEntry,
    Event,
    ModelInput,
    ObservedTensor,
    Range,
    Runner,
    RunnerEntry,
)

# Observed bytes of one run: small enough to stay in cache between inference and statistics.
_RUN_BYTES = 8 << 20
_LARGEST_BATCH = 32
_AHEAD = 4  # decoded samples that wait

# After so many runs, tensors whose calibrators have settled are dropped from the model's outputs,
# if they are a good part of what is fetched. Making another session costs a few runs.
_SETTLING = (2, 8, 32)
_WORTH_DROPPING = 0.2

Emit = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What calibration found.

    Attributes:
        ranges: of every watched tensor.
        samples: how many were seen.
        data_sha256: hash of the samples, as fed to the model.
    """

    ranges: dict[str, Range]
    samples: int
    data_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A calibrator and its options."""

    entry: Registered[CalibratorEntry]
    options: Any


def calibrate(
    model: ir.Model,
    watched: Mapping[str, TensorPlan],
    samples: Samples,
    inputs: Sequence[ModelInput],
    methods: Mapping[str, Method],
    runner: Registered[RunnerEntry],
    runner_options: Any,
    emit: Emit,
) -> Calibration:
    """Ranges of the watched tensors over all samples.

    Args:
        model: the prepared float model.
        watched: the tensors, each with the name of its method.
        samples: the data.
        inputs: of the model.
        methods: the calibrators by the names that ``watched`` uses.
        runner: executes the model.
        runner_options: its options.
        emit: progress.

    Raises:
        DataError: there are no samples; or a tensor has NaN or infinite values, with the sample.
        PluginError: a plugin failed, or gave a range that is none.
    """
    observers = [
        _Observer(name, tensor, methods[tensor.method or ""]) for name, tensor in watched.items()
    ]
    outputs = [name for name in watched if name not in {item.name for item in inputs}]
    session = _Session(model, outputs, runner, runner_options)
    together = _may_batch(model, outputs, inputs)
    digest = hashlib.sha256()
    seen = again = 0
    while True:
        seen = _one_pass(
            session, observers, samples, inputs, emit, together, None if again else digest
        )
        again += 1
        # every calibrator is asked: none may miss the end of a pass because another wants more
        more = [observer.end_pass() for observer in observers]
        if not any(more):
            break
    if not seen:
        raise DataError(
            "no sample could be used",
            hint="; ".join(samples.skipped[:3]) or "give at least one sample",
        )
    return Calibration(
        ranges={observer.name: observer.result() for observer in observers},
        samples=seen,
        data_sha256=digest.hexdigest(),
    )


def _one_pass(
    session: _Session,
    observers: Sequence[_Observer],
    samples: Samples,
    inputs: Sequence[ModelInput],
    emit: Emit,
    together: bool,
    digest: hashlib._Hash | None,
) -> int:
    seen = 0

    def counted(source: Iterator[Sample]) -> Iterator[Sample]:
        nonlocal seen  # a model with a fixed batch may need several runs for one sample
        for sample in source:
            seen += 1
            yield sample

    emit(Event(stage="calibrate", kind="start", total=samples.count))
    with ThreadPoolExecutor(1, thread_name_prefix="ptq-statistics") as pool:
        pending: list[Future[None]] = []
        ahead = read_ahead(samples.open(), _AHEAD)
        try:
            for index, batch in enumerate(_batched(counted(ahead), inputs, session, together)):
                # the slot's buffers are free once the statistics that used them are done
                while len(pending) > (0 if index in _SETTLING else 1):
                    pending.pop(0).result()
                if index in _SETTLING:
                    session.drop([one.name for one in observers if one.settled()])
                results = session.run(batch, index % 2)
                pending.append(pool.submit(_observe, observers, results, batch, digest))
                emit(Event(stage="calibrate", kind="advance", done=seen, total=samples.count))
            for future in pending:
                future.result()
        finally:
            ahead.close()  # type: ignore[attr-defined]
    emit(Event(stage="calibrate", kind="end", done=seen, total=samples.count))
    return seen


def _batched(
    ahead: Iterator[Sample],
    inputs: Sequence[ModelInput],
    session: _Session,
    together: bool,
) -> Iterator[Batch]:
    fixed = fixed_batch(inputs)
    if fixed is not None:
        return fixed_batches(ahead, fixed)
    return batches(ahead, session.batch_size if together else lambda: 1)


def fixed_batch(inputs: Sequence[ModelInput]) -> int | None:
    """The batch that the model demands, None where that is open."""
    first = {item.shape[0] for item in inputs if item.shape}
    fixed = first.pop() if len(first) == 1 else None
    return fixed if isinstance(fixed, int) else None


def _may_batch(model: ir.Model, outputs: Sequence[str], inputs: Sequence[ModelInput]) -> bool:
    """Whether axis 0 is one and the same open batch axis of all inputs and observed tensors."""
    axes = {item.shape[0] if item.shape else None for item in inputs}
    if len(axes) != 1 or not isinstance(next(iter(axes)), str):
        return False
    batch = next(iter(axes))
    values = {value.name: value for node in model.graph for value in node.outputs}
    return all((dimensions(values[name]) or (None,))[0] == batch for name in outputs)


class _Session:
    """The float model with the observed tensors as its outputs, and two sets of result buffers."""

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str],
        runner: Registered[RunnerEntry],
        options: Any,
    ) -> None:
        self._model, self._entry, self._options = model, runner.entry, options
        self._record = runner.record
        self._outputs = list(outputs)
        self._bytes: dict[str, int] = {}
        self._row_bytes = 0
        self._open()

    def _open(self) -> None:
        self._buffers: list[dict[str, NDArray[Any]] | None] = [None, None]
        self._shapes: list[Any] = [None, None]
        self._runner: Runner | None = None
        if self._outputs:
            with (
                runnable(with_outputs(self._model, self._outputs)) as form,
                blame(self._record, "loading the model"),
            ):
                self._runner = self._entry.factory(form, self._options)

    def drop(self, names: Collection[str]) -> None:
        """Fetch these tensors no more, if that saves enough."""
        gone = sum(self._bytes.get(name, 0) for name in names)
        if gone > _WORTH_DROPPING * sum(self._bytes.values()):
            self._outputs = [name for name in self._outputs if name not in names]
            self._open()

    def batch_size(self) -> int:
        """Rows of one run, from the observed bytes of a row; 1 until that is known."""
        if not self._row_bytes:
            return 1
        return max(1, min(_LARGEST_BATCH, _RUN_BYTES // self._row_bytes))

    def run(self, batch: Batch, slot: int) -> Mapping[str, NDArray[Any]]:
        """The observed tensors, inputs included; valid until the slot is used again."""
        if self._runner is None:
            return batch.feeds
        shapes = {name: array.shape for name, array in batch.feeds.items()}
        out = self._buffers[slot] if self._shapes[slot] == shapes else None
        with blame(self._record, f"running {batch.names[0]}"):
            results = dict(self._runner.run(batch.feeds, out))
        missing = [name for name in self._outputs if name not in results]
        if missing:
            raise PluginError(f"{self._record} did not return '{missing[0]}'")
        self._buffers[slot], self._shapes[slot] = results, shapes
        self._bytes = {name: array.nbytes for name, array in results.items()}
        # never less than at first: what the runtime keeps inside does not shrink with the outputs
        row_bytes = sum(self._bytes.values()) // max(1, batch.rows)
        self._row_bytes = max(self._row_bytes, row_bytes)
        return {**results, **batch.feeds}


class _Observer:
    """One tensor and its calibrator."""

    def __init__(self, name: str, tensor: TensorPlan, method: Method) -> None:
        self.name = name
        self._record = method.entry.record
        self._batched = method.entry.entry.batched
        self._method = method.entry.entry.name
        with blame(self._record, "making a calibrator"):
            self._calibrator: Calibrator = method.entry.entry.factory(
                ObservedTensor(name=name, scheme=tensor.scheme, bounds=tensor.bounds),
                method.options,
            )

    def settled(self) -> bool:
        settled = getattr(self._calibrator, "settled", None)
        with blame(self._record, f"observing '{self.name}'"):
            return settled is not None and bool(settled())

    def observe(self, values: NDArray[Any], batch: Batch) -> None:
        if not _finite(values):
            raise DataError(
                f"the float model gives NaN or infinity for {_culprit(values, batch)}",
                location=Location(tensor=self.name),
                hint="check the sample and its preprocessing (mean, std, layout)",
            )
        view = values.view()
        view.flags.writeable = False
        by_row = view.ndim > 0 and len(view) == batch.size  # else axis 0 is not the batch
        with blame(self._record, f"observing '{self.name}'"):
            if not by_row or batch.size == 1 or (self._batched and batch.rows == batch.size):
                self._calibrator.observe(view)
            else:
                for row in range(batch.rows):
                    self._calibrator.observe(view[row : row + 1])

    def end_pass(self) -> bool:
        with blame(self._record, f"ending a pass over '{self.name}'"):
            return bool(self._calibrator.end_pass())

    def result(self) -> Range:
        with blame(self._record, f"giving the range of '{self.name}'"):
            found = self._calibrator.result()
        numbers = isinstance(found, Range) and all(
            isinstance(bound, Real) and math.isfinite(bound) for bound in (found.low, found.high)
        )
        if not numbers or found.low > found.high:
            raise PluginError(
                f"{self._record}: {self._method} gave {found!r} for tensor '{self.name}', "
                "expected a finite, ordered Range",
            )
        return found


def _observe(
    observers: Sequence[_Observer],
    results: Mapping[str, NDArray[Any]],
    batch: Batch,
    digest: hashlib._Hash | None,
) -> None:
    for observer in observers:
        if observer.name in results:  # else it has settled
            observer.observe(results[observer.name], batch)
    if digest is not None:
        add_to_digest(digest, batch)


def _finite(values: NDArray[Any]) -> bool:
    """Whether all values are finite; the sum of squares tells, at the speed of memory."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())  # the squares may have overflowed


def _culprit(values: NDArray[Any], batch: Batch) -> str:
    if values.ndim and len(values) == batch.size and len(batch.names) == batch.rows:
        rows = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        return batch.names[int(np.argmin(rows))]
    return ", ".join(batch.names)
