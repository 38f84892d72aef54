"""What is said of a weight that became integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away, sqnr
from ptq_core.jobs.report import StoredWeight
from ptq_core.weights.entropy import entropy
from ptq_core.weights.quantized import QuantizedWeight


def stored_weight(
    tensor: str,
    readers: tuple[str, ...],
    array: NDArray[Any],
    weight: QuantizedWeight,
    *,
    encoding: str,
    size: int,
    step: float | None = None,
) -> StoredWeight:
    """The record of a weight.

    Args:
        tensor: its name.
        readers: the nodes that read it.
        array: as it was.
        weight: as it is.
        encoding: how it is stored.
        size: bytes that it takes.
        step: of mixed bits.
    """
    low, high = -(1 << (weight.bits - 1)), (1 << (weight.bits - 1)) - 1
    scale, offset = weight.scale.astype(np.float64), weight.offset.astype(np.float64)
    zero_point = np.clip(round_half_away(-offset / scale), low, high)
    return StoredWeight(
        tensor=tensor,
        readers=readers,
        shape=array.shape,
        bits=weight.bits,
        encoding=encoding,
        bytes_before=array.nbytes,
        bytes_after=size,
        entropy=entropy(weight.codes),
        sqnr=sqnr(array, weight.dequantize()),
        scale=weight.scale,
        offset=weight.offset,
        zero_point=zero_point.astype(np.int64),
        variance=weight.variance,
        mean=offset + zero_point * scale,
        input_scale=weight.input_scale,
        step=step,
    )
