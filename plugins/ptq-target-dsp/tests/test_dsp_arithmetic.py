"""The emulated arithmetic is that of Qualcomm's HTP library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from ptq_core import quantize
from ptq_core.emulation import Closeness, Emulator, FloatNodes, make_program, simplified
from ptq_core.jobs import Settings
from ptq_core.plugins import discover
from ptq_target_dsp import ptq_targets
from ptq_target_dsp.arithmetic import mantissa_and_exponent
from tests import htp
from tests import tiny_models as tiny
from tests.tiny_models import node

(ENTRY,) = ptq_targets()
assert ENTRY.arithmetic is not None
ARITHMETIC = ENTRY.arithmetic()


# -------------------------------------------------------------------- kernels and their twins


def quantized(values: Any, scale: Any, zero_point: int, low: int, high: int) -> Any:
    steps = np.clip(values / np.float32(scale), low - zero_point, high - zero_point)
    return np.rint(steps.astype(np.float32)).astype(np.int32) + zero_point


def requantized(
    sums: Any, input_scale: float, weight_scale: Any, output_scale: float, zero_point: int,
    low: int, high: int,
) -> Any:  # fmt: skip
    middle = 0 if low >= 0 else 128
    factors = input_scale * weight_scale.astype(np.float64) / output_scale
    mantissas, exponents = mantissa_and_exponent(factors)
    shifts = -exponents - 4
    rest = sums + np.rint((zero_point + middle) / factors).astype(np.int64)
    rest = np.where(shifts >= 0, rest >> np.maximum(shifts, 0), rest << np.maximum(-shifts, 0))
    codes = (rest * mantissas + 2**13) >> 14
    return np.clip(codes - middle, low, high)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.floats(1e-4, 10),
    kind=st.sampled_from([np.uint8, np.int8]),
    channels=st.integers(1, 5),
)
def test_kernels_are_their_twins(seed: int, scale: float, kind: Any, channels: int) -> None:
    draw = np.random.default_rng(seed)
    low, high = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    zero_point = int(draw.integers(low, high + 1))
    values = (draw.standard_normal((3, 4, channels)) * scale * 100).astype(np.float32)
    found = ARITHMETIC.quantize(values, scale, zero_point, low, high)
    assert found.dtype == np.int32
    assert np.array_equal(found, quantized(values, scale, zero_point, low, high))
    sums = draw.integers(-(2**27), 2**27, values.shape) >> draw.integers(0, 20, values.shape)
    weight_scale = draw.uniform(1e-4, 1e-1, channels).astype(np.float32)
    given = (sums, scale, weight_scale, scale * draw.uniform(0.001, 10), zero_point, low, high)
    assert np.array_equal(ARITHMETIC.requantize(*given), requantized(*given))
    expected = sums.astype(np.float32) * (scale * weight_scale.astype(np.float64)).astype("f")
    assert np.array_equal(ARITHMETIC.dequantize(sums, scale, weight_scale), expected)


@given(st.floats(1e-12, 1e6))
def test_a_factor_has_eleven_bits(factor: float) -> None:
    mantissa, exponent = (int(one[0]) for one in mantissa_and_exponent(np.array([factor])))
    assert 2**10 <= mantissa <= 2**11
    assert mantissa * 2.0 ** (exponent - 10) == pytest.approx(factor, rel=2**-11)


def test_what_has_few_bits_is_exact() -> None:
    """A factor of a power of two, and sums that lose nothing: rounding half up is all."""
    sums = np.array([[2, 6, -2, 10, 1000, -1000]])
    one = np.ones(1, np.float32)
    found = ARITHMETIC.requantize(sums, 0.25, one, 1.0, 10, 0, 255)
    assert found.tolist() == [[11, 12, 10, 13, 255, 0]]


def test_low_bits_are_dropped_before_the_product() -> None:
    """With a factor of 2**-8, multiples of 16 are all that is seen of a sum."""
    sums, one = np.array([[127, 128, 143]]), np.ones(1, np.float32)
    assert ARITHMETIC.requantize(sums, 2.0**-8, one, 1.0, 0, 0, 255).tolist() == [[0, 1, 1]]
    nearly = ARITHMETIC.requantize(np.array([[142, 143, 144]]), 0.9 * 2**-7, one, 1.0, 0, 0, 255)
    assert nearly.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127), (0, 65535), (-32768, 32767)])
@pytest.mark.parametrize("zero_point", [0, 127])
def test_factors_beyond_64_bits(low: int, high: int, zero_point: int) -> None:
    """A channel of zeros may have any scale: nothing is seen of it; what is huge saturates."""
    sums = np.array([[0, 2**31 - 1, -(2**31)]])
    tiny_scale, large = np.array([1e-38], np.float32), np.array([1e38], np.float32)
    given = (1.0, zero_point, low, high)
    found = ARITHMETIC.requantize(sums, 1.0, tiny_scale, *given)
    assert found.tolist() == [[zero_point] * 3]
    assert ARITHMETIC.requantize(sums, 1.0, large, *given).tolist()[0][1:] == [high, low]


# ----------------------------------------------------------------------- against the library

CASES: dict[str, tuple[str, list[int], tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", [1, 8, 12, 12], (16, 8, 3, 3), {}),
    "conv 1x1": ("Conv", [1, 16, 9, 9], (24, 16, 1, 1), {}),
    "conv with strides": (
        "Conv", [1, 3, 24, 24], (16, 3, 3, 3), {"strides": [2, 2], "pads": [1] * 4},
    ),
    "conv with dilations": (
        "Conv", [1, 8, 16, 16], (16, 8, 3, 3), {"dilations": [2, 2], "pads": [2] * 4},
    ),
    "many products": ("Conv", [1, 256, 7, 7], (32, 256, 3, 3), {}),
    "groups": ("Conv", [1, 16, 12, 12], (16, 4, 3, 3), {"group": 4}),
    "depthwise": ("Conv", [1, 32, 12, 12], (32, 1, 3, 3), {"group": 32, "pads": [1] * 4}),
    "depthwise with strides": (
        "Conv", [1, 32, 12, 12], (32, 1, 3, 3), {"group": 32, "strides": [2, 2]},
    ),
    "transposed": ("ConvTranspose", [1, 8, 6, 6], (8, 16, 2, 2), {"strides": [2, 2]}),
    "Gemm": ("Gemm", [4, 64], (32, 64), {"transB": 1}),
    "MatMul": ("MatMul", [1, 16, 64], (64, 32), {}),
}  # fmt: skip
# They run on other units of the processor, which round in another way.
NOT_EXACT = {"depthwise with strides"}


def layer(name: str, kind: Any, *, relu: bool) -> tuple[onnx.ModelProto, Any]:
    """Codes ``x`` to codes ``y`` by one layer, and codes; the result uses its range."""
    operator, shape, kernel, attributes = CASES[name]
    draw, info = tiny.rng(len(name)), np.iinfo(kind)
    codes = draw.integers(info.min, info.max + 1, shape).astype(kind)
    weights = draw.integers(-127, 128, kernel).astype(np.int8)
    axis = {"ConvTranspose": 1, "MatMul": 1}.get(operator, 0)
    channels = kernel[axis]
    scales = draw.uniform(0.001, 0.02, channels).astype(np.float32)
    terms = int(np.prod(kernel)) // channels
    spread = 0.02 * 0.01 * 73 * 73 * np.sqrt(terms)  # of the result, about
    constants: dict[str, Any] = {
        "sx": np.float32(0.02), "zx": kind(draw.integers(info.min, info.max)),
        "w": weights, "sw": scales, "zw": np.zeros(channels, np.int8),
        "b": draw.integers(-3000, 3000, channels).astype(np.int32),
        "sb": np.float32(0.02) * scales, "zb": np.zeros(channels, np.int32),
        "sy": np.float32(spread / (64 if relu else 40)),
        "zy": kind(info.min if relu else draw.integers(info.min + 90, info.max - 90)),
    }  # fmt: skip
    nodes = [
        node("DequantizeLinear", "x sx zx", "xf"),
        node("DequantizeLinear", "w sw zw", "wf", axis=axis),
        node("DequantizeLinear", "b sb zb", "bf", axis=0),
        node(operator, "xf wf" if operator == "MatMul" else "xf wf bf", "l", **attributes),
        *([node("Relu", "l", "r")] if relu else []),
        node("QuantizeLinear", "r sy zy" if relu else "l sy zy", "y"),
    ]
    if operator == "MatMul":
        del nodes[2]
    used = {one for made in nodes for one in made.input}
    given = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    tensors = [
        numpy_helper.from_array(np.asarray(array), one)
        for one, array in constants.items()
        if one in used
    ]
    rank = len(shape)
    graph = helper.make_graph(
        nodes, "layer", [tiny.info("x", shape, given)],
        [tiny.info("y", [None] * rank, given)], tensors,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made), codes


@pytest.mark.skipif(bool(htp.missing()), reason=htp.missing())
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("kind", "relu"), [(np.uint8, False), (np.uint8, True), (np.int8, False)])
def test_codes_are_those_of_the_library(name: str, kind: Any, relu: bool) -> None:
    made, codes = layer(name, kind, relu=relu)
    wanted = htp.open_htp(made.SerializeToString()).run(None, {"x": codes})[0]
    model, runner = simplified(ir.from_proto(made)), discover().runner("onnxruntime")
    floats = FloatNodes(model, runner, runner.entry.options())
    emulator = Emulator(make_program(model, floats), ARITHMETIC, floats)
    found = {one.tensor: array for one, array in emulator.run({"x": codes})}["y"]
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    assert ((wanted > low) & (wanted < high)).mean() > (0.2 if relu else 0.7)
    difference = np.abs(found.astype(int) - wanted.astype(int))
    assert difference.max() <= (1 if name in NOT_EXACT else 0)
    # as the file has it, a code in twenty is another one
    written = htp.open_reference(made.SerializeToString()).run(None, {"x": codes})[0]
    if name not in NOT_EXACT:
        assert (written != wanted).mean() > 0.01


@pytest.mark.skipif(bool(htp.missing()), reason=htp.missing())
def test_a_network_is_predicted_better_than_by_its_file(tmp_path: Path) -> None:
    """Two convolutions, a pool and a matrix product: only the pool is not exact."""
    made = tiny.conv_bn_relu()
    path = tiny.save(made, tmp_path)
    data = [tiny.feeds(made, seed, batch=1) for seed in range(4)]
    shapes = {"x": (1, 3, 8, 8)}
    quantize(
        path, tmp_path / "q.onnx", data=data, target="DSP", settings=Settings(input_shapes=shapes)
    )
    file = (tmp_path / "q.onnx").read_bytes()
    model, runner = simplified(ir.load(tmp_path / "q.onnx")), discover().runner("onnxruntime")
    floats = FloatNodes(model, runner, runner.entry.options())
    emulator = Emulator(make_program(model, floats), ARITHMETIC, floats)
    device, reference = htp.open_htp(file, strict=False), htp.open_reference(file)
    predicted, written = Closeness(), Closeness()
    for feeds in data:
        wanted = device.run(["y"], feeds)[0]
        found = {one.tensor: array for one, array in emulator.run(feeds)}["y"]
        predicted.add(wanted, found)
        written.add(wanted, reference.run(["y"], feeds)[0])
    assert predicted.sqnr > 35
    assert predicted.sqnr >= written.sqnr
