from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from ptq_calibrator_removal_outlier import Options, ptq_calibrators
from ptq_calibrator_removal_outlier.calibrator import removed
from ptq_calibrator_removal_outlier.order import ranked_from_end
from ptq_core.api import ObservedTensor, QScheme, Range

(ENTRY,) = ptq_calibrators()
relaxed = settings(deadline=None, max_examples=50)  # no deadline: the machine may be busy
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)  # with -0.0 and denormals
TIES = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38)
FEW_VALUES = st.sampled_from([float(np.float32(one)) for one in TIES])
SAMPLE = arrays(np.float32, array_shapes(max_dims=3, max_side=20), elements=FINITE)
SAMPLES = st.lists(SAMPLE, min_size=1, max_size=6)


def calibrator(**options: Any) -> Any:
    tensor = ObservedTensor(name="t", scheme=QScheme())
    return ENTRY.factory(tensor, ENTRY.options(**options))


def observed(samples: Any, **options: Any) -> Any:
    made = calibrator(**options)
    for sample in samples:
        made.observe(sample)
    assert made.end_pass() is False
    return made


def twin(sample: NDArray[Any], fraction: float = 0.0001) -> tuple[float, float]:
    """Section 4.2 as it is written."""
    ordered, n = np.sort(sample.reshape(-1)), sample.size
    low = int(np.float32(fraction) * np.float32(n))
    high = min(int(np.float32(1 - fraction) * np.float32(n)), n - 1)
    return float(ordered[low]), float(ordered[high])


# ---------------------------------------------------------------------------- order statistics


@relaxed
@given(
    arrays(np.float32, st.integers(1, 3000), elements=FINITE | FEW_VALUES, fill=FEW_VALUES),
    st.data(),
)
def test_ranked_values_are_those_of_a_sort(values: NDArray[np.float32], data: Any) -> None:
    rank = data.draw(st.integers(0, min(40, values.size - 1)))
    ordered = np.sort(values)
    assert ranked_from_end(values, rank, "low") == ordered[rank]
    assert ranked_from_end(values, rank, "high") == ordered[-1 - rank]


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 4096, 20_011, 150_528])
@pytest.mark.parametrize("rank", [0, 1, 2, 15, 400])
def test_ranked_values_on_every_kind_of_data(size: int, rank: int) -> None:
    rank = min(rank, size - 1)
    rng = np.random.default_rng(size + rank)
    normal = rng.normal(size=size).astype(np.float32)
    relu = np.maximum(normal, 0)
    for values in (
        normal,
        relu,
        -relu,
        np.clip(3 * normal, 0, 6),  # ties at both ends
        np.sort(normal),  # all outliers side by side
        np.sort(normal)[::-1],
        np.full(size, 2.5, np.float32),
        rng.integers(0, 3, size).astype(np.float32),
    ):
        ordered = np.sort(values)
        assert ranked_from_end(values, rank, "low") == ordered[rank]
        assert ranked_from_end(values, rank, "high") == ordered[-1 - rank]


# --------------------------------------------------------------------------------- definition


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, (0, 0)),
        (9_999, (0, 0)),
        (10_000, (1, 0)),
        (20_000, (2, 1)),
        (150_528, (15, 15)),
        (802_816, (80, 80)),
    ],
)
def test_as_many_values_are_removed_as_in_the_original(
    size: int, expected: tuple[int, int]
) -> None:
    assert removed(size, Options().fraction) == expected


@relaxed
@given(st.integers(1, 2**31), st.floats(0, 0.5, exclude_max=True))
def test_something_is_always_left(size: int, fraction: float) -> None:
    below, above = removed(size, fraction)
    assert below >= 0
    assert above >= 0
    assert below + above < size


@relaxed
@given(SAMPLES, st.sampled_from([0.0, 0.0001, 0.01, 0.2]))
def test_the_range_is_the_mean_of_the_samples_quantiles(
    samples: list[NDArray[np.float32]], fraction: float
) -> None:
    lows, highs = zip(*(twin(sample, fraction) for sample in samples), strict=True)
    found = observed(samples, fraction=fraction).result()
    # fsum is correctly rounded; dividing it rounds once more
    assert found.low == pytest.approx(math.fsum(lows) / len(lows), rel=1e-15, abs=1e-300)
    assert found.high == pytest.approx(math.fsum(highs) / len(highs), rel=1e-15, abs=1e-300)
    assert found.low <= found.high


def test_large_samples_and_the_default_fraction() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(1, 16, 56, 56 + i)).astype(np.float32) for i in range(3)]
    lows, highs = zip(*map(twin, samples), strict=True)
    assert observed(samples).result() == Range(
        low=pytest.approx(math.fsum(lows) / 3, rel=1e-15),
        high=pytest.approx(math.fsum(highs) / 3, rel=1e-15),
    )


def test_without_a_fraction_it_is_the_mean_of_minima_and_maxima() -> None:
    samples = [np.array([-1.0, 4.0], np.float32), np.array([-3.0, 0.0, 2.0], np.float32)]
    assert observed(samples, fraction=0.0).result() == Range(low=-2.0, high=3.0)


# -------------------------------------------------------------------------- a streaming reducer


@relaxed
@given(SAMPLES, st.data())
def test_neither_order_nor_split_changes_a_bit(
    samples: list[NDArray[np.float32]], data: Any
) -> None:
    whole = observed(samples).result()
    mixed = data.draw(st.permutations(samples))
    cut = data.draw(st.integers(0, len(samples)))
    first, second = observed(mixed[:cut]), observed(mixed[cut:])
    first.merge(second)
    assert first.result() == whole
    assert first.note() == observed(samples).note()


def test_the_sum_is_exact() -> None:
    values = [3e38, 1e-45, -3e38]  # in doubles, the small one would be lost
    samples = [np.array([value], np.float32) for value in values]
    expected = float(np.float32(1e-45)) / 3
    assert observed(samples).result() == Range(low=expected, high=expected)


def test_views_and_read_only_arrays_are_taken() -> None:
    whole = np.random.default_rng(0).normal(size=(40, 50, 30)).astype(np.float32)
    view = whole.transpose(2, 0, 1)[::2]
    view.flags.writeable = False
    assert observed([view]).result() == observed([view.copy()]).result()


# --------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize(
    ("value", "size"), [(0.0, 20_000), (-3.5, 20_000), (2.0, 1), (-0.0, 3)], ids=str
)
def test_constant_data(value: float, size: int) -> None:
    found = observed([np.full(size, value, np.float32)] * 3).result()
    assert found == Range(low=value, high=value)


def test_a_scalar_is_a_sample_and_nothing_is_none() -> None:
    scalar, empty = np.float32(3.0).reshape(()), np.zeros((0, 4), np.float32)
    assert observed([scalar, empty]).result() == Range(low=3.0, high=3.0)


def test_without_a_value_there_is_no_range() -> None:
    with pytest.raises(ValueError, match="no value was observed"):
        calibrator().result()


@pytest.mark.parametrize("fraction", [-0.1, 0.5, 1.0, float("nan")])
def test_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(ValueError, match="expected at least 0 and less"):
        Options(fraction=fraction)


# --------------------------------------------------------------------------------------- notes


def test_it_says_where_nothing_is_removed() -> None:
    small, large = np.ones(9_999, np.float32), np.ones(10_000, np.float32)
    note = observed([small, small[:5]]).note()
    assert note is not None
    assert note.startswith(
        "nothing was removed: a fraction of 0.0001 needs 10000 values per sample"
    )
    assert observed([small, large]).note() is None
    assert observed([small], fraction=0.001).note() is None
    assert observed([small], fraction=0.0).note() is None  # as the user wants it
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
@pytest.mark.parametrize("share", [1e-6, 1e-5])
def test_outliers_cost_it_nothing(one_sided: bool, share: float) -> None:
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(10, 200_000)).astype(np.float32)
    if one_sided:
        clean = np.maximum(clean, 0)
    dirty = clean.copy()
    planted = rng.choice(clean.size, int(share * clean.size), replace=False)
    dirty.flat[planted] = 50 * (clean.flat[planted] + np.sign(clean.flat[planted] + 1e-9))
    max_min = Range(low=float(dirty.min()), high=float(dirty.max()))
    gain = sqnr_of_8_bits(clean, observed(dirty).result()) - sqnr_of_8_bits(clean, max_min)
    assert gain > 10  # dB; measured 19 to 31


def test_the_entry() -> None:
    assert ENTRY.name == "REMOVAL_OUTLIER"
    assert "RemovalOutlier" in ENTRY.aliases
    assert not ENTRY.batched  # a batch's quantiles are not the mean of its samples' quantiles
