"""Kernels and start-up, each beside the plain NumPy that it has to keep up with.

Plain tests in CI; `pytest benchmarks --benchmark-enable` measures.
"""

from __future__ import annotations

import numpy as np
import pytest

from ptq_core.arithmetic import dequantize, quantize, weight_parameters
from ptq_core.plugins import discover
from ptq_core.types import ObservedTensor, QScheme, Range

ACTIVATION = (1, 96, 112, 112)  # the largest of MobileNetV2
WEIGHT = (1280, 320, 1, 1)


@pytest.fixture(scope="module")
def activation():
    return np.random.default_rng(0).standard_normal(ACTIVATION, np.float32)


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(1).standard_normal(WEIGHT, np.float32)


@pytest.mark.benchmark(group="range")
def test_max_min_observes(benchmark, activation):
    entry = discover().calibrator("MAX_MIN").entry
    calibrator = entry.factory(ObservedTensor(name="x", scheme=QScheme()), entry.options())
    benchmark(calibrator.observe, activation)
    low, high = float(activation.min()), float(activation.max())
    assert calibrator.result() == Range(low=low, high=high)


@pytest.mark.benchmark(group="range")
def test_numpy_finds_the_range(benchmark, activation):
    low, high = benchmark(lambda: (activation.min(), activation.max()))
    assert low < 0 < high


@pytest.mark.benchmark(group="quantize")
def test_weights_are_quantized(benchmark, weight):
    params = weight_parameters(weight, QScheme(dtype="int8", symmetric=True), axis=0)
    codes = benchmark(quantize, weight, params)
    error = np.abs(dequantize(codes, params) - weight)
    half_a_step = params.scale.reshape(-1, 1, 1, 1) / 2
    assert (error <= half_a_step * 1.001).all()  # float32 rounding of the result


@pytest.mark.benchmark(group="quantize")
def test_numpy_rounds_weights(benchmark, weight):
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / np.float32(127)
    codes = benchmark(lambda: np.clip(np.rint(weight / scale), -128, 127).astype(np.int8))
    assert codes.min() == -127 or codes.max() == 127


@pytest.mark.benchmark(group="start-up")
def test_plugins_are_discovered(benchmark):
    host = benchmark(discover)
    assert {one.entry.name for one in host.entries("calibrator")} >= {"MAX_MIN"}
