from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ptq_histogram
from ptq_histogram import FloatHistogram, kernels

Floats = NDArray[np.float32]

relaxed = settings(
    deadline=None, max_examples=60
)  # no deadline: the first example compiles or loads the kernels

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# of one tensor: neighbouring octaves more often than those of all float32 numbers
NEAR = st.one_of(
    st.floats(-8.0, 8.0, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 6.0, 2.0**-24, -(2.0**-30)]),
)


def arrays(elements: Any) -> Any:
    return hnp.arrays(np.float32, st.integers(0, 60), elements=elements)


ANY = st.one_of(arrays(FINITE), arrays(NEAR))


def of(pieces: Iterable[Any]) -> FloatHistogram:
    made = FloatHistogram()
    for piece in pieces:
        made.observe(piece)
    return made


def seen(histogram: FloatHistogram) -> tuple[Any, ...]:
    """All that can be seen of a histogram, for comparing bit for bit; magnitudes follow from it."""
    edges, counts = histogram.bins()
    return (
        edges.tobytes(),
        counts.tobytes(),
        (histogram.count, histogram.zeros, histogram.low, histogram.high),
    )


def dyadic_edges(largest: float) -> NDArray[np.float64]:
    """Lower edges of the bins of magnitudes, octave by octave, as the module's text has them."""
    top = max(math.floor(math.log2(largest)), kernels.LOWEST_TOP - 127)
    if 2.0 ** (top + 1) <= largest:  # log2 rounds
        top += 1
    edges = [np.zeros(1)]
    for octave in range(top - kernels.OCTAVES + 1, top + 1):
        bins = max(2**kernels.TOP_BITS >> (top - octave), 2**kernels.LOW_BITS)
        edges.append(2.0**octave * (1 + np.arange(bins) / bins))
    return np.concatenate(edges)


@settings(max_examples=150, deadline=None)
@given(ANY.filter(lambda values: np.any(values != 0)))
def test_the_kernel_counts_as_its_numpy_twin(values: Floats) -> None:
    magnitudes = np.abs(values.astype(np.float64))
    edges = dyadic_edges(magnitudes.max())
    histogram = of([values])
    totals = histogram._totals()
    for sign, chosen in enumerate((values > 0, values < 0)):
        place = np.searchsorted(edges, magnitudes[chosen], side="right") - 1
        expected = np.bincount(place, minlength=len(edges))
        np.testing.assert_array_equal(totals[sign, kernels.SMALLER :], expected)
    assert histogram.zeros == np.count_nonzero(values == 0)


def test_bins_have_one_width_down_to_a_fiftieth_of_the_largest_magnitude() -> None:
    for largest in (1.0, 1.5, 1.999, 6.0):
        edges = dyadic_edges(largest)
        upper = edges[edges >= largest / 50]
        widths = np.diff(upper)
        assert widths.max() == widths.min()
        assert largest / 8192 <= widths.max() <= largest / 4096


@relaxed
@given(ANY)
def test_each_bin_holds_what_lies_between_its_edges(values: Floats) -> None:
    histogram = of([values])
    edges, counts = histogram.bins()
    assert counts.sum() == histogram.count == values.size
    if not values.size:
        assert edges.size == 0
        assert (histogram.low, histogram.high) == (math.inf, -math.inf)
        return
    assert len(edges) == len(counts) + 1
    assert (np.diff(edges) >= 0).all()
    assert (edges[0], edges[-1]) == (histogram.low, histogram.high) == (values.min(), values.max())
    assert not np.any((counts[1:] == 0) & (counts[:-1] == 0))
    for bin_, found in enumerate(counts):
        left, right = edges[bin_ : bin_ + 2]
        if left == right:
            inside = values == left
        elif left >= 0:
            last = bin_ == len(counts) - 1
            inside = (values > 0) & (values >= left) & ((values < right) | last)
        elif right <= 0:
            inside = (values < 0) & (values <= right) & ((values > left) | (bin_ == 0))
        else:  # only an empty bin reaches over zero
            inside = np.zeros(1)
        assert np.count_nonzero(inside) == found


@relaxed
@given(st.data(), ANY)
def test_order_and_split_do_not_matter(data: st.DataObject, values: Floats) -> None:
    order = data.draw(st.permutations(range(values.size)))
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), max_size=4)))
    shuffled = values[np.array(order, int)]
    assert seen(of(np.split(shuffled, cuts))) == seen(of([values]))


@relaxed
@given(st.lists(ANY, min_size=1, max_size=4), st.integers(0, 4))
def test_merged_histograms_are_one_that_saw_all(pieces: list[Floats], cut: int) -> None:
    first, second = of(pieces[:cut]), of(pieces[cut:])
    before = seen(second)
    first.merge(second)
    assert seen(first) == seen(of(pieces))
    assert seen(second) == before
    first.observe(pieces[0])  # and it goes on counting
    assert seen(first) == seen(of([*pieces, pieces[0]]))


@relaxed
@given(st.lists(arrays(NEAR), min_size=1, max_size=5))
def test_counters_are_folded_before_they_overflow(pieces: list[Floats]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptq_histogram, "_FULL", 31)
        patch.setattr(ptq_histogram, "_PIECE", 15)
        small = of(pieces)
        assert small._counted <= 31
        merged = of(pieces[:1])
        merged.merge(of(pieces[1:]))
    assert seen(small) == seen(merged) == seen(of(pieces))


def test_a_counter_of_more_than_32_bits() -> None:
    histogram = of([np.full(1000, 3.0, np.float32), np.zeros(24, np.float32)])
    for _ in range(30):
        histogram.merge(histogram)
    assert (histogram.count, histogram.zeros) == (1024 << 30, 24 << 30)
    histogram.observe(np.full(5, 3.0, np.float32))
    histogram.observe(np.full(2, 300.0, np.float32))
    edges, counts = histogram.bins()
    assert counts.tolist() == [24 << 30, 0, (1000 << 30) + 5, 0, 2]
    assert edges[[0, 1, 2, -1]].tolist() == [0.0, 0.0, 3.0, 300.0]


@pytest.mark.parametrize("bins", [1, 128, 2048, 4096])
def test_equal_bins_that_are_dyadic_are_counted_exactly(bins: int) -> None:
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    values = np.append(values[np.abs(values) < 4], [0.0, 4.0]).astype(np.float32)
    # below a fiftieth of the largest, bins are narrower still
    expected, _ = np.histogram(np.abs(values[values != 0]), bins, (0, 4))
    np.testing.assert_array_equal(of([values]).magnitudes(bins), expected)


@pytest.mark.parametrize("bins", [100, 2000, 4096, 40_000])
def test_counts_are_spread_over_equal_bins(bins: int) -> None:
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    values[:1000] = 0.0
    found = of([values]).magnitudes(bins)
    largest = np.abs(values).max()
    expected, _ = np.histogram(np.abs(values[values != 0]), bins, (0, largest))
    assert found.sum() == expected.sum()
    assert (found % 1 == 0).all()
    # up to each edge, only the values of the bins that the edge cuts can be missing or too many
    edges, counts = of([np.abs(values)]).bins()
    wanted = np.linspace(0, largest, bins + 1)[1:]
    cut = np.clip(np.searchsorted(edges, wanted) - 1, 0, len(counts) - 1)
    assert (np.abs(np.cumsum(found) - np.cumsum(expected)) <= counts[cut]).all()


@relaxed
@given(ANY, st.integers(1, 300))
def test_all_magnitudes_are_in_some_equal_bin(values: Floats, bins: int) -> None:
    found = of([values]).magnitudes(bins)
    nonzero = np.abs(values[values != 0])
    assert (found >= 0).all()
    assert found.sum() == nonzero.size
    if nonzero.max(initial=0) > 1e-30:  # smaller ones are all in one bin
        assert found[-1] > 0


def test_a_single_value_is_in_one_equal_bin() -> None:
    found = of([np.array([6, 6, -1.5, 0], np.float32)]).magnitudes(8)
    assert found.tolist() == [0, 0, 1, 0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(24, dtype=np.float32)[::-3],
        np.arange(24, dtype=np.float16),
        np.arange(24, dtype=np.float64) + 1e-12,
        np.float32(7.0),
        np.arange(8, dtype=">f4"),
    ],
)
def test_arrays_of_any_form_are_taken(values: Any) -> None:
    plain = [np.float32(value) for value in np.asarray(values).ravel()]
    assert seen(of([values])) == seen(of([np.array(plain, np.float32)]))


def test_a_read_only_array_is_taken_and_a_writable_one_stays_writable() -> None:
    values = np.ones(5, np.float32)
    of([values])
    values[0] = 2.0
    values.flags.writeable = False
    assert of([values]).high == 2.0


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.0, 0.0], 0.0, 0.0),
        ([-0.0], 0.0, 0.0),
        ([-3.0, -7.0], -7.0, -3.0),
        ([1e-30, 1e30], np.float32(1e-30), np.float32(1e30)),
        ([1e-45, -1e-40], np.float32(-1e-40), np.float32(1e-45)),
        ([3.4028235e38], np.finfo(np.float32).max, np.finfo(np.float32).max),
    ],
)
def test_extremes(values: list[float], low: float, high: float) -> None:
    histogram = of([np.array(values, np.float32)])
    assert (histogram.low, histogram.high) == (low, high)
    assert math.copysign(1, histogram.low) == (1 if low >= 0 else -1)
    edges, counts = histogram.bins()
    assert (edges[0], edges[-1], counts.sum()) == (low, high, len(values))


@settings(max_examples=50, deadline=None)
@given(arrays(NEAR), st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]), st.integers(0, 10**6))
def test_what_is_not_finite_is_refused(values: Floats, bad: float, place: int) -> None:
    spoilt = np.insert(values, place % (values.size + 1), np.float32(bad))
    histogram = of([values])
    with pytest.raises(FloatingPointError):
        histogram.observe(spoilt)


def test_a_large_array_is_counted_across_blocks_and_octaves() -> None:
    values = np.random.default_rng(2).normal(size=100_001).astype(np.float32)
    values[::2] = 0.0
    values[70_000] = 1e6  # raises the top octave by many, late
    whole = of([values])
    assert seen(whole) == seen(of([values[70_000:], values[:70_000]]))
    assert whole.zeros == 50_001 - 1
    assert whole.count == values.size


def test_the_kernel_lets_other_threads_run() -> None:
    assert kernels.count.targetoptions["nogil"]
