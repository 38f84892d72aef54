from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ptq_core.arithmetic import round_half_away
from ptq_core.errors import NumericError
from ptq_core.weights.gptq import gptq
from ptq_core.weights.grid import quantize_weight
from ptq_core.weights.hessian import Hessian, LayerInput, layer_input
from ptq_core.weights.quantized import QuantizedWeight


def correlated(samples: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Inputs that go together, with a mean."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((inputs, inputs)) * np.exp(-np.arange(inputs) / (inputs / 4))
    return (generator.standard_normal((samples, inputs)) @ mix.T + 0.3).astype(np.float32)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hessian_of(inputs: np.ndarray) -> np.ndarray:
    found = Hessian(LayerInput(inputs=inputs.shape[1]))
    found.add(inputs)
    return found.matrix()


def output_error(weight: np.ndarray, result: QuantizedWeight, inputs: np.ndarray) -> np.ndarray:
    """Of each output channel of a Conv with a kernel of one, or a Gemm with transB."""
    difference = (weight - result.dequantize()).reshape(len(weight), -1).astype(np.float64)
    return ((inputs @ difference.T) ** 2).sum(axis=0)


def nearest(weight: np.ndarray, grid: QuantizedWeight) -> np.ndarray:
    reals = weight.reshape(grid.codes.shape).astype(np.float64)
    limit = 2 ** (grid.bits - 1)
    return np.clip(round_half_away((reals - grid.offset) / grid.scale), -limit, limit - 1)


# ------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize(
    ("bits", "strategy"), [(1, "MSE"), *itertools.product([2, 3, 4, 8], ["MAX_MIN", "MSE"])]
)
def test_the_output_comes_closer_than_by_rounding(bits, strategy):
    weight, inputs = normal(24, 160), correlated(1000, 160)
    start = quantize_weight(weight, bits, (0,), strategy=strategy, correct=False)
    before = output_error(weight, start, inputs)
    kept = gptq(weight, hessian_of(inputs), start, 0, refit=False)
    np.testing.assert_array_equal(kept.scale, start.scale)
    np.testing.assert_array_equal(kept.offset, start.offset)
    np.testing.assert_array_equal(kept.zero_point, start.zero_point)
    fitted = gptq(weight, hessian_of(inputs), start, 0, correct=False)
    # a third of the error goes even where one bit leaves little to choose
    assert output_error(weight, kept, inputs).sum() < before.sum() * 2 / 3
    assert output_error(weight, fitted, inputs).sum() < output_error(weight, kept, inputs).sum()
    if bits in (3, 4):
        assert output_error(weight, fitted, inputs).sum() < before.sum() / 3


def test_on_inputs_that_were_not_seen():
    weight, inputs = normal(24, 64), correlated(4000, 64)
    start = quantize_weight(weight, 3, (0,), strategy="MSE", correct=False)
    result = gptq(weight, hessian_of(inputs[:2000]), start, 0)
    before, after = (output_error(weight, one, inputs[2000:]).sum() for one in (start, result))
    assert after < before / 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_inputs_that_do_not_go_together_are_rounded(bits):
    weight = normal(8, 40)
    hessian = np.diag(np.linspace(0.1, 3, 40))[None]
    start = quantize_weight(weight, bits, (0,), strategy="MAX_MIN", correct=False)
    result = gptq(weight, hessian, start, 0, refit=False)
    np.testing.assert_array_equal(result.codes, nearest(weight, start))
    empty = gptq(weight, np.zeros((1, 40, 40)), start, 0, refit=False)
    np.testing.assert_array_equal(empty.codes, nearest(weight, start))


def test_small_layers_come_near_the_best_codes_there_are():
    """Against all 4**6 choices for a channel, the grid being fixed."""
    weight, inputs = normal(40, 6), correlated(200, 6)
    start = quantize_weight(weight, 2, (0,), strategy="MSE", correct=False)
    result = gptq(weight, hessian_of(inputs), start, 0, refit=False)
    choices = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float32)
    ratios = []
    for row, found in enumerate(output_error(weight, result, inputs)):
        reals = choices * start.scale[row] + start.offset[row]
        least = ((inputs @ (weight[row] - reals).T.astype(np.float64)) ** 2).sum(axis=0).min()
        ratios.append(found / least)
    assert np.median(ratios) < 1.2


@pytest.mark.parametrize("bits", [2, 4])
def test_fitted_scale_and_offset_are_the_best_for_the_codes(bits):
    """Least squares at the output, damping included, against NumPy's own solution."""
    weight, inputs = normal(5, 30), correlated(500, 30)
    start = quantize_weight(weight, bits, (0,), strategy="MSE", correct=False)
    result = gptq(weight, hessian_of(inputs), start, 0, correct=False)
    power = np.einsum("ni,ni->", inputs.astype(np.float64), inputs) / 30
    seen = np.concatenate([inputs, np.sqrt(0.01 * power) * np.eye(30)]).astype(np.float64)
    for row, codes in enumerate(result.codes.astype(np.float64)):
        plane = np.stack([seen @ codes, seen.sum(axis=1)], axis=1)
        scale, offset = np.linalg.lstsq(plane, seen @ weight[row].astype(np.float64))[0]
        assert result.scale[row, 0] == pytest.approx(scale, rel=1e-4)
        assert result.offset[row, 0] == pytest.approx(offset, abs=1e-3)


@pytest.mark.parametrize("axes", [(0,), ()])
def test_corrected_outputs_keep_their_power(axes):
    weight, inputs = normal(6, 40), correlated(500, 40)
    start = quantize_weight(weight, 2, axes, strategy="MSE", correct=False)
    hessian = hessian_of(inputs)
    damped = hessian[0] + 0.01 * np.trace(hessian[0]) / 40 * np.eye(40)

    def power(reals: np.ndarray) -> np.ndarray:
        powers = np.einsum("oi,ij,oj->o", reals.astype(np.float64), damped, reals)
        return powers if axes else powers.sum()

    plain, result = (gptq(weight, hessian, start, 0, correct=one) for one in (False, True))
    assert (power(plain.dequantize()) < power(weight)).all()
    np.testing.assert_allclose(power(result.dequantize()), power(weight), rtol=1e-5)
    np.testing.assert_array_equal(result.codes, plain.codes)
    np.testing.assert_allclose(result.scale, plain.scale * result.variance, rtol=1e-6)
    assert result.variance.shape == start.variance.shape


def test_a_matrix_is_the_transposed_weights():
    weight, inputs = normal(10, 64), correlated(300, 64)
    for groups in (None, 16):
        rows = quantize_weight(weight, 3, (0,), strategy="MSE", correct=False, groups=groups)
        columns = quantize_weight(weight.T, 3, (1,), strategy="MSE", correct=False, groups=groups)
        one = gptq(weight, hessian_of(inputs), rows, 0)
        other = gptq(weight.T, hessian_of(inputs), columns, 1)
        assert (one.codes.shape, other.codes.shape) == (rows.codes.shape, columns.codes.shape)
        assert other.scale.shape == columns.scale.shape
        np.testing.assert_allclose(one.dequantize(), other.dequantize().T, atol=1e-6)


def test_groups_have_scales_of_their_own():
    weight, inputs = normal(12, 128), correlated(900, 128)
    weight *= np.repeat(np.float32([1, 5, 0.2, 2]), 32)
    channel, grouped = (
        quantize_weight(weight, 3, (0,), strategy="MSE", correct=False, groups=groups)
        for groups in (None, 32)
    )
    result = gptq(weight, hessian_of(inputs), grouped, 0, correct=False)
    assert (result.codes.shape, result.scale.shape) == ((12, 4, 32), (12, 4, 1))
    assert result.offset.shape == result.variance.shape == result.zero_point.shape == (12, 4, 1)
    per_channel = gptq(weight, hessian_of(inputs), channel, 0, correct=False)
    error, before, other = (
        output_error(weight, one, inputs).sum() for one in (result, grouped, per_channel)
    )
    assert error < before / 2
    assert error < other


def test_one_scale_for_the_layer_stays_one():
    weight, inputs = normal(12, 64), correlated(900, 64)
    start = quantize_weight(weight, 3, (), strategy="MSE", correct=False)
    result = gptq(weight, hessian_of(inputs), start, 0, correct=False)
    assert result.scale.shape == (1, 1)
    before, after = (output_error(weight, one, inputs).sum() for one in (start, result))
    assert after < before / 2


def test_channels_do_not_depend_on_each_other():
    weight, inputs = normal(12, 64), correlated(900, 64)
    start = quantize_weight(weight, 3, (0,), strategy="MSE", correct=False)
    part = quantize_weight(weight[3:5], 3, (0,), strategy="MSE", correct=False)
    whole = gptq(weight, hessian_of(inputs), start, 0, correct=False)
    alone = gptq(weight[3:5], hessian_of(inputs), part, 0)
    np.testing.assert_array_equal(whole.codes[3:5], alone.codes)


@pytest.mark.parametrize("bits", [1, 4])
def test_constant_channels_and_silent_inputs(bits):
    weight, inputs = normal(4, 32), correlated(300, 32)
    weight[1], weight[2] = 0.25, 0.0
    inputs[:, :5] = 0.0  # as behind a Relu that never opens
    start = quantize_weight(weight, bits, (0,), strategy="MSE", correct=False)
    result = gptq(weight, hessian_of(inputs), start, 0, correct=False)
    assert np.isfinite(result.dequantize()).all()
    np.testing.assert_allclose(result.dequantize()[1:3], weight[1:3], atol=1e-6)
    before, after = (output_error(weight, one, inputs) for one in (start, result))
    assert (after <= before + 1e-9).all()


def test_inputs_that_are_not_finite_are_refused():
    weight = normal(4, 8)
    start = quantize_weight(weight, 4, (0,), strategy="MSE", correct=False)
    with pytest.raises(NumericError, match="inputs are not finite"):
        gptq(weight, np.full((1, 8, 8), np.nan), start, 0)


@pytest.mark.parametrize("shape", [(12, 4, 1, 1), (12, 4, 3, 3)])
def test_factors_of_the_inputs_are_those_of_the_weights(shape):
    """A weight divided by factors, and inputs that come multiplied by them, are one problem."""
    weight, factors = normal(*shape), np.exp2(np.arange(-1, 3)).astype(np.float32)
    inputs = correlated(400, weight[0].size)
    many = np.repeat(factors, weight[0, 0].size)
    divided = weight / factors[:, None, None]
    start = quantize_weight(divided, 3, (0,), strategy="MSE", correct=False)
    factored = replace(start, input_scale=factors[None, :, None, None])
    result = gptq(weight, hessian_of(inputs), factored, 0)
    other = gptq(divided, hessian_of(inputs * many), start, 0)
    np.testing.assert_array_equal(result.codes, other.codes)
    np.testing.assert_allclose(result.scale, other.scale, rtol=1e-5)
    before, after = (output_error(weight, one, inputs).sum() for one in (factored, result))
    assert after < before / 2


def test_scales_that_are_no_output_channels_are_refused():
    weight = normal(8, 4)
    start = quantize_weight(weight, 4, (1,), strategy="MSE", correct=False)
    with pytest.raises(ValueError, match="a scale has to be the layer's"):
        gptq(weight, np.eye(4)[None], start, 0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_weights_at_the_end_of_float32(bits):
    weight = np.sign(normal(4, 8)) * np.finfo(np.float32).max
    start = quantize_weight(weight, bits, (0,), strategy="MSE", correct=True)
    result = gptq(weight, hessian_of(correlated(100, 8)), start, 0)
    with np.errstate(all="raise"):
        assert np.isfinite(result.dequantize()).all()


def test_an_empty_weight():
    weight = np.zeros((0, 8), np.float32)
    start = quantize_weight(weight, 4, (0,), strategy="MSE", correct=False)
    assert gptq(weight, np.zeros((1, 8, 8)), start, 0).codes.shape == (0, 8)


# ------------------------------------------------------------------------------------ hessian


def convolve(values: np.ndarray, weight: np.ndarray, attributes: dict) -> np.ndarray:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info("x", 1, values.shape),
            onnx.helper.make_tensor_value_info("w", 1, weight.shape),
        ],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": values, "w": weight})[0]


def node_of(op_type: str, **attributes) -> ir.Node:
    return ir.node(op_type, [ir.val("x"), ir.val("w")], attributes)


@pytest.mark.parametrize(
    ("channels", "weight", "attributes"),
    [
        (3, (4, 3, 3, 3), {}),
        (3, (4, 3, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        (4, (6, 2, 3, 2), {"group": 2, "dilations": [2, 3], "pads": [1, 1, 1, 1]}),
        (5, (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
        (4, (8, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
        (6, (4, 6, 1, 1), {}),
        (6, (4, 6, 1, 1), {"strides": [2, 2]}),
        (3, (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        (3, (4, 3, 2, 4), {"auto_pad": "SAME_LOWER"}),
        (3, (4, 3, 3, 3), {"auto_pad": "VALID"}),
        (3, (4, 3, 5), {"pads": [2, 2]}),
        (2, (4, 2, 2, 3, 2), {"strides": [1, 2, 1]}),
    ],
)
def test_the_hessian_gives_the_size_of_a_convolutions_output(channels, weight, attributes):
    values = normal(2, channels, *((9, 8, 7)[: len(weight) - 2]))
    change = normal(*weight, seed=2)
    layer = layer_input(node_of("Conv", **attributes), weight)
    found = Hessian(layer)
    found.add(values[:1])
    found.add(values[1:])
    output = convolve(values, change, attributes).astype(np.float64)
    rows = change.reshape(layer.groups, -1, layer.inputs).astype(np.float64)
    expected = np.einsum("goi,gij,goj->go", rows, found.matrix(), rows).reshape(-1)
    others = (0, *range(2, output.ndim))
    np.testing.assert_allclose((output**2).mean(axis=others), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("node", "weight", "values", "rows"),
    [
        (node_of("MatMul"), (6, 4), (2, 5, 6), lambda x: x.reshape(-1, 6)),
        (node_of("MatMul"), (6, 4), (6,), lambda x: x.reshape(-1, 6)),
        (node_of("Gemm"), (6, 4), (5, 6), lambda x: x),
        (node_of("Gemm", transB=1), (4, 6), (5, 6), lambda x: x),
        (node_of("Gemm", transA=1), (6, 4), (6, 5), lambda x: x.T),
    ],
)
def test_the_hessian_of_a_matrix(node, weight, values, rows):
    array = normal(*values)
    found = Hessian(layer_input(node, weight))
    found.add(array)
    seen = rows(array)
    np.testing.assert_allclose(found.matrix()[0], seen.T @ seen / len(seen), rtol=1e-5, atol=1e-6)


def test_some_positions_stand_for_all():
    values = normal(2, 3, 64, 64).cumsum(axis=2).cumsum(axis=3) / 64
    layer = layer_input(node_of("Conv"), (4, 3, 3, 3))
    every, some = Hessian(layer, positions=10**6), Hessian(layer, positions=512)
    for one in (every, some):
        one.add(values)
    whole = every.matrix()
    assert np.linalg.norm(some.matrix() - whole) < 0.1 * np.linalg.norm(whole)
    again = Hessian(layer, positions=512)
    again.add(values)
    np.testing.assert_array_equal(again.matrix(), some.matrix())
    rows = Hessian(LayerInput(inputs=4), positions=10)
    rows.add(normal(3, 50, 4))
    assert np.linalg.matrix_rank(rows.matrix()[0]) == 4


@pytest.mark.parametrize(
    ("op_type", "shape"),
    [("ConvTranspose", (3, 4, 3, 3)), ("MatMul", (2, 3, 4)), ("LSTM", (1, 8, 4))],
)
def test_what_cannot_be_measured_is_said(op_type, shape):
    assert layer_input(node_of(op_type), shape) is None


def test_depthwise_layers_have_a_hessian_for_each_channel():
    values = normal(4, 32, 12, 12).cumsum(axis=3)
    weight = normal(32, 1, 3, 3, seed=3)
    layer = layer_input(node_of("Conv", group=32), weight.shape)
    found = Hessian(layer)
    found.add(values)
    assert found.matrix().shape == (32, 9, 9)
    start = quantize_weight(weight, 3, (0,), strategy="MSE", correct=False)
    result = gptq(weight, found.matrix(), start, 0)
    errors = [
        (convolve(values, weight - one.dequantize(), {"group": 32}).astype(np.float64) ** 2).sum()
        for one in (result, start)
    ]
    assert errors[0] < errors[1] * 0.6
