"""The few outermost values of a large array, faster than sorting or partitioning it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Values of a group: many, so that few groups are left to search; few, so that there are more
# groups than values looked for. Between 16 and 128 the speed is the same.
_GROUP = 64
_SMALLEST_GROUP = 4  # below it, groups save nothing
_GROUPS_PER_RANK = 4


def ranked_from_end(flat: NDArray[Any], rank: int, end: Literal["low", "high"]) -> Any:
    """The value with ``rank`` values outside it: 0 is the minimum (or maximum) itself.

    The same as ``np.sort(flat)[rank]``, or ``[-1 - rank]`` for the high end, ties included; 0.0 and
    -0.0 are one value. The array is read once, at the speed of a minimum: it is cut into groups,
    and where ``rank + 1`` groups reach as far out as some bound, so do as many values. What lies
    beyond that bound is in at most ``rank`` groups, and only those are looked into.

    Shapes   rank 1, more than ``rank`` values.
    """
    sign = 1 if end == "low" else -1
    size = min(_GROUP, flat.size // (_GROUPS_PER_RANK * (rank + 1)))
    if rank == 0:
        return flat.min() if end == "low" else flat.max()
    if size < _SMALLEST_GROUP:
        index = rank if end == "low" else flat.size - 1 - rank
        return np.partition(flat, index)[index]
    # A group is a column, so that the minima of all groups are taken by adding row to row.
    groups = flat[: flat.size // size * size].reshape(size, -1)
    rest = sign * flat[groups.size :]
    outermost = groups.min(axis=0) if end == "low" else -groups.max(axis=0)
    bound = np.partition(np.concatenate((outermost, rest)), rank)[rank]
    searched = sign * groups[:, outermost < bound].reshape(-1)
    beyond = np.concatenate((searched[searched < bound], rest[rest < bound]))
    return sign * (np.partition(beyond, rank)[rank] if beyond.size > rank else bound)
