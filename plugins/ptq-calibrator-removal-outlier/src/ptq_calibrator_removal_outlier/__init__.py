"""REMOVAL_OUTLIER: each sample without its outermost values; the range is the samples' mean.

In each sample the outermost ``fraction`` of the values at either end does not count; the range goes
from the mean over the samples of what is then the smallest value to that of the largest. Source:
seed-semantics section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptq_core.api import Calibrator, CalibratorEntry, ObservedTensor, hookimpl

ptq_api_version = (1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much is left out.

    Attributes:
        fraction: of a sample's values, at either end; 0 leaves nothing out.
    """

    fraction: float = 0.0001

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 0.5:
            raise ValueError(
                f"fraction = {self.fraction!r}: expected at least 0 and less than 0.5, the share "
                "of a sample's values that is left out at either end"
            )


def _make(tensor: ObservedTensor, options: Options) -> Calibrator:
    from ptq_calibrator_removal_outlier.calibrator import RemovalOutlier  # imports numpy

    return RemovalOutlier(options.fraction)


@hookimpl
def ptq_calibrators() -> Iterator[CalibratorEntry]:
    """Offer REMOVAL_OUTLIER."""
    yield CalibratorEntry(
        name="REMOVAL_OUTLIER",
        summary="mean of the samples' ranges, each without its outermost values",
        factory=_make,
        options=Options,
        aliases=("RemovalOutlier",),
    )
