"""KL: clip where the quantized distribution diverges least from the one that was seen.

Also called entropy calibration. One pass: the histogram needs no range beforehand.

The threshold T that is found for magnitudes gives the range [-T, T], of which only what was seen is
kept: data without negative values, as after a Relu, has all codes on [0, T] instead of half of
them on values that never occur. Nothing that was seen is lost by that, and a symmetric scheme gets
its [-T, T] back when core makes the parameters. Source: seed-semantics section 4.3 and section 15
items 24 and 25; see :mod:`ptq_calibrator_kl.threshold` for what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptq_core.api import Calibrator, CalibratorEntry, ObservedTensor, hookimpl

ptq_api_version = (1, 0)

_MOST_BINS = 4096  # the histogram that is filled while observing is hardly finer


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The keys of ``[calibrator.KL]``.

    Attributes:
        bins: of the histogram of magnitudes, 0 to the largest; no fewer than levels, at most 4096.
        levels: into which the kept bins are merged, as quantization would do; at least 2.
    """

    bins: int = 2048
    levels: int = 128

    def __post_init__(self) -> None:
        problems = []
        if not 2 <= self.bins <= _MOST_BINS:
            problems.append(f"bins = {self.bins}: expected 2 to {_MOST_BINS}")
        if not 2 <= self.levels <= max(self.bins, 2):
            problems.append(f"levels = {self.levels}: expected 2 to bins, which is {self.bins}")
        if problems:
            raise ValueError("; ".join(problems))


def _make(tensor: ObservedTensor, options: Options) -> Calibrator:
    from ptq_calibrator_kl.calibrator import KL  # numba takes a while to import

    return KL(bins=options.bins, levels=options.levels)


@hookimpl
def ptq_calibrators() -> Iterator[CalibratorEntry]:
    """Offer KL."""
    yield CalibratorEntry(
        name="KL",
        summary="least Kullback-Leibler divergence; clips rare outliers, needs much data",
        factory=_make,
        options=Options,
        aliases=("ENTROPY",),
        batched=True,
        checks_finite=True,
    )
