"""Look at the first samples before anybody else, of data that may be read only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice

from ptq_core.samples import Sample, Samples

_KEPT, _BYTES = 128, 64 << 20  # so many of the first samples, if they are no larger together


def replayed(samples: Samples) -> tuple[list[Sample], Samples]:
    """The first samples, and all of them, to be read from the first one again.

    What was looked at is kept until it has been read again; the list is empty then.
    """
    source = samples.open()
    first = list(_first(source))
    return first, replace(samples, open=_again(samples, first, source))


def _first(source: Iterator[Sample]) -> Iterator[Sample]:
    size = 0
    for sample in islice(source, _KEPT):
        yield sample
        size += sum(array.nbytes for array in sample.feeds.values())
        if size > _BYTES:
            return


def _again(
    samples: Samples, first: list[Sample], source: Iterator[Sample]
) -> Callable[[], Iterator[Sample]]:
    begun = False

    def open_() -> Iterator[Sample]:
        nonlocal begun
        if begun:
            return samples.open()
        begun = True
        return chain(_handed_over(first), source)

    return open_


def _handed_over(kept: list[Sample]) -> Iterator[Sample]:
    while kept:
        yield kept.pop(0)
