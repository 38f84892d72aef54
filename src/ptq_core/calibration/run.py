"""The passes over the samples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.calibration.session import Session
from ptq_core.calibration.tensor import Tensor
from ptq_core.calibration.watch import Calibration, Watch
from ptq_core.errors import DataError
from ptq_core.plugins import Registered
from ptq_core.samples import (
    Batch,
    Sample,
    Samples,
    add_to_digest,
    batches,
    fixed_batches,
    read_ahead,
)
from ptq_core.types import Event, ModelInput, RunnerEntry

_AHEAD = 4  # decoded samples that wait
# They take statistics of a run while the next one is executed by at least one thread of its own.
_THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))

# After so many runs, tensors whose calibrators have settled are dropped from the model's outputs,
# if they are a good part of what is fetched. Making another session costs a few runs.
_SETTLING = (2, 8, 32)

Emit = Callable[[Event], None]


def open_session(
    watch: Watch,
    model: ir.Model,
    inputs: Sequence[ModelInput],
    runner: Registered[RunnerEntry],
    options: Any,
) -> Session:
    """The prepared float model in a runner, giving what the calibrators want to see next.

    Raises:
        PluginError: the runner cannot load it.
    """
    names = [one.name for one in watch.waiting()]
    return Session(model, names, inputs, runner, options, watch.row_bytes)


def calibrate(watch: Watch, session: Session, samples: Samples, emit: Emit) -> Calibration:
    """Ranges of the watched tensors over all samples, by each of the methods.

    Args:
        watch: calibrators that have seen nothing yet.
        session: the model, for the first pass.
        samples: the data.
        emit: progress.

    Raises:
        DataError: there are no samples; or a tensor has NaN or infinite values, with the sample.
        PluginError: a plugin failed, or gave a range that is none.
    """
    while True:
        observe(watch, session, samples, emit)
        if not watch.samples:
            raise DataError(
                "no sample could be used",
                hint="; ".join(samples.skipped[:3]) or "give at least one sample",
            )
        if not watch.end_pass():
            return watch.result()
        session = session.reopened([one.name for one in watch.waiting()])


def observe(watch: Watch, session: Session, samples: Samples, emit: Emit) -> None:
    """One pass over the samples, seen by those calibrators that want it.

    Samples may be divided: let a Watch of its own see each part, then merge them.
    """
    tensors = watch.waiting()
    digest = hashlib.sha256() if watch.passes == 0 else None
    seen = 0

    def counted(source: Iterator[Sample]) -> Iterator[Sample]:
        nonlocal seen  # a model with a fixed batch may need several runs for one sample
        for sample in source:
            seen += 1
            yield sample

    emit(Event(stage="calibrate", kind="start", total=samples.count))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ptq-statistics") as pool:
        ahead = read_ahead(samples.open(), _AHEAD)
        working: Sequence[Future[None]] = ()  # on what the run before gave
        try:
            for index, batch in enumerate(_batched(counted(ahead), session)):
                if index in _SETTLING:
                    _finish(working)
                    session.drop([one.name for one in tensors if one.settle()])
                results = session.run(batch, index % 2)
                _finish(working)
                working = _see(pool, tensors, results, batch, digest)
                emit(Event(stage="calibrate", kind="advance", done=seen, total=samples.count))
            _finish(working)
        finally:
            ahead.close()  # type: ignore[attr-defined]
    emit(Event(stage="calibrate", kind="end", done=seen, total=samples.count))
    watch.row_bytes = session.row_bytes
    if digest is not None:
        watch.samples = seen
        watch.digests = [digest.hexdigest()]


def _batched(ahead: Iterator[Sample], session: Session) -> Iterator[Batch]:
    if session.fixed_batch is not None:
        return fixed_batches(ahead, session.fixed_batch)
    return batches(ahead, session.batch_size)


def _see(
    pool: ThreadPoolExecutor,
    tensors: Sequence[Tensor],
    results: Mapping[str, NDArray[Any]],
    batch: Batch,
    digest: hashlib._Hash | None,
) -> list[Future[None]]:
    """Begin to show the results to the calibrators, each tensor in one thread, large ones first."""
    shown = [tensor for tensor in tensors if tensor.name in results]  # else it has settled
    shown.sort(key=lambda tensor: -results[tensor.name].nbytes)
    left = iter(shown)

    def work() -> None:
        for tensor in left:
            tensor.observe(results[tensor.name], batch)

    working = [pool.submit(work) for _ in range(_THREADS)]
    if digest is not None:
        working.append(pool.submit(add_to_digest, digest, batch))
    return working


def _finish(working: Iterable[Future[None]]) -> None:
    for future in working:
        future.result()
