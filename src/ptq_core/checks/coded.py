"""Codes with their scale and zero point, as the rules of ``ptq check`` look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Role = Literal["activation", "weight", "bias", "operand"]

_SYMMETRIC_MIDDLE = {"uint8": 128, "uint16": 32768, "uint4": 8, "uint2": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Coded:
    """Codes of a tensor with their parameters, as one node reads or makes them.

    Attributes:
        node: the node.
        tensor: the name of the codes.
        role: what they are of; ``operand`` is a constant that is computed with, as in Add.
        dtype: type of the codes, ``int8``; "" where it cannot be told.
        has_zero_point: there is an input for it.
        scale: as float64; None where it is no constant.
        scale_type: the type that it is stored in.
        zero_point: as float64; None where it is no constant; 0 where it is left out.
        axis: of the scales, where there are several.
    """

    node: ir.Node
    tensor: str
    role: Role
    dtype: str
    has_zero_point: bool
    scale: NDArray[np.float64] | None
    scale_type: str
    zero_point: NDArray[np.float64] | None
    axis: int

    @property
    def middle(self) -> int:
        """The zero point of a symmetric scheme of this type."""
        return _SYMMETRIC_MIDDLE.get(self.dtype, 0)

    @property
    def per_axis(self) -> bool:
        """Whether there are several scales, for the entries along an axis or for blocks."""
        return self.scale is not None and self.scale.size > 1

    @property
    def alike(self) -> bool:
        """Whether all the scales and all the zero points are the same number."""
        both = (self.scale, self.zero_point)
        return all(one is None or bool((one == one.flat[0]).all()) for one in both)

    @property
    def bits(self) -> int:
        """Width of the codes; 0 where they are no integers or of an unknown type."""
        width = self.dtype.removeprefix("u").removeprefix("int")
        return int(width) if width.isdigit() else 0

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real number that per-tensor codes stand for, as float32.

        As onnxruntime computes them where it compares them with an activation's bounds.
        """
        if self.scale is None or self.zero_point is None or not self.bits:
            return 0.0, 0.0
        lowest = 0 if self.dtype.startswith("u") else -(1 << (self.bits - 1))
        scale, middle = np.float32(self.scale.flat[0]), float(self.zero_point.flat[0])
        codes = (lowest, lowest + (1 << self.bits) - 1)
        low, high = (float(scale * np.float32(code - middle)) for code in codes)
        return low, high

    def same_as(self, other: Coded) -> bool:
        """Whether both mean the same by the same codes; a vector of equal entries is one number."""
        if self.dtype and other.dtype and self.dtype != other.dtype:
            return False
        if self.per_axis and other.per_axis and not self.alike and self._is_along_another(other):
            return False
        for one, two in ((self.scale, other.scale), (self.zero_point, other.zero_point)):
            if one is None or two is None:
                continue
            if 1 not in (one.size, two.size) and one.shape != two.shape:
                return False
            if not (one.reshape(-1) == two.reshape(-1)).all():
                return False
        return True

    def _is_along_another(self, other: Coded) -> bool:
        """Whether the axes differ for sure: -1 may be any."""
        return self.axis != other.axis and (self.axis < 0) == (other.axis < 0)

    def __str__(self) -> str:
        axis = f", axis {self.axis}" if self.per_axis else ""
        dtype = self.dtype or "unknown"
        return f"{_shown(self.scale)} and {_shown(self.zero_point)} ({dtype}{axis})"


def unlike(array: NDArray[np.float64], wrong: NDArray[np.bool_], name: str) -> str:
    """What some of the scales or zero points are, with one of them for example."""
    example = f"{array[wrong].flat[0]:g}"
    if array.size == 1:
        return f"the {name} is {example}"
    return f"{int(wrong.sum())} of {array.size} {name}s are like {example}"


def _shown(array: NDArray[Any] | None) -> str:
    if array is None:
        return "one that is not constant"
    flat = array.reshape(-1)
    if (flat == flat[0]).all():
        return f"{flat[0]:.9g}" if array.ndim == 0 else f"{flat.size} times {flat[0]:.9g}"
    return f"{flat.size} numbers from {flat.min():.6g} to {flat.max():.6g}"
