"""Emulation: exact sums, which nodes are a layer, and the whole against the model as written."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ptq_core import quantize
from ptq_core.arithmetic import cosine, sqnr
from ptq_core.emulation import (
    Closeness,
    Emulator,
    FloatNodes,
    Program,
    make_program,
    simplified,
)
from ptq_core.emulation.products import exact_type
from ptq_core.emulation.steps import Encode, Float, Layer
from ptq_core.plugins import discover
from tests import tiny_models as tiny
from tests.tiny_models import node

HOST = discover()
RUNNER = HOST.runner("onnxruntime")


class Plain:
    """What the formulas of Q/DQ say, in double: the arithmetic that no device has."""

    def quantize(
        self, values: Any, scale: float, zero_point: int, low: int, high: int, /
    ) -> NDArray[np.int32]:
        steps = np.rint(np.asarray(values, np.float64) / scale) + zero_point
        return np.clip(steps, low, high).astype(np.int32)

    def requantize(
        self, accumulators: Any, input_scale: float, weight_scale: Any, output_scale: float,
        zero_point: int, low: int, high: int, /,
    ) -> NDArray[np.int32]:  # fmt: skip
        reals = accumulators * (input_scale * weight_scale.astype(np.float64))
        return self.quantize(reals, output_scale, zero_point, low, high)

    def dequantize(
        self, accumulators: Any, input_scale: float, weight_scale: Any, /
    ) -> NDArray[np.float32]:
        return (accumulators * (input_scale * weight_scale.astype(np.float64))).astype(np.float32)


def loaded(made: onnx.ModelProto) -> tuple[Program, FloatNodes]:
    model = simplified(ir.from_proto(made))
    nodes = FloatNodes(model, RUNNER, RUNNER.entry.options())
    return make_program(model, nodes), nodes


def emulated(made: onnx.ModelProto, feeds: Any, arithmetic: Any = None) -> dict[str, Any]:
    """What is watched, by the tensor's name in the quantized model."""
    program, nodes = loaded(made)
    emulator = Emulator(program, arithmetic or Plain(), nodes)
    return {one.tensor: array for one, array in emulator.run(feeds)}


def layers(made: onnx.ModelProto) -> list[Layer]:
    return [step for step in loaded(made)[0].steps if isinstance(step, Layer)]


# ---------------------------------------------------------------------------- integer layers


def integer_layer(
    operator: str,
    data: list[int],
    weights: NDArray[np.int8],
    *,
    axis: int | None = None,
    bias: int = 0,
    zero_point: int = 0,
    behind: tuple[Any, ...] = (),
    result: float = 0.0,
    **attributes: Any,
) -> onnx.ModelProto:
    """Codes ``x`` -> layer -> reals ``y``, or codes ``q`` where the ``result`` has a scale.

    Scales are powers of two, so that float32 holds every result and onnxruntime gives the exact
    numbers for small weights.
    """
    wide = 1 if axis is None else weights.shape[axis]
    scales = np.float32(2.0) ** -(np.arange(wide, dtype=np.float32) % 3 + 2)
    constants: dict[str, Any] = {
        "sx": np.float32(0.5),
        "zx": np.uint8(zero_point),
        "w": weights,
        "sw": scales if axis is not None else scales[0],
        "zw": np.zeros(wide, np.int8) if axis is not None else np.int8(3),
    }
    given = {} if axis is None else {"axis": axis}
    nodes = [
        node("DequantizeLinear", "x sx zx", "xf"),
        node("DequantizeLinear", "w sw zw", "wf", **given),
    ]
    inputs = "xf wf"
    if bias:
        units = np.float32(0.5) * constants["sw"]
        codes = np.arange(bias, dtype=np.int32) * 7 - 5
        constants |= {"b": codes, "sb": units, "zb": np.zeros(np.shape(units), np.int32)}
        nodes.append(node("DequantizeLinear", "b sb zb", "bf", axis=0))
        inputs += " bf"
    end = "y" if not behind and not result else "l"
    nodes.append(node(operator, inputs, end, **attributes))
    nodes += behind
    outputs = [tiny.info("y", None)]
    if result:
        constants |= {"sy": np.float32(result), "zy": np.uint8(10)}
        nodes.append(
            node("QuantizeLinear", f"{behind[-1].output[0] if behind else end} sy zy", "q")
        )
        outputs = [tiny.info("q", None, TensorProto.UINT8)]
    graph = helper.make_graph(
        nodes,
        "layer",
        [tiny.info("x", data, TensorProto.UINT8)],
        outputs,
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def small(*shape: int, seed: int = 0) -> NDArray[np.int8]:
    return tiny.rng(seed).integers(-4, 5, shape).astype(np.int8)


def codes(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return tiny.rng(seed).integers(0, 256, shape).astype(np.uint8)


CONVOLUTIONS = {
    "1-D": ([2, 4, 9], (6, 4, 3), {}),
    "2-D with strides, dilations and unequal pads": (
        [2, 4, 11, 9], (6, 4, 3, 2), {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1]},
    ),
    "3-D": ([1, 2, 4, 5, 6], (4, 2, 2, 3, 2), {"pads": [1, 1, 0, 0, 1, 1]}),
    "groups": ([2, 6, 5, 5], (9, 2, 3, 3), {"group": 3}),
    "depthwise": ([1, 4, 7, 7], (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    "depthwise, two outputs each": ([1, 3, 6, 6], (6, 1, 3, 3), {"group": 3}),
    "SAME_UPPER": ([1, 3, 8, 7], (4, 3, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "SAME_LOWER": ([1, 3, 8, 7], (4, 3, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "VALID": ([1, 3, 8, 7], (4, 3, 3, 2), {"auto_pad": "VALID"}),
}  # fmt: skip
TRANSPOSED = {
    "strides": ([2, 4, 5, 4], (4, 6, 2, 2), {"strides": [2, 2]}),
    "overlap, pads and output_padding": (
        [1, 4, 5, 4], (4, 3, 3, 3),
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0], "dilations": [1, 2]},
    ),
    "groups": ([1, 6, 4, 4], (6, 2, 3, 3), {"group": 3}),
    "1-D": ([1, 3, 6], (3, 2, 4), {"strides": [3]}),
}  # fmt: skip


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_are_those_of_onnx(case: str, per_channel: bool) -> None:
    shape, kernel, attributes = CONVOLUTIONS[case]
    axis = 0 if per_channel else None
    made = integer_layer(
        "Conv", shape, small(*kernel), axis=axis, bias=kernel[0], zero_point=77, **attributes
    )
    check_equal(made, {"x": codes(*shape)})


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions_are_those_of_onnx(case: str) -> None:
    shape, kernel, attributes = TRANSPOSED[case]
    made = integer_layer("ConvTranspose", shape, small(*kernel), zero_point=200, **attributes)
    check_equal(made, {"x": codes(*shape)})


def test_a_scale_for_each_channel_of_a_transposed_convolution() -> None:
    made = integer_layer("ConvTranspose", [1, 4, 5, 5], small(4, 6, 2, 2), axis=1, bias=6)
    check_equal(made, {"x": codes(1, 4, 5, 5)})


@pytest.mark.parametrize(
    ("operator", "shape", "kernel", "attributes"),
    [
        ("Gemm", [5, 8], (8, 6), {}),
        ("Gemm", [5, 8], (6, 8), {"transB": 1}),
        ("MatMul", [5, 8], (8, 6), {}),
        ("MatMul", [2, 3, 5, 8], (8, 6), {}),
    ],
)
def test_matrix_products_are_those_of_onnx(
    operator: str, shape: list[int], kernel: tuple[int, int], attributes: dict[str, Any]
) -> None:
    axis = 0 if attributes else 1
    made = integer_layer(
        operator, shape, small(*kernel), axis=axis, zero_point=9,
        bias=6 if operator == "Gemm" else 0, **attributes,
    )  # fmt: skip
    check_equal(made, {"x": codes(*shape)})


def check_equal(made: onnx.ModelProto, feeds: Any) -> None:
    """The layer is computed in integers, and gives onnxruntime's numbers exactly."""
    (layer,) = layers(made)
    assert layer.exact_bias == (layer.bias is not None)
    assert np.array_equal(emulated(made, feeds)["y"], tiny.run(made, feeds)["y"])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sums_of_full_range_are_exact(data: st.DataObject) -> None:
    """Against sums of Python's integers, over the whole range of codes."""
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, inner, columns = (data.draw(st.integers(1, limit)) for limit in (4, 700, 3))
    left = draw.integers(0, 256, (rows, inner)).astype(np.uint8)
    right = draw.integers(-128, 128, (inner, columns)).astype(np.int8)
    made = integer_layer("MatMul", [rows, inner], right, axis=1)
    found = emulated(made, {"x": left})["y"]
    scales = 0.5 * 0.5 ** (np.arange(columns) % 3 + 2)
    for i, j in itertools.product(range(rows), range(columns)):
        exact = sum(int(a) * int(b) for a, b in zip(left[i], right[:, j], strict=True))
        assert found[i, j] == np.float32(exact * scales[j])


@pytest.mark.parametrize(("count", "kind"), [(517, np.float32), (520, np.float64)])
def test_float32_is_taken_as_long_as_it_holds_the_sums(count: int, kind: Any) -> None:
    weights = np.full((count, 1), -127)  # 127 * 255 * 518 is the last sum below 2**24
    assert exact_type(weights, (0,), 255) is kind


# ------------------------------------------------------------------------------ what is merged


def relu(bounds: str = "") -> Any:
    return node("Relu", "l", "r") if not bounds else node("Clip", f"l {bounds}", "r")


def test_relu_and_quantization_are_part_of_the_layer() -> None:
    made = integer_layer("Conv", [1, 2, 5, 5], small(3, 2, 3, 3), behind=(relu(),), result=1.0)
    (layer,) = layers(made)
    assert layer.bounds == (0.0, np.inf)
    assert layer.result is not None
    feeds = {"x": codes(1, 2, 5, 5)}
    found = emulated(made, feeds)["q"]
    assert np.array_equal(found, tiny.run(made, feeds)["q"])
    assert found.min() == 10  # the code of zero


def test_the_limits_that_a_device_gets_are_those_of_the_activation() -> None:
    """A Clip within the range of the codes leaves fewer of them."""
    asked: list[tuple[int, int]] = []

    class Asked(Plain):
        def requantize(self, *given: Any) -> NDArray[np.int32]:
            asked.append(given[-2:])
            return super().requantize(*given)

    made = integer_layer(
        "Conv", [1, 2, 5, 5], small(3, 2, 3, 3), behind=(relu("low high"),), result=1.0
    )
    made.graph.initializer.append(numpy_helper.from_array(np.float32(-3), "low"))
    made.graph.initializer.append(numpy_helper.from_array(np.float32(20), "high"))
    feeds = {"x": codes(1, 2, 5, 5)}
    found = emulated(made, feeds, Asked())["q"]
    assert asked == [(7, 30)]
    assert np.array_equal(found, tiny.run(made, feeds)["q"])


def test_a_result_that_others_read_is_computed_in_float() -> None:
    made = integer_layer("Conv", [1, 2, 5, 5], small(3, 2, 3, 3), behind=(relu(),), result=1.0)
    made.graph.output.append(tiny.info("l", None))
    (layer,) = layers(made)
    assert (layer.result, layer.output) == (None, "l")
    check = {"x": codes(1, 2, 5, 5)}
    found, wanted = emulated(made, check), tiny.run(made, check)
    assert all(np.array_equal(found[name], wanted[name]) for name in ("q", "l"))


@pytest.mark.parametrize("exact", [True, False])
def test_a_bias_that_is_added_behind(exact: bool) -> None:
    """As int32 codes it is part of the sums, in float it comes after them."""
    bias = np.array([3, -2, 100, 7], np.int32)
    constants = {"b": bias} if exact else {"bf": bias.astype(np.float32) * 0.125}
    nodes = [node("DequantizeLinear", "b sb zb", "bf")] if exact else []
    constants |= {"sb": np.float32(0.125), "zb": np.int32(0)} if exact else {}  # type: ignore[dict-item]
    made = integer_layer(
        "MatMul", [2, 3, 6], small(6, 4), result=2.0,
        behind=(*nodes, node("Add", "bf l", "a"), node("Relu", "a", "r")),
    )  # fmt: skip
    for name, array in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    (layer,) = layers(made)
    assert layer.exact_bias is exact
    assert layer.bias is not None
    assert layer.bias.tolist() == (bias * 0.125).tolist()
    feeds = {"x": codes(2, 3, 6)}
    assert np.array_equal(emulated(made, feeds)["q"], tiny.run(made, feeds)["q"])


def test_an_addition_that_is_no_bias_stays_one() -> None:
    made = integer_layer(
        "MatMul", [1, 4, 6], small(6, 4), behind=(node("Add", "l k", "a"),), result=2.0
    )
    made.graph.initializer.append(numpy_helper.from_array(tiny.normal(4, 1), "k"))
    (layer,) = layers(made)
    assert layer.bias is None
    assert layer.result is None


@pytest.mark.parametrize(("bias", "merged"), [((4,), True), ((1, 4), True), ((1, 1, 4), False)])
def test_a_bias_that_adds_an_axis_is_no_bias(bias: tuple[int, ...], merged: bool) -> None:
    made = integer_layer("MatMul", [2, 6], small(6, 4), behind=(node("Add", "l k", "y"),))
    made.graph.initializer.append(numpy_helper.from_array(np.full(bias, 0.5, np.float32), "k"))
    made.graph.value_info.append(tiny.info("l", [2, 4]))
    (layer,) = layers(made)
    assert (layer.bias is not None) == merged
    feeds = {"x": codes(2, 6)}
    assert np.array_equal(emulated(made, feeds)["y"], tiny.run(made, feeds)["y"])


@pytest.mark.parametrize(
    "attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}], ids=lambda one: next(iter(one))
)
def test_a_gemm_that_is_no_plain_product_is_computed_in_float(attributes: Any) -> None:
    made = integer_layer("Gemm", [6, 6], small(6, 4), axis=1, bias=4, **attributes)
    assert layers(made) == []
    feeds = {"x": codes(6, 6)}
    assert np.allclose(emulated(made, feeds)["y"], tiny.run(made, feeds)["y"], rtol=1e-6)


def test_a_scale_for_each_input_channel_is_no_integer_layer() -> None:
    """That is what guards a layer that stays float."""
    made = integer_layer("Conv", [1, 2, 5, 5], small(3, 2, 3, 3))
    for one in made.graph.initializer:
        if one.name in ("sx", "zx"):
            doubled = np.repeat(numpy_helper.to_array(one).reshape(1), 2)
            one.CopyFrom(numpy_helper.from_array(doubled, one.name))
    made.graph.node[0].attribute.append(helper.make_attribute("axis", 1))
    assert layers(made) == []


def test_a_scale_of_zero_is_no_integer_layer() -> None:
    """Only ONNX says what comes of it: a runner computes it."""
    made = integer_layer("Conv", [1, 2, 5, 5], small(3, 2, 3, 3), result=1.0)
    for one in made.graph.initializer:
        if one.name == "sy":
            one.CopyFrom(numpy_helper.from_array(np.float32(0), "sy"))
    (layer,) = layers(made)
    assert layer.result is None
    assert "q" in emulated(made, {"x": codes(1, 2, 5, 5)})


def test_constants_of_types_that_numpy_lacks() -> None:
    """Weights in eight bits of float are decoded once, by the runner."""
    kind = TensorProto.FLOAT8E4M3FN
    graph = helper.make_graph(
        [node("DequantizeLinear", "w s", "wf"), node("MatMul", "x wf", "y")],
        "decoded", [tiny.info("x", [1, 2])], [tiny.info("y", [1, 2])],
        [helper.make_tensor("w", kind, [2, 2], [1.0, 2.0, -3.0, 0.0]),
         helper.make_tensor("s", TensorProto.FLOAT, [], [0.5])],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    found = emulated(made, {"x": np.array([[2, 4]], np.float32)})
    assert found["y"].tolist() == [[-5.0, 2.0]]


def test_float_weights_that_are_quantized_in_the_graph_are_integers() -> None:
    """As NVIDIA's tool writes them, in opset 13, with a Constant and no zero point."""
    weights = tiny.normal(3, 2, 3, 3)
    made = tiny.model(
        [
            node("QuantizeLinear", "x sx zx", "xq"),
            node("DequantizeLinear", "xq sx zx", "xf"),
            node("Constant", "", "s", value=numpy_helper.from_array(np.float32(0.01))),
            node("QuantizeLinear", "w s zx", "wq"),
            node("DequantizeLinear", "wq s zx", "wf"),
            node("Conv", "xf wf b", "y"),
        ],
        {"x": [1, 2, 5, 5]},
        {"y": [1, 3, 3, 3]},
        {"w": weights, "b": tiny.normal(3), "sx": np.array(0.02, np.float32),
         "zx": np.array(0, np.int8)},
    )  # fmt: skip
    (layer,) = layers(made)
    assert not layer.exact_bias
    feeds = tiny.feeds(made)
    assert np.allclose(emulated(made, feeds)["y"], tiny.run(made, feeds)["y"], atol=1e-6)


# ----------------------------------------------------------------------------- whole networks

# Two roundings of one number differ by a step where it is next to a half, and what reads that code
# passes it on: through the few layers here no more than this many steps arrive.
STEPS = 2


@pytest.mark.parametrize("name", sorted(tiny.MODELS))
def test_tiny_networks_in_double_are_what_the_file_says(name: str, tmp_path: Any) -> None:
    path = tiny.save(tiny.MODELS[name](), tmp_path)
    output = tmp_path / "int8.onnx"
    original = onnx.load(path)
    quantize(path, output, data=[tiny.feeds(original, seed) for seed in range(4)])
    made = onnx.load(output)
    feeds = tiny.feeds(made, 9)
    program, _ = loaded(made)
    assert any(isinstance(step, Layer) for step in program.steps)
    found = emulated(made, feeds)
    kept = {one.name for one in made.graph.output}
    for one in program.watched:
        if one.quantized is not None:
            kind = helper.np_dtype_to_tensor_dtype(one.quantized.zero_point.dtype)
            made.graph.output.append(tiny.info(one.tensor, None, kind))
    wanted = tiny.run(made, feeds)
    assert kept <= found.keys()
    for one in program.watched:
        if one.quantized is None:
            assert cosine(wanted[one.tensor], found[one.tensor]) > 0.9999
            continue
        assert found[one.tensor].dtype == wanted[one.tensor].dtype
        difference = found[one.tensor].astype(int) - wanted[one.tensor].astype(int)
        assert np.abs(difference).max() <= STEPS
        assert (difference != 0).mean() < 0.02


def test_the_steps_of_a_network(tmp_path: Any) -> None:
    """What is watched has the float model's names; what computes nothing is left out."""
    path = tiny.save(tiny.two_outputs(), tmp_path)
    original = onnx.load(path)
    quantize(path, tmp_path / "q.onnx", data=[tiny.feeds(original)])
    program, _ = loaded(onnx.load(tmp_path / "q.onnx"))
    named = {value for one in original.graph.node for value in one.output} | {"x"}
    assert {one.name for one in program.watched} <= named
    assert [one.name for one in program.watched if one.output] == ["features", "logits"]
    assert not any(isinstance(one, Float) and "Linear" in one.node.op_type for one in program.steps)
    assert isinstance(program.steps[0], Encode)


def test_dead_nodes_are_not_computed() -> None:
    made = integer_layer("Conv", [1, 2, 5, 5], small(3, 2, 3, 3))
    made.graph.node.append(node("Exp", "xf", "nobody_reads_it"))
    assert len(loaded(made)[0].steps) == 1


# ---------------------------------------------------------------------------------- closeness


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_closeness_of_one_sample_is_that_of_the_definitions(seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    a = draw.standard_normal((3, 4)) * scale
    b = a + draw.standard_normal((3, 4)) * scale / 10
    found = Closeness()
    found.add(a, b)
    assert found.cosine == pytest.approx(cosine(a, b), abs=1e-12)
    assert found.sqnr == pytest.approx(sqnr(a, b), abs=1e-9)


def test_closeness_of_several_samples() -> None:
    found = Closeness()
    found.add(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    found.add(np.array([3.0, 0.0]), np.array([0.0, 3.0]))
    assert found.cosine == 0.5
    assert found.sqnr == pytest.approx(10 * np.log10(10 / 18))
    assert found.differing is None
    found.add_codes(np.array([0, 255], np.uint8), np.array([3, 255], np.uint8))
    found.add_codes(np.array([7, 8], np.uint8), np.array([7, 7], np.uint8))
    assert (found.steps, found.differing) == (3, 0.5)


def test_closeness_without_a_difference_or_a_signal() -> None:
    same, lost = Closeness(), Closeness()
    same.add(np.zeros(3), np.zeros(3))
    lost.add(np.zeros(3), np.ones(3))
    assert (same.cosine, same.sqnr) == (1.0, float("inf"))
    assert (lost.cosine, lost.sqnr) == (0.0, float("-inf"))
