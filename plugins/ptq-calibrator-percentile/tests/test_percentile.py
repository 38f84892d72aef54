from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from ptq_calibrator_percentile import Options, ptq_calibrators
from ptq_core.api import ObservedTensor, QScheme, Range

(ENTRY,) = ptq_calibrators()
relaxed = settings(deadline=None, max_examples=50)  # no deadline: the first loads the kernels
ASYMMETRIC, SYMMETRIC = QScheme(), QScheme(dtype="int8", symmetric=True)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)  # with -0.0 and denormals
SAMPLE = arrays(np.float32, array_shapes(max_dims=3, max_side=20), elements=FINITE)
SAMPLES = st.lists(SAMPLE, min_size=1, max_size=6)
SCHEMES = st.sampled_from([ASYMMETRIC, SYMMETRIC])


def calibrator(scheme: QScheme = ASYMMETRIC, **options: Any) -> Any:
    return ENTRY.factory(ObservedTensor(name="t", scheme=scheme), ENTRY.options(**options))


def observed(samples: Any, scheme: QScheme = ASYMMETRIC, **options: Any) -> Any:
    made = calibrator(scheme, **options)
    for sample in samples:
        made.observe(sample)
    assert made.end_pass() is False
    return made


def near(found: float, value: float, largest: float) -> bool:
    """Whether both are in one bin of the histogram, or almost."""
    return abs(found - value) <= largest / 4096 + abs(value) / 32


# --------------------------------------------------------------------------------- definition


@relaxed
@given(
    arrays(np.float32, st.integers(1, 2000), elements=FINITE, fill=st.sampled_from([0.0, 1.0])),
    st.sampled_from([60.0, 90.0, 99.0, 99.9]),
)
def test_so_many_values_lie_outside(values: NDArray[np.float32], percentile: float) -> None:
    ordered, largest = np.sort(values).astype(float), float(np.abs(values).max())
    outside = int(round(values.size * (100 - percentile) / 2, 6) // 100)
    found = observed([values], percentile=percentile).result()
    assert found.low <= found.high
    assert near(found.low, ordered[outside], largest)
    assert near(found.high, ordered[-1 - outside], largest)
    assert ordered[0] <= found.low
    assert found.high <= ordered[-1]


@relaxed
@given(
    arrays(np.float32, st.integers(1, 2000), elements=FINITE, fill=st.sampled_from([0.0, -1.0])),
    st.sampled_from([60.0, 90.0, 99.0, 100.0]),
)
def test_symmetric_schemes_get_a_quantile_of_the_magnitudes(
    values: NDArray[np.float32], percentile: float
) -> None:
    ordered = np.sort(np.abs(values)).astype(float)
    outside = int(round(values.size * (100 - percentile), 6) // 100)
    found = observed([values], SYMMETRIC, percentile=percentile).result()
    assert found.low == -found.high
    assert near(found.high, ordered[-1 - outside], ordered[-1])


def test_quantiles_of_a_uniform_distribution() -> None:
    values = np.linspace(-1, 3, 100_001, dtype=np.float32)
    found = observed([values], percentile=90).result()
    assert found.low == pytest.approx(-0.8, abs=1e-4)  # a hundredth of a bin of 8 bits
    assert found.high == pytest.approx(2.8, abs=1e-4)
    found = observed([values], SYMMETRIC, percentile=90).result()
    assert found.high == pytest.approx(2.6, abs=1e-4)  # |x| has 9/10 of the values below


@relaxed
@given(SAMPLES)
def test_all_of_the_values_are_from_minimum_to_maximum(samples: list[NDArray[Any]]) -> None:
    low, high = (min(s.min() for s in samples), max(s.max() for s in samples))
    assert observed(samples, percentile=100).result() == Range(low=float(low), high=float(high))


def test_a_bound_that_many_values_reach_is_kept_exactly() -> None:
    values = np.clip(np.random.default_rng(0).normal(3, 2, 300_000), 0, 6).astype(np.float32)
    assert observed([values], percentile=99).result() == Range(low=0.0, high=6.0)


# -------------------------------------------------------------------------- a streaming reducer


@relaxed
@given(SAMPLES, SCHEMES, st.data())
def test_neither_order_nor_split_nor_batches_change_a_bit(
    samples: list[NDArray[np.float32]], scheme: QScheme, data: Any
) -> None:
    whole = observed(samples, scheme, percentile=80)
    mixed = data.draw(st.permutations(samples))
    cut = data.draw(st.integers(0, len(samples)))
    first, second = (observed(part, scheme, percentile=80) for part in (mixed[:cut], mixed[cut:]))
    first.merge(second)
    assert first.result() == whole.result()
    assert first.note() == whole.note()
    batch = np.concatenate([sample.reshape(-1) for sample in samples])
    assert observed([batch], scheme, percentile=80).result() == whole.result()


# --------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize(
    ("value", "size"), [(0.0, 300_000), (-0.0, 3), (-3.5, 300_000), (2.0, 1)], ids=str
)
def test_constant_data(value: float, size: int) -> None:
    values = np.full(size, value, np.float32)
    found = observed([values] * 2).result()
    assert found == Range(low=value, high=value)
    assert np.copysign(1.0, found.low) == (-1.0 if value < 0 else 1.0)  # no -0.0 in reports
    bound = abs(value)
    assert observed([values] * 2, SYMMETRIC).result() == Range(low=-bound, high=bound)


def test_negative_data() -> None:
    values = -np.linspace(1, 2, 1001, dtype=np.float32)
    found = observed([values], percentile=90).result()
    assert found.low == pytest.approx(-1.95, abs=2e-3)
    assert found.high == pytest.approx(-1.05, abs=2e-3)


def test_a_scalar_and_an_empty_array_are_taken() -> None:
    scalar, empty = np.float32(3.0).reshape(()), np.zeros((0, 4), np.float32)
    assert observed([scalar, empty]).result() == Range(low=3.0, high=3.0)


@pytest.mark.parametrize("scheme", [ASYMMETRIC, SYMMETRIC])
def test_without_a_value_there_is_no_range(scheme: QScheme) -> None:
    with pytest.raises(ValueError, match="no value was observed"):
        calibrator(scheme).result()


@pytest.mark.parametrize("percentile", [-1.0, 50.0, 100.1, float("nan")])
def test_a_percentile_that_is_none(percentile: float) -> None:
    with pytest.raises(ValueError, match="expected more than 50 and at most 100"):
        Options(percentile=percentile)


# --------------------------------------------------------------------------------------- notes


def test_it_says_where_nothing_is_left_out() -> None:
    values = np.linspace(0, 1, 199_999, dtype=np.float32)
    made = observed([values])
    assert "a percentile of 99.999 needs 200000 values" in made.note()
    assert made.result() == Range(low=0.0, high=1.0)
    made.observe(np.array([5.0], np.float32))
    assert made.note() is None
    assert made.result().high == pytest.approx(1.0, rel=1e-3)  # a bin
    assert "needs 100000 values" in observed([values[:500]], SYMMETRIC).note()
    assert observed([values[:500]], percentile=100).note() is None  # as the user wants it
    assert calibrator().note() is None


# ------------------------------------------------------------------------------ why it is there


def sqnr_of_8_bits(clean: NDArray[Any], found: Range) -> float:
    """dB of clean data after 8-bit codes over the range."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(clean / scale + zero), 0, 255)
    return float(10 * np.log10((clean**2).sum() / ((clean - (codes - zero) * scale) ** 2).sum()))


@pytest.mark.parametrize("one_sided", [True, False], ids=["relu", "normal"])
@pytest.mark.parametrize(("share", "percentile"), [(1e-6, 99.999), (1e-5, 99.99)])
def test_outliers_cost_it_nothing(one_sided: bool, share: float, percentile: float) -> None:
    rng = np.random.default_rng(1)
    clean = rng.normal(size=2_000_000).astype(np.float32)
    if one_sided:
        clean = np.maximum(clean, 0)
    dirty = clean.copy()
    planted = rng.choice(clean.size, int(share * clean.size), replace=False)
    dirty[planted] = 50 * (clean[planted] + np.sign(clean[planted] + 1e-9))
    max_min = Range(low=float(dirty.min()), high=float(dirty.max()))
    found = observed([dirty], percentile=percentile).result()
    gain = sqnr_of_8_bits(clean, found) - sqnr_of_8_bits(clean, max_min)
    assert gain > 10  # dB; measured 19 to 31


# ----------------------------------------------------------------------------------- the entry


def test_the_entry() -> None:
    assert ENTRY.name == "PERCENTILE"
    assert ENTRY.batched
    assert Options().percentile == 99.999


def test_offering_it_imports_no_numba() -> None:
    code = "import sys, ptq_calibrator_percentile as p; list(p.ptq_calibrators())"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'numba' not in sys.modules"], check=True)
