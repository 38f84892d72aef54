"""PERCENTILE: the range keeps a fixed percentage of all values, those of all samples together.

It cuts off the same share everywhere, whether these values matter or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptq_core.api import Calibrator, CalibratorEntry, ObservedTensor, hookimpl

ptq_api_version = (1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much is kept.

    Attributes:
        percentile: percentage of all values that lie inside the range. Of the others, half may lie
            below it and half above; where the scheme is symmetric, it is a percentage of the
            magnitudes. 100 keeps all.
    """

    percentile: float = 99.999  # the best of five on real networks, and onnxruntime's default

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(
                f"percentile = {self.percentile!r}: expected more than 50 and at most 100, the "
                "percentage of values that lie inside the range"
            )


def _make(tensor: ObservedTensor, options: Options) -> Calibrator:
    from ptq_calibrator_percentile.calibrator import Percentile  # numba, only when it is used

    return Percentile(options.percentile, symmetric=tensor.scheme.symmetric)


@hookimpl
def ptq_calibrators() -> Iterator[CalibratorEntry]:
    """Offer PERCENTILE."""
    yield CalibratorEntry(
        name="PERCENTILE",
        summary="keeps a percentage of all values; for data with outliers",
        factory=_make,
        options=Options,
        batched=True,
        checks_finite=True,
    )
