"""Samples that the caller has in memory or makes on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np

from ptq_core.errors import DataError, did_you_mean
from ptq_core.samples.sample import Feeds, Sample, Samples, check_array
from ptq_core.types import ModelInput


def samples_from_arrays(data: Iterable[Any], inputs: Sequence[ModelInput]) -> Samples:
    """Samples from any iterable of arrays (one input) or dicts of arrays (by input name).

    An element is one sample or a batch of them, with the batch axis; where the model's batch axis
    is 1 or open and the element lacks it, it is added. An element that is a tuple or list, as data
    loaders give (picture, label), contributes its first part. Tensors of other libraries are taken
    through ``numpy.asarray``.
    """
    used = iter(data) is data  # an iterator can be read only once

    def read() -> Iterator[Sample]:
        for index, element in enumerate(data):
            yield Sample(name=f"sample {index}", feeds=_feeds(element, inputs, index))

    count = len(data) if isinstance(data, Sized) else None
    samples = Samples(open=read, count=count)
    if used:
        samples.open = _once(read)
    return samples


def _once(read: Callable[[], Iterator[Sample]]) -> Callable[[], Iterator[Sample]]:
    opened = False

    def guarded() -> Iterator[Sample]:
        nonlocal opened
        if opened:
            raise DataError(
                "the calibrator needs a second pass, and the data can be read only once",
                hint="give a list, or an object whose __iter__ starts again",
            )
        opened = True
        return read()

    return guarded


def _feeds(element: Any, inputs: Sequence[ModelInput], index: int) -> Feeds:
    where = f"sample {index}"
    if isinstance(element, list | tuple) and element and not np.isscalar(element[0]):
        element = element[0]
    if not isinstance(element, Mapping):
        if len(inputs) != 1:
            names = ", ".join(item.name for item in inputs)
            raise DataError(
                f"{where} is one array, the model has {len(inputs)} inputs",
                hint=f"give dicts with the keys {names}",
            )
        element = {inputs[0].name: element}
    unknown = [str(name) for name in element if name not in {item.name for item in inputs}]
    missing = [item.name for item in inputs if item.name not in element]
    if unknown or missing:
        known = [item.name for item in inputs]
        raise DataError(
            f"{where} has {', '.join(map(str, element)) or 'nothing'}, "
            f"the model's inputs are {', '.join(known)}",
            hint=did_you_mean(unknown[0], known) if unknown else "",
        )
    feeds: Feeds = {}
    for item in inputs:
        array = np.asarray(element[item.name])
        one_or_open = bool(item.shape) and (
            item.shape[0] == 1 or not isinstance(item.shape[0], int)
        )
        if one_or_open and array.ndim == len(item.shape) - 1:
            array = array[None]
        feeds[item.name] = check_array(array, item, where)
    return feeds
