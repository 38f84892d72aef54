"""Read samples ahead in a thread, and group them into runs."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ptq_core.samples.sample import Feeds, Sample


def read_ahead(source: Iterator[Sample], depth: int) -> Iterator[Sample]:
    """The same samples, read by a thread that stays up to ``depth`` samples ahead."""
    ready: queue.Queue[Sample | BaseException | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Sample | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for sample in source:
                if not put(sample):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - carried over to the reader's thread
            put(error)

    thread = threading.Thread(target=work, name="ptq-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=0.5)  # a slow reader may finish by itself: Ctrl-C does not wait for it


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples that are run together.

    Attributes:
        feeds: concatenated along axis 0; a last batch that is too small for a model with a fixed
            batch repeats its last sample.
        names: the samples.
        rows: how many entries of axis 0 are real.
    """

    feeds: Feeds
    names: tuple[str, ...]
    rows: int

    @property
    def size(self) -> int:
        """Length of axis 0, repetitions included."""
        return _rows(self.feeds)


def batches(source: Iterator[Sample], size: Callable[[], int]) -> Iterator[Batch]:
    """Group samples of the same shapes, ``size()`` rows at a time; asked anew for every batch."""
    waiting: list[Sample] = []
    for sample in source:
        if waiting and _shapes(waiting[0]) != _shapes(sample):
            yield _batch(waiting, None)
            waiting = []
        waiting.append(sample)
        if len(waiting) >= size():
            yield _batch(waiting, None)
            waiting = []
    if waiting:
        yield _batch(waiting, None)


def fixed_batches(source: Iterator[Sample], rows: int) -> Iterator[Batch]:
    """Groups of exactly ``rows`` for a model whose batch is fixed."""
    waiting: list[Sample] = []
    for sample in source:
        whole = not waiting and _rows(sample.feeds) == rows
        for one in [sample] if whole else _single_rows(sample):
            waiting.append(one)
            if sum(_rows(one.feeds) for one in waiting) >= rows:
                yield _batch(waiting, rows)
                waiting = []
    if waiting:
        yield _batch(waiting, rows)


def _single_rows(sample: Sample) -> list[Sample]:
    return [
        Sample(
            name=sample.name,
            feeds={
                name: array[i : i + 1] if array.ndim else array
                for name, array in sample.feeds.items()
            },
        )
        for i in range(_rows(sample.feeds))
    ]


def _rows(feeds: Feeds) -> int:
    """Length of axis 0, by the first input."""
    first = next(iter(feeds.values()))
    return int(first.shape[0]) if first.ndim else 1


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in sample.feeds.values())


def _batch(samples: list[Sample], fixed: int | None) -> Batch:
    rows = sum(_rows(sample.feeds) for sample in samples)
    padded = samples + samples[-1:] * max(0, (fixed or rows) - rows)
    if len(padded) == 1:
        feeds = padded[0].feeds
    else:
        feeds = {
            name: np.concatenate([sample.feeds[name] for sample in padded]) if array.ndim else array
            for name, array in samples[0].feeds.items()
        }
    return Batch(feeds=feeds, names=tuple(sample.name for sample in samples), rows=rows)


def add_to_digest(digest: hashlib._Hash, batch: Batch) -> None:
    """Take a batch into a hash of the data, row by row: how samples were grouped does not show."""
    for row in range(batch.rows):
        for name, array in sorted(batch.feeds.items()):
            by_row = array.ndim > 0 and len(array) == batch.size
            part = array[row : row + 1] if by_row else array
            digest.update(f"{name}{part.shape}{part.dtype}".encode())
            digest.update(np.ascontiguousarray(part).data)
