"""How strongly to smooth: what is found, against the same formulas in NumPy."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq_core.arithmetic import dequantize, quantize, range_parameters
from ptq_core.smoothing import Activation, Rounding, Smoothing, find_smoothing
from ptq_core.types import QScheme, Range
from tests import tiny_models as tiny
from tests.dynamic_checks import by_rows, rounded_weights, whole
from tests.tiny_models import normal

UINT8 = QScheme(dtype="uint8")
INT8 = QScheme(dtype="int8", symmetric=True, narrow_range=True)
ROUNDINGS = get_args(Rounding)
WEIGHT = normal(32, 24, seed=3)

Real = NDArray[np.float32]


def seen(samples: list[Real], rows: int = 16) -> Activation:
    activation = Activation(rows=rows)
    for sample in samples:
        activation.observe(sample)
    return activation


def planted(channel: int | None = 3, factor: float = 60.0, count: int = 12) -> list[Real]:
    """Samples of 20 rows of 32 channels, one of which is many times the others."""
    samples = list(tiny.rng(5).standard_normal((count, 20, 32)).astype(np.float32))
    if channel is not None:
        for sample in samples:
            sample[:, channel] *= factor
    return samples


def search(
    samples: list[Real],
    rounding: Rounding,
    *weights: Real,
    rows: int = 16,
    per_channel: bool = True,
    folds: bool = True,
    clips: bool = False,
) -> Smoothing | None:
    return find_smoothing(
        seen(samples, rows), weights or (WEIGHT,), rounding, UINT8, INT8,
        per_channel=per_channel, folds=folds, clips=clips,
    )  # fmt: skip


def rounded(sample: Real, rounding: Rounding, measured: Real) -> NDArray[Any]:
    """An activation as integers give it back."""
    if rounding == "static":
        whole_range = Range(low=float(measured.min()), high=float(measured.max()))
        params = range_parameters(whole_range, UINT8)
        return dequantize(quantize(sample, params), params)
    return by_rows(sample) if rounding == "token" else whole(sample)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_gain_is_that_of_a_calculation_in_numpy(rounding: Rounding, per_channel: bool) -> None:
    """A divisor from three of four samples, on the others; every row counts as much."""
    samples = planted()
    found = search(samples, rounding, rows=64, per_channel=per_channel)
    assert found is not None
    measured = np.concatenate([one for i, one in enumerate(samples) if i % 4 != 3])
    judged = samples[3::4]
    energy = np.square(np.concatenate(judged) @ WEIGHT).sum(1).mean()
    peaks = np.abs(measured).max(axis=0).astype(np.float64)
    powers = peaks**found.strength / np.abs(WEIGHT).max(axis=1) ** (1 - found.strength)

    def error(by: NDArray[np.float64]) -> float:
        scaled = (WEIGHT * by[:, None]).astype(np.float32)
        weight = rounded_weights(scaled, 1 if per_channel else None)
        total = 0.0
        for sample in judged:
            wanted = sample.astype(np.float64) @ WEIGHT
            given = rounded(
                (sample / by).astype(np.float32), rounding, (measured / by).astype(np.float32)
            )
            noise = np.square(given @ weight - wanted).sum(1)
            total += float((noise / (np.square(wanted).sum(1) + 1e-3 * energy)).sum())
        return total

    gain = 10 * np.log10(error(np.ones(32)) / error(powers / np.exp(np.log(powers).mean())))
    assert found.gain == pytest.approx(gain, abs=0.05)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_planted_outlier_moves_into_the_weights(rounding: Rounding) -> None:
    found = search(planted(), rounding)
    assert found is not None
    assert found.divisor[3] > 2 * np.delete(found.divisor, 3).max()
    assert found.gain > 6.0
    assert np.log(found.divisor).mean() == pytest.approx(0.0, abs=1e-9)


def test_the_form_of_the_divisor() -> None:
    """Strength s: max|x|**s / max|w|**(1 - s) of each channel, over all layers of the group."""
    samples, other = planted(), 0.5 * normal(32, 8, seed=4)
    found = search(samples, "static", WEIGHT, other)
    assert found is not None
    peaks = np.abs(np.concatenate(samples)).max(axis=0).astype(np.float64)
    weights = np.maximum(np.abs(WEIGHT).max(axis=1), np.abs(other).max(axis=1)).astype(np.float64)
    wanted = peaks**found.strength / weights ** (1 - found.strength)
    np.testing.assert_allclose(found.divisor, wanted / np.exp(np.log(wanted).mean()), rtol=1e-6)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_equal_channels_are_left_alone_where_it_takes_a_node(rounding: Rounding) -> None:
    """Channels alike, and rows of weights that reach equally far."""
    weight = normal(32, 240, seed=3)
    weight /= np.abs(weight).max(axis=1, keepdims=True)
    assert search(planted(None), rounding, weight, folds=False) is None


def test_what_only_the_first_samples_show_is_not_believed() -> None:
    """Channels are tiny in three of four samples, and large in the one that is held back."""
    samples = planted(None)
    for index, sample in enumerate(samples):
        sample[:, :16] *= 1.0 if index % 4 == 3 else 1e-3
    assert search(samples, "static") is None


def test_a_method_that_clips_is_harder_to_beat() -> None:
    """One value of one sample is far from all others: a narrower range helps, too."""
    samples = planted(None)
    samples[0][0, 0] = 240.0
    plain, clipped = (search(samples, "static", clips=clips) for clips in (False, True))
    assert plain is not None
    assert clipped is not None
    assert clipped.gain < plain.gain - 3.0


def test_channels_that_are_zero_or_unread_are_left_alone() -> None:
    samples, weight = planted(), WEIGHT.copy()
    for sample in samples:
        sample[:, 7] = 0.0
    weight[9] = 0.0
    found = search(samples, "static", weight)
    assert found is not None
    assert found.divisor[7] == found.divisor[9] == 1.0
    used = np.delete(found.divisor, [7, 9])
    assert np.log(used).mean() == pytest.approx(0.0, abs=1e-9)


NOTHING: dict[str, list[Real]] = {
    "one sample": planted()[:1],
    "no rows": [np.zeros((0, 32), np.float32)] * 4,
    "zero": [np.zeros((4, 32), np.float32)] * 4,
    "nan": [np.full((4, 32), np.nan, np.float32)] * 4,
    "infinite": [*planted()[:3], np.full((4, 32), np.inf, np.float32)],
    "overflow": [np.full((4, 32), 3e38, np.float32)] * 4,
    "none": [],
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nothing_is_found_where_nothing_is_known(rounding: Rounding, name: str) -> None:
    assert search(NOTHING[name], rounding) is None


def test_the_search_is_deterministic() -> None:
    first, second = (search(planted(), "static") for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.divisor.tobytes() == second.divisor.tobytes()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(0, 6), rounding=st.sampled_from(ROUNDINGS))
def test_divisors_are_sane(seed: int, spread: float, rounding: Rounding) -> None:
    draw = tiny.rng(seed)
    scales = 10.0 ** draw.uniform(-spread, spread, 32)
    samples = [(draw.standard_normal((5, 32)) * scales).astype(np.float32) for _ in range(6)]
    found = search(samples, rounding)
    if found is None:
        return
    assert np.isfinite(found.divisor).all()
    assert 1e-4 <= found.divisor.min() <= found.divisor.max() <= 1e4
    assert found.gain > 0
    if found.divisor.min() > 1e-4 and found.divisor.max() < 1e4:
        assert np.log(found.divisor).mean() == pytest.approx(0.0, abs=1e-6)


def test_rows_with_the_largest_values_are_kept() -> None:
    values = tiny.rng(1).standard_normal((200, 8)).astype(np.float32)
    values[57, 2] = -90.0
    values[101, 5] = 70.0
    activation = seen([values.reshape(2, 100, 8)], rows=4)
    (kept,) = activation.kept
    assert len(kept) <= 4
    assert {-90.0, 70.0} <= set(kept.ravel().tolist())
    np.testing.assert_array_equal(activation.low[0], values.min(axis=0))
    np.testing.assert_array_equal(activation.high[0], values.max(axis=0))
