"""A target's arithmetic, with its plugin to blame for what it does wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.errors import PluginError
from ptq_core.plugins import PluginRecord, blame
from ptq_core.target_types import Arithmetic


class CheckedArithmetic:
    """See :class:`~ptq_core.target_types.Arithmetic`.

    Raises:
        PluginError: the target's arithmetic fails, or gives something else than it has to.
    """

    def __init__(self, arithmetic: Arithmetic, record: PluginRecord) -> None:
        self._arithmetic, self._record = arithmetic, record

    def quantize(
        self, values: NDArray[Any], scale: float, zero_point: int, low: int, high: int, /
    ) -> NDArray[Any]:
        """Codes within [low, high]."""
        with blame(self._record, "quantizing"):
            codes = self._arithmetic.quantize(values, scale, zero_point, low, high)
        return self._codes(codes, values.shape, low, high)

    def requantize(
        self,
        accumulators: NDArray[Any],
        input_scale: float,
        weight_scale: NDArray[np.float32],
        output_scale: float,
        zero_point: int,
        low: int,
        high: int,
        /,
    ) -> NDArray[Any]:
        """Codes within [low, high]."""
        with blame(self._record, "requantizing"):
            codes = self._arithmetic.requantize(
                accumulators, input_scale, weight_scale, output_scale, zero_point, low, high
            )
        return self._codes(codes, accumulators.shape, low, high)

    def dequantize(
        self, accumulators: NDArray[Any], input_scale: float, weight_scale: NDArray[np.float32], /
    ) -> NDArray[Any]:
        """Reals."""
        with blame(self._record, "dequantizing"):
            reals = self._arithmetic.dequantize(accumulators, input_scale, weight_scale)
        found = np.asarray(reals)
        if found.shape != accumulators.shape:
            raise self._wrong(f"the shape {found.shape}, expected {accumulators.shape}")
        if found.dtype.kind != "f":
            raise self._wrong(f"the type {found.dtype}, expected floats")
        return found.astype(np.float32, copy=False)

    def _codes(
        self, codes: NDArray[Any], shape: tuple[int, ...], low: int, high: int
    ) -> NDArray[Any]:
        found = np.asarray(codes)
        if found.shape != shape:
            raise self._wrong(f"the shape {found.shape}, expected {shape}")
        if found.dtype.kind not in "iu":
            raise self._wrong(f"the type {found.dtype}, expected integers")
        if found.size and (found.min() < low or found.max() > high):
            ends = f"[{found.min()}, {found.max()}]"
            raise self._wrong(f"codes in {ends}, expected them within [{low}, {high}]")
        return found

    def _wrong(self, found: str) -> PluginError:
        return PluginError(
            f"{self._record}: its arithmetic gave {found}",
            hint=f"use --no-plugin {self._record.switch} to leave it out",
        )
