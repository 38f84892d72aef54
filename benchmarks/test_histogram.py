"""The histogram that calibrators fill, and the KL search in it, beside what NumPy does.

Plain tests in CI; `pytest benchmarks/test_histogram.py --benchmark-enable` measures.
"""

from __future__ import annotations

import numpy as np
import pytest

kl = pytest.importorskip("ptq_calibrator_kl.threshold")
FloatHistogram = pytest.importorskip("ptq_histogram").FloatHistogram

LARGE = (1, 96, 112, 112)  # the largest activation of MobileNetV2


def normal():
    return np.random.default_rng(0).standard_normal(LARGE, np.float32)


ACTIVATIONS = {
    "normal": normal,
    "relu": lambda: np.maximum(normal(), 0),  # half of the values on one counter
    "relu6": lambda: np.clip(4 * normal(), 0, 6),  # and many on a second
    "constant": lambda: np.full(LARGE, 3.0, np.float32),
}


@pytest.fixture(scope="module", params=ACTIVATIONS)
def activation(request):
    values = ACTIVATIONS[request.param]()
    values.flags.writeable = False
    return values


@pytest.fixture(scope="module")
def filled():
    histogram = FloatHistogram()
    histogram.observe(normal())
    return histogram


@pytest.mark.benchmark(group="histogram")
def test_float_histogram_observes(benchmark, activation):
    histogram = FloatHistogram()
    benchmark(histogram.observe, activation)
    assert histogram.count % activation.size == 0
    assert (histogram.low, histogram.high) == (activation.min(), activation.max())


@pytest.mark.benchmark(group="histogram")
def test_numpy_counts_in_a_given_range(benchmark, activation):
    """What a second pass would do, once the range is known, a quarter of the resolution."""
    largest = max(float(np.abs(activation).max()), 1e-9)
    counts, _ = benchmark(np.histogram, activation, 4096, (-largest, largest))
    assert counts.sum() == activation.size


@pytest.mark.benchmark(group="histogram, small")
def test_float_histogram_observes_a_small_tensor(benchmark):
    values = normal().reshape(-1)[:64]
    histogram = FloatHistogram()
    benchmark(histogram.observe, values)
    assert histogram.high == values.max()


@pytest.mark.benchmark(group="histogram, small")
def test_numpy_finds_the_range_of_a_small_tensor(benchmark):
    values = normal().reshape(-1)[:64]
    low, high = benchmark(lambda: (values.min(), values.max()))
    assert low < high


@pytest.mark.benchmark(group="histogram, end")
def test_histograms_are_merged(benchmark, filled):
    histogram = FloatHistogram()
    benchmark(histogram.merge, filled)
    assert histogram.count % filled.count == 0


@pytest.mark.benchmark(group="histogram, end")
def test_equal_bins_are_made(benchmark, filled):
    counts = benchmark(filled.magnitudes, 2048)
    assert counts.sum() == filled.count


@pytest.mark.benchmark(group="histogram, end")
def test_kl_is_searched(benchmark, filled):
    counts = filled.magnitudes(2048)
    assert 128 / 2048 < benchmark(kl.threshold, counts, 128) <= 1.0
