"""The emulated arithmetic is that of AscendQuant and AscendDequant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_core import quantize
from ptq_core.emulation import Emulator, FloatNodes, make_program, simplified
from ptq_core.plugins import discover
from ptq_target_ascend import ptq_targets
from ptq_target_ascend.reference import runnable
from tests import tiny_models as tiny

(ENTRY,) = ptq_targets()
assert ENTRY.arithmetic is not None
ARITHMETIC = ENTRY.arithmetic()
LOW, HIGH = -128, 127


def quantized(values: Any, scale: Any, offset: int) -> Any:
    reciprocal = np.float32(1) / np.float32(scale)
    steps = np.rint(values * reciprocal + np.float32(offset))
    return np.clip(steps, LOW, HIGH).astype(np.int32)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(1e-6, 1e3),
    offset=st.integers(LOW, HIGH),
    channels=st.integers(1, 5),
)
def test_kernels_are_their_twins(seed: int, scale: float, offset: int, channels: int) -> None:
    draw = np.random.default_rng(seed)
    values = (draw.standard_normal((3, 4, channels)) * scale * 100).astype(np.float32)
    found = ARITHMETIC.quantize(values, scale, offset, LOW, HIGH)
    assert found.dtype == np.int32
    assert np.array_equal(found, quantized(values, scale, offset))
    sums = draw.integers(-(2**31), 2**31, values.shape) >> draw.integers(0, 24, values.shape)
    weight_scale = draw.uniform(1e-5, 1e-1, channels).astype(np.float32)
    reals = sums.astype(np.float32) * (np.float32(scale) * weight_scale)
    assert np.array_equal(ARITHMETIC.dequantize(sums, scale, weight_scale), reals)
    codes = ARITHMETIC.requantize(sums, scale, weight_scale, scale * 50, offset, LOW, HIGH)
    assert np.array_equal(codes, quantized(reals, scale * 50, offset))


def test_the_offset_is_added_before_rounding() -> None:
    """So a half goes to the even code, not to the even number of steps."""
    values = np.array([0.5, 1.5, -0.5, 1e9, -1e9], np.float32)
    assert ARITHMETIC.quantize(values, 1.0, 1, LOW, HIGH).tolist() == [2, 2, 0, 127, -128]


def test_a_reciprocal_is_not_a_division() -> None:
    """x / s is next to a half, and x * (1 / s) on its other side."""
    scale = np.float32(0.3)
    values = (np.arange(100, dtype=np.float32) + np.float32(0.5)) * scale
    divided = np.rint(values / scale).astype(int)
    found = ARITHMETIC.quantize(values, float(scale), 0, LOW, HIGH)
    assert np.abs(found - divided).max() == 1


# One network's codes may be on the other side of a half after float32 sums in another order.
DIFFERING = 0.01


@pytest.mark.parametrize("name", ["conv_bn_relu", "residual", "depthwise_relu6", "gemm"])
def test_a_network_is_what_its_deploy_file_computes(name: str, tmp_path: Path) -> None:
    """The deploy file's integers, executed with ONNX's own operators."""
    made = tiny.MODELS[name]()
    path = tiny.save(made, tmp_path)
    data = [tiny.feeds(made, seed) for seed in range(4)]
    quantize(path, tmp_path / "q.onnx", target="ASCEND", data=data)
    file, deploy = onnx.load(tmp_path / "q.onnx"), onnx.load(tmp_path / "q_deploy.onnx")
    model, runner = simplified(ir.from_proto(file)), discover().runner("onnxruntime")
    floats = FloatNodes(model, runner, runner.entry.options())
    emulator = Emulator(make_program(model, floats), ARITHMETIC, floats)
    for feeds in data:
        found = {one.tensor: array for one, array in emulator.run(feeds) if one.output}
        wanted = tiny.run(runnable(deploy), feeds)
        for output, array in found.items():
            scale = np.abs(wanted[output]).max()
            assert (np.abs(array - wanted[output]) > 1e-5 * scale).mean() < DIFFERING
