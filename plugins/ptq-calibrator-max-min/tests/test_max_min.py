from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptq_calibrator_max_min import ptq_calibrators
from ptq_core.api import Calibrator, ObservedTensor, QScheme, Range

(ENTRY,) = ptq_calibrators()
SCHEME = QScheme()
SAMPLES = np.random.default_rng(0).normal(size=(31, 4, 5)).astype(np.float32)


def calibrator(**given: Any) -> Calibrator:
    return ENTRY.factory(ObservedTensor(name="t", scheme=SCHEME, **given), ENTRY.options())


def of(samples: Any) -> Range:
    made = calibrator()
    for sample in samples:
        made.observe(sample)
    assert made.end_pass() is False
    return made.result()


BRUTE_FORCE = Range(low=float(SAMPLES.min()), high=float(SAMPLES.max()))


def test_the_entry() -> None:
    assert ENTRY.name == "MAX_MIN"
    assert ENTRY.batched


@pytest.mark.parametrize("size", [1, 2, 7, 31])
def test_the_range_is_the_brute_force_one_however_it_is_batched(size: int) -> None:
    assert of(SAMPLES[i : i + size] for i in range(0, 31, size)) == BRUTE_FORCE


def test_the_order_does_not_matter() -> None:
    assert of(SAMPLES[::-1]) == BRUTE_FORCE


@pytest.mark.parametrize("cut", [0, 1, 15, 31])
def test_merged_calibrators_are_one_that_saw_all(cut: int) -> None:
    first, second = calibrator(), calibrator()
    for sample in SAMPLES[:cut]:
        first.observe(sample)
    for sample in SAMPLES[cut:]:
        second.observe(sample)
    first.merge(second)
    assert first.result() == BRUTE_FORCE


def test_any_shape_is_taken() -> None:
    assert of([np.float32(3.0).reshape(()), np.zeros((0, 4), np.float32)]) == Range(low=3, high=3)


def test_every_calibrator_is_its_own() -> None:
    first, second = calibrator(), calibrator()
    first.observe(np.array([5.0]))
    second.observe(np.array([-1.0]))
    assert first.result() == Range(low=5.0, high=5.0)
    assert second.result() == Range(low=-1.0, high=-1.0)


@pytest.mark.parametrize(
    ("bounds", "low", "high", "settled"),
    [
        (None, 0.0, 6.0, False),
        ((0.0, 6.0), 0.0, 6.0, True),
        ((0.0, 6.0), 0.0, 5.9, False),
        ((0.0, 6.0), 0.1, 6.0, False),
        ((0.0, float("inf")), 0.0, 1e30, False),
    ],
)
def test_it_has_settled_once_both_bounds_are_reached(
    bounds: tuple[float, float] | None, low: float, high: float, settled: bool
) -> None:
    made: Any = calibrator(bounds=bounds)
    assert not made.settled()
    made.observe(np.array([low, high]))
    assert made.settled() is settled
