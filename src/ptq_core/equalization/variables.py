"""The variables: numbered, tied to each other, or fixed at 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIXED = 0  # the variable of everything that is never rescaled


class Variables:
    """Sets of variables that have one factor (union-find)."""

    def __init__(self) -> None:
        self._parents = [FIXED]
        self._fixed = {FIXED}

    def new(self, count: int) -> NDArray[np.int64]:
        """Further variables."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def tie(self, some: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Give each variable one factor with the other at its place."""
        for pair in zip(some.flat, others.flat, strict=True):
            first, second = sorted(self._root(int(variable)) for variable in pair)
            self._parents[second] = first
            if second in self._fixed:
                self._fixed.add(first)

    def fix(self, some: NDArray[np.int64]) -> None:
        """Keep these, and what is or will be tied to them, at 1."""
        self._fixed.update(self._root(int(variable)) for variable in np.unique(some))

    def any_free(self, some: NDArray[np.int64]) -> bool:
        """Whether any of these is not fixed."""
        return any(self._root(int(variable)) not in self._fixed for variable in np.unique(some))

    def roots(self) -> NDArray[np.int64]:
        """For each variable the one that stands for its set."""
        return np.array([self._root(variable) for variable in range(len(self._parents))])

    def free(self) -> NDArray[np.bool_]:
        """Of each variable: it stands for a set that is not fixed."""
        roots = self.roots()
        fixed = np.zeros(len(roots), bool)
        fixed[roots[list(self._fixed)]] = True
        return np.asarray(~fixed & (roots == np.arange(len(roots))))

    def _root(self, variable: int) -> int:
        parents = self._parents
        while parents[variable] != variable:
            parents[variable] = parents[parents[variable]]
            variable = parents[variable]
        return variable
