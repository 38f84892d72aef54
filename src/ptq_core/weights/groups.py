"""Which weights share a scale, in a layer, a channel or a group of inputs; and blocks of those."""

from __future__ import annotations

import math
from collections.abc import Iterator

Block = tuple[int | slice, ...]

_PIECE = 1 << 17  # elements worked on at a time: half a megabyte in float32 stays in the cache


def group_shape(
    shape: tuple[int, ...], axes: tuple[int, ...], size: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How a weight is reshaped so that ``size`` consecutive weights along its inputs share a scale.

    Conv [O, I, kh, kw] with axes (0,): [O, n/size, size]; MatMul [K, N] with axes (1,):
    [K/size, size, N]; ConvTranspose [I, O, kh, kw] with axes (1,): [I/size, size, O, kh, kw].

    Returns:
        The new shape and the axes of it that keep a scale each; None where the inputs cannot be
        divided into groups of that size, or would be one group: then it is one scale per channel.
    """
    kept = tuple(sorted(axes))
    leading = kept == tuple(range(len(kept)))
    if leading:
        channels, inputs = shape[: len(kept)], math.prod(shape[len(kept) :])
        grouped = (*channels, inputs // size, size)
        grouped_axes = tuple(range(len(kept) + 1))
    elif kept == (len(shape) - 1,):
        inputs = math.prod(shape[:-1])
        grouped, grouped_axes = (inputs // size, size, shape[-1]), (0, 2)
    elif 0 not in kept:
        inputs = shape[0]
        grouped = (inputs // size, size, *shape[1:])
        grouped_axes = (0, *(axis + 1 for axis in kept))
    else:
        return None
    return None if inputs % size or inputs <= size else (grouped, grouped_axes)


def channel_blocks(kept: tuple[int, ...], inputs: int) -> Iterator[Block]:
    """Indices that cut an array of shape ``(*kept, ...)`` into blocks of a bounded size.

    Each is numbers and then at most one slice, so that what it selects are whole channels of
    ``inputs`` elements.
    """
    if not kept:
        yield ()
        return
    level = next(
        (i for i in range(len(kept)) if math.prod(kept[i + 1 :]) * inputs <= _PIECE),
        len(kept) - 1,
    )
    step = max(1, _PIECE // max(1, math.prod(kept[level + 1 :]) * inputs))
    for outer in _indices(kept[:level]):
        for start in range(0, kept[level], step):
            yield (*outer, slice(start, start + step))


def pieces(rows: int, inputs: int) -> Iterator[slice]:
    """Slices along the inputs of a block: one, unless a single channel is larger than a block."""
    step = max(1, _PIECE // max(1, rows))
    for start in range(0, inputs, step):
        yield slice(start, start + step)


def _indices(dimensions: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if not dimensions:
        yield ()
        return
    for index in range(dimensions[0]):
        for rest in _indices(dimensions[1:]):
            yield (index, *rest)
