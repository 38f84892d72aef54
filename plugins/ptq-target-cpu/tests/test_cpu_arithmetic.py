"""Emulated codes are those of onnxruntime's integer kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_core import quantize
from ptq_core.arithmetic import sqnr
from ptq_core.emulation import Emulator, FloatNodes, make_program, simplified
from ptq_core.emulation.steps import Layer
from ptq_core.plugins import discover
from ptq_target_cpu import ptq_targets
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

(ENTRY,) = ptq_targets()
assert ENTRY.arithmetic is not None
ARITHMETIC = ENTRY.arithmetic()
RUNNER = discover().runner("onnxruntime")


# -------------------------------------------------------------------- kernels and their twins


def quantized(values: Any, scale: Any, zero_point: int, low: int, high: int) -> Any:
    steps = np.clip(values / np.float32(scale), np.float32(low - zero_point),
                    np.float32(high - zero_point))  # fmt: skip
    return np.rint(steps).astype(np.int32) + zero_point


def requantized(
    sums: Any, input_scale: Any, weight_scale: Any, output_scale: Any, zero_point: int, low: int,
    high: int,
) -> Any:  # fmt: skip
    factors = np.float32(input_scale) * weight_scale / np.float32(output_scale)
    steps = sums.astype(np.float32) * factors
    limited = np.clip(steps, np.float32(low - zero_point), np.float32(high - zero_point))
    return np.rint(limited).astype(np.int32) + zero_point


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(1e-6, 1e3),
    kind=st.sampled_from([np.uint8, np.int8, np.uint16]),
    channels=st.integers(1, 5),
)
def test_kernels_are_their_twins(seed: int, scale: float, kind: Any, channels: int) -> None:
    draw = np.random.default_rng(seed)
    info = np.iinfo(kind)
    low, high = int(info.min), int(info.max)
    zero_point = int(draw.integers(low, high + 1))
    values = (draw.standard_normal((3, 4, channels)) * scale * 100).astype(np.float32)
    found = ARITHMETIC.quantize(values, scale, zero_point, low, high)
    assert found.dtype == np.int32
    assert np.array_equal(found, quantized(values, scale, zero_point, low, high))
    sums = draw.integers(-(2**31), 2**31, values.shape) >> draw.integers(0, 24, values.shape)
    weight_scale = draw.uniform(1e-5, 1e-1, channels).astype(np.float32)
    given = (sums, scale, weight_scale, scale * 50, zero_point, low, high)
    assert np.array_equal(ARITHMETIC.requantize(*given), requantized(*given))
    reals = ARITHMETIC.dequantize(sums, scale, weight_scale)
    assert reals.dtype == np.float32
    expected = sums.astype(np.float32) * (np.float32(scale) * weight_scale)
    assert np.array_equal(reals, expected)


def test_halves_go_to_the_even_code() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    assert ARITHMETIC.quantize(values, 1.0, 10, 0, 255).tolist() == [10, 12, 12, 10, 8, 255, 0]


def test_one_scale_is_for_all_channels() -> None:
    sums = np.array([[4, 8, -4]])
    found = ARITHMETIC.requantize(sums, 0.5, np.array([0.5], np.float32), 1.0, 0, -128, 127)
    assert found.tolist() == [[1, 2, -1]]


# ------------------------------------------------------------- against onnxruntime's own kernels

BLOCKS: dict[str, list[onnx.NodeProto]] = {
    "conv": [node("Conv", "x c b", "y")],
    "conv, Relu": [node("Conv", "x c b", "l"), node("Relu", "l", "y")],
    "conv, Relu6": [node("Conv", "x c b", "l"), node("Clip", "l zero six", "y")],
    "conv with strides and pads": [node("Conv", "x c b", "y", strides=[2, 2], pads=[1] * 4)],
    "depthwise": [node("Conv", "x d b", "y", group=8, pads=[1] * 4)],
    "groups": [node("Conv", "x g b", "y", group=2, dilations=[2, 2])],
    "Gemm": [node("Flatten", "x", "f"), node("Gemm", "f m n", "y", transB=1)],
    "Gemm, Relu": [
        node("Flatten", "x", "f"), node("Gemm", "f m n", "l", transB=1), node("Relu", "l", "y"),
    ],
    "MatMul": [node("MatMul", "x k", "y")],
    "MatMul with bias": [node("MatMul", "x k", "p"), node("Add", "p b", "y")],
    "Add": [node("Conv", "x c b", "l", pads=[1] * 4), node("Add", "l x", "y")],
    "Add, Relu": [
        node("Conv", "x c b", "l", pads=[1] * 4), node("Add", "l x", "a"), node("Relu", "a", "y"),
    ],
    "Mul": [node("Conv", "x c b", "l", pads=[1] * 4), node("Mul", "l x", "y")],
    "GlobalAveragePool": [node("GlobalAveragePool", "x", "y")],
    "AveragePool": [node("AveragePool", "x", "y", kernel_shape=[2, 2])],
    "MaxPool": [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2])],
    "Concat": [node("Conv", "x c b", "l", pads=[1] * 4), node("Concat", "l x", "y", axis=1)],
}  # fmt: skip
CONSTANTS = {
    "c": normal(8, 8, 3, 3), "b": normal(8, seed=1), "d": normal(8, 1, 3, 3),
    "g": normal(8, 4, 3, 3), "m": normal(6, 512), "n": normal(6), "k": normal(8, 8),
    "zero": np.array(0, np.float32), "six": np.array(0.6, np.float32),
}  # fmt: skip
# onnxruntime's own sums in pools and elementwise kernels are float32 in another order.
STEPS = 1
EXACT = {"conv", "conv, Relu", "conv, Relu6", "conv with strides and pads", "depthwise", "groups",
         "Gemm", "Gemm, Relu", "MatMul", "MatMul with bias"}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_codes_are_those_of_the_integer_kernels(name: str, tmp_path: Path) -> None:
    """The block is between two layers, so that its input and its result are codes."""
    matrix, channels = name.startswith("Gemm"), 16 if name == "Concat" else 8
    last = node("Gemm", "y end_m", "end") if matrix else node("Conv", "y end_c", "end")
    nodes = [node("Conv", "input c b", "x", pads=[1] * 4), *BLOCKS[name], last]
    constants = {**CONSTANTS, "end_m": normal(6, 4), "end_c": normal(4, channels, 1, 1)}
    used = {one for made in nodes for one in made.input}
    made = tiny.model(
        nodes,
        {"input": [1, 8, 8, 8]},
        {"end": ["a", "b"] if matrix else ["a", "b", "c", "d"]},
        {one: array for one, array in constants.items() if one in used},
    )
    path = tiny.save(made, tmp_path)
    quantize(path, tmp_path / "q.onnx", data=[tiny.feeds(made, seed) for seed in range(4)])
    file, feeds = onnx.load(tmp_path / "q.onnx"), tiny.feeds(made, 7)
    model = simplified(ir.from_proto(file))
    floats = FloatNodes(model, RUNNER, RUNNER.entry.options())
    program = make_program(model, floats)
    found = {one.tensor: array for one, array in Emulator(program, ARITHMETIC, floats).run(feeds)}
    codes = [one.tensor for one in program.watched if one.quantized]
    file.graph.output.extend(tiny.info(one, None, onnx.TensorProto.UINT8) for one in codes)
    wanted = tiny.run(file, feeds, optimized=True)
    assert len(codes) >= 3
    for one in codes:
        difference = np.abs(found[one].astype(int) - wanted[one].astype(int)).max()
        assert difference <= (0 if name in EXACT else STEPS)


# ------------------------------------------------------------------------------- real networks

SHARED = Path(__file__).parents[4] / "shared"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real networks are not part of the repository")
@pytest.mark.parametrize(
    ("network", "shape", "exact"),
    [
        ("squeezenet1_1", (1, 3, 227, 227), True),
        # an Add or two have a code on the other side of a half, and what follows has it, too
        ("mobilenet_v2", (1, 3, 224, 224), False),
        ("resnet20_cifar10", (1, 3, 32, 32), False),
    ],
)
def test_a_real_network_is_predicted(
    network: str, shape: tuple[int, ...], exact: bool, tmp_path: Path
) -> None:
    """Every layer gives the codes of onnxruntime's integer kernels, from the codes before it."""
    model = SHARED / "models" / f"{network}.onnx"
    (source,) = (one.name for one in onnx.load(model).graph.input)
    draw = np.random.default_rng(0)
    data = [{source: draw.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    quantize(model, tmp_path / "q.onnx", data=data)
    file = onnx.load(tmp_path / "q.onnx")
    simple = simplified(ir.from_proto(file))
    floats = FloatNodes(simple, RUNNER, RUNNER.entry.options())
    program = make_program(simple, floats)
    outputs = [one.name for one in file.graph.output]
    codes = {one.tensor: one for one in program.watched if one.quantized}
    file.graph.output.extend(tiny.info(one, None, onnx.TensorProto.UINT8) for one in codes)
    wanted = tiny.run(file, data[0], optimized=True)
    layers = [step for step in program.steps if isinstance(step, Layer) and step.result]
    assert len(layers) > 20
    for layer in layers:
        assert layer.result is not None
        name = layer.result.codes
        alone = replace(program, steps=(layer,), outputs=(), watched=(codes[name],))
        ((_, found),) = Emulator(alone, ARITHMETIC, floats).run(wanted)
        assert np.array_equal(found, wanted[name])
    whole = {one.tensor: array for one, array in Emulator(program, ARITHMETIC, floats).run(data[0])}
    for output in outputs:
        assert np.array_equal(whole[output], wanted[output]) or not exact
        assert sqnr(wanted[output], whole[output]) > 25
