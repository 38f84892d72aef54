"""The emulated arithmetic is the float32 epilogue of TensorRT's formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_core import compare, quantize
from ptq_target_nvgpu import ptq_targets
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

(ENTRY,) = ptq_targets()
assert ENTRY.arithmetic is not None
ARITHMETIC = ENTRY.arithmetic()
LOW, HIGH = -128, 127


def quantized(values: Any, scale: Any, zero_point: int = 0) -> Any:
    steps = np.rint(values / np.float32(scale))
    return np.clip(steps, LOW - zero_point, HIGH - zero_point).astype(np.int32) + zero_point


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(1e-6, 1e3),
    zero_point=st.integers(LOW, HIGH),
    channels=st.integers(1, 5),
)
def test_kernels_are_their_twins(seed: int, scale: float, zero_point: int, channels: int) -> None:
    draw = np.random.default_rng(seed)
    values = (draw.standard_normal((3, 4, channels)) * scale * 100).astype(np.float32)
    found = ARITHMETIC.quantize(values, scale, zero_point, LOW, HIGH)
    assert found.dtype == np.int32
    assert np.array_equal(found, quantized(values, scale, zero_point))
    sums = draw.integers(-(2**31), 2**31, values.shape) >> draw.integers(0, 24, values.shape)
    weight_scale = draw.uniform(1e-5, 1e-1, channels).astype(np.float32)
    reals = sums.astype(np.float32) * (np.float32(scale) * weight_scale)
    assert np.array_equal(ARITHMETIC.dequantize(sums, scale, weight_scale), reals)
    codes = ARITHMETIC.requantize(sums, scale, weight_scale, scale * 50, zero_point, LOW, HIGH)
    assert np.array_equal(codes, quantized(reals, np.float32(scale * 50), zero_point))


def test_rounding_and_saturation() -> None:
    values = np.array([0.5, 1.5, -0.5, -2.5, 126.5, 127.5, 1e9, -128.5, -1e9], np.float32)
    found = ARITHMETIC.quantize(values, 1.0, 0, LOW, HIGH)
    assert found.tolist() == [0, 2, 0, -2, 126, 127, 127, -128, -128]


def test_a_merged_relu_is_the_lowest_code() -> None:
    sums, one = np.array([[-5, 5]]), np.ones(1, np.float32)
    assert ARITHMETIC.requantize(sums, 1.0, one, 1.0, 0, 0, HIGH).tolist() == [[0, 5]]


def test_the_device_is_as_close_to_the_file_as_rounding_lets_it(tmp_path: Path) -> None:
    """Biases are float there: sums, then float32; that is nearly what the file says."""
    made = tiny.model(
        [
            node("Conv", "x w1 b", "c1", "first", pads=[1] * 4),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2 b", "c2", "second", pads=[1] * 4),
            node("Add", "c2 r1", "a"),
            node("Relu", "a", "r2"),
            node("Conv", "r2 w2", "y", "third"),
        ],
        {"x": [1, 3, 8, 8]},
        {"y": [1, 16, 6, 6]},
        {"w1": normal(16, 3, 3, 3), "w2": normal(16, 16, 3, 3, scale=0.1), "b": normal(16)},
    )
    path = tiny.save(made, tmp_path)
    data = [tiny.feeds(made, seed) for seed in range(4)]
    quantize(path, tmp_path / "q.onnx", data=data, target="NVGPU")
    report = compare(path, tmp_path / "q.onnx", emulate="NVGPU", data=data)
    assert report.target == "NVGPU"
    assert any(one.steps is not None for one in report.tensors)
    for one in report.tensors:
        assert one.device_to_file is not None
        assert one.device_to_file.cosine > 0.9999
        assert (one.steps or 0) <= 1
