"""MSE: the range with which quantizing the tensor costs the least mean squared error.

It weighs what is cut off against the rounding of what is left, for the scheme that the tensor gets.
"""

from __future__ import annotations

from collections.abc import Iterator

from ptq_core.api import Calibrator, CalibratorEntry, ObservedTensor, hookimpl

ptq_api_version = (1, 0)


def _make(tensor: ObservedTensor, options: object) -> Calibrator:
    from ptq_calibrator_mse.calibrator import MSE  # numba, only when it is used

    return MSE(tensor.scheme)


@hookimpl
def ptq_calibrators() -> Iterator[CalibratorEntry]:
    """Offer MSE."""
    yield CalibratorEntry(
        name="MSE",
        summary="least squared error of quantizing; for tensors with rare large values",
        factory=_make,
        aliases=("MINMSE", "MIN_MSE"),
        batched=True,
        checks_finite=True,
    )
