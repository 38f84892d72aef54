"""What equalization has to know of activations: a few numbers for each channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A tensor to look at.

    Attributes:
        axis: where its channels are.
        bounds: of the Clip that makes it, None where there is none.
    """

    axis: int
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelStatistics:
    """A tensor's channels over all samples; vectors of one length.

    Attributes:
        low: smallest value.
        high: largest value.
        square: mean of the squares.
        clipped: share of the values that lie on a bound of the Clip, other than 0.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    square: NDArray[np.float64]
    clipped: NDArray[np.float64]


def observe(
    tensors: Mapping[str, Watched], runs: Iterable[Mapping[str, NDArray[Any]]]
) -> dict[str, ChannelStatistics]:
    """Statistics of the tensors over the runs.

    Args:
        tensors: what to look at, by name.
        runs: for each run of the float model the watched tensors' values, inputs included. A few
            dozen samples are enough.
    """
    found: dict[str, ChannelStatistics] = {}
    for count, values in enumerate(runs, 1):
        for name, one in tensors.items():
            new = _of_one_run(values[name], one)
            found[name] = new if count == 1 else _together(found[name], new, 1.0 / count)
    return found


def _of_one_run(values: NDArray[Any], tensor: Watched) -> ChannelStatistics:
    rows = np.moveaxis(values, tensor.axis, 0)
    rows = rows.reshape(len(rows), -1)
    low, high = tensor.bounds or (0.0, 0.0)
    least, largest = rows.min(axis=1), rows.max(axis=1)
    clipped = np.zeros(len(rows))
    for bound, reached in ((low, least <= low), (high, largest >= high)):
        if bound != 0.0:  # channels that do not reach it need no look at every value
            clipped[reached] += (rows[reached] == bound).mean(axis=1)
    return ChannelStatistics(
        low=least.astype(np.float64),
        high=largest.astype(np.float64),
        square=np.einsum("ij,ij->i", rows, rows).astype(np.float64) / rows.shape[1],
        clipped=clipped,
    )


def _together(old: ChannelStatistics, new: ChannelStatistics, share: float) -> ChannelStatistics:
    return ChannelStatistics(
        low=np.minimum(old.low, new.low),
        high=np.maximum(old.high, new.high),
        square=old.square + share * (new.square - old.square),
        clipped=old.clipped + share * (new.clipped - old.clipped),
    )
