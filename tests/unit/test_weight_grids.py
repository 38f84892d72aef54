from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq_core.arithmetic import dequantize, quantize, weight_parameters
from ptq_core.errors import NumericError
from ptq_core.types import QScheme
from ptq_core.weights import groups
from ptq_core.weights.grid import Strategy, max_min_parameters, quantize_weight
from ptq_core.weights.groups import group_shape
from ptq_core.weights.quantized import QuantizedWeight

WIDTHS = range(1, 17)
STRATEGIES: list[Strategy] = ["MAX_MIN", "MSE"]
LARGEST = np.finfo(np.float32).max
FLOAT32 = 2.0**-23  # relative: what decoding in float32 leaves of an exact formula
SUBNORMAL = 2.0**-126  # below it float32 has steps of its own

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 12)),
    elements=st.floats(-1000, 1000, width=32),
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def squared_error(weight: np.ndarray, result: QuantizedWeight, axis: int = 0) -> np.ndarray:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return ((result.dequantize().astype(np.float64) - weight) ** 2).sum(axis=others)


def least_error(channel: np.ndarray, bits: int) -> float:
    """Of all affine grids: over all ways to cut the sorted weights into runs of equal codes."""
    reals = np.sort(channel.astype(np.float64))
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(reals) + 1), 2**bits - 1):
        codes = np.searchsorted(cuts, np.arange(len(reals)), side="right").astype(np.float64)
        plane = np.stack([codes, np.ones_like(codes)], axis=1)
        residual = reals - plane @ np.linalg.lstsq(plane, reals)[0]
        best = min(best, float(residual @ residual))
    return best


def assert_well_formed(result: QuantizedWeight, weight: np.ndarray) -> None:
    limit = 2 ** (result.bits - 1)
    assert result.codes.dtype == (np.int8 if result.bits <= 8 else np.int16)
    assert result.codes.min(initial=0) >= -limit
    assert result.codes.max(initial=0) < limit
    assert result.shape == weight.shape
    for field, dtype in [
        (result.scale, np.float32),
        (result.offset, np.float32),
        (result.zero_point, np.int64),
        (result.variance, np.float64),
        (result.mean, np.float64),
    ]:
        assert field.dtype == dtype
        assert field.shape == result.scale.shape
        assert field.ndim == result.codes.ndim
    assert (result.scale > 0).all()
    assert np.isfinite(result.dequantize()).all()


# ------------------------------------------------------------------------------------ MAX_MIN


@pytest.mark.parametrize(
    ("low", "high", "bits", "encoded", "scale", "zero_point"),
    [
        (-5.1, 5.1, 8, (-5.12, 5.08), 0.04, 0),
        (1, 5, 8, (0, 5), 0.0196078, -128),
        (-5, -1, 8, (-5, 0), 0.0196078, 127),
        (-1, 3, 8, (-1.0039216, 2.9960785), 0.0156863, -64),
        (0, 6, 8, (0, 6), 0.0235294, -128),
        (0.5, 0.5, 8, (0, 0.5), 0.0019608, -128),
        (-1, 1, 4, (-1.0667, 0.9333), 0.133333, 0),
        (-1, 1, 1, (-2, 0), 2, 0),
    ],
)
def test_max_min_parameters_are_those_of_the_table(low, high, bits, encoded, scale, zero_point):
    ends = (np.array([float(np.float32(end))]) for end in (low, high))
    found, zero = max_min_parameters(*ends, bits)
    assert found[0] == pytest.approx(scale, rel=3e-5)
    assert zero[0] == zero_point
    codes = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    assert (codes - zero[0]) * found[0] == pytest.approx(encoded, rel=5e-5)


@pytest.mark.parametrize("bits", [8, 16])
def test_max_min_is_the_arithmetic_of_full_quantization(bits):
    weight = normal(40, 30, seed=bits)
    scheme = QScheme(dtype=f"int{bits}")
    expected = weight_parameters(weight, scheme, 0)
    result = quantize_weight(weight, bits, (0,), strategy="MAX_MIN", correct=False)
    np.testing.assert_array_equal(result.codes, quantize(weight, expected))
    np.testing.assert_array_equal(result.scale[:, 0], expected.scale)
    np.testing.assert_array_equal(result.zero_point[:, 0], expected.zero_point)
    # the same but for the rounding of the product and the sum in float32
    np.testing.assert_allclose(
        result.dequantize(),
        dequantize(quantize(weight, expected), expected),
        atol=4 * np.abs(weight).max() * FLOAT32,
    )


@given(weights, st.sampled_from(WIDTHS))
def test_zero_stays_zero_without_correction(weight, bits):
    result = quantize_weight(weight, bits, (0,), strategy="MAX_MIN", correct=False)
    spread = np.ptp(weight, axis=1) > 0
    zero = result.zero_point.astype(np.float32) * result.scale + result.offset
    assert (zero[spread] == 0).all()
    assert not np.signbit(result.offset[result.zero_point == 0]).any() or (result.offset < 0).any()
    assert (result.variance == 1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("correct", [False, True])
def test_symmetric_weights_have_no_offset(strategy, correct):
    weight = np.array([[-1.0, -0.503, -0.11, 0.0, 0.11, 0.503, 1.0]], np.float32) * np.float32(0.9)
    result = quantize_weight(weight, 8, (0,), strategy=strategy, correct=correct)
    if strategy == "MSE" or not correct:  # MAX_MIN cuts off the positive end: a mean to correct
        assert result.offset.tobytes() == np.zeros((1, 1), np.float32).tobytes()
    assert result.codes[0, 3] == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axes", [(0,), (1,), ()])
def test_correction_gives_mean_and_variance_back(bits, axes):
    weight = normal(32, 48, seed=bits) * np.linspace(0.1, 2, 48, dtype=np.float32) + np.float32(0.3)
    plain = quantize_weight(weight, bits, axes, strategy="MAX_MIN", correct=False)
    result = quantize_weight(weight, bits, axes, strategy="MAX_MIN", correct=True)
    others = tuple(axis for axis in (0, 1) if axis not in axes)
    wanted, reals, before = (
        one.astype(np.float64) for one in (weight, result.dequantize(), plain.dequantize())
    )
    np.testing.assert_allclose(reals.mean(axis=others), wanted.mean(axis=others), atol=1e-6)
    np.testing.assert_allclose(reals.std(axis=others), wanted.std(axis=others), rtol=1e-6)
    np.testing.assert_array_equal(result.codes, plain.codes)
    factor = wanted.std(axis=others) / before.std(axis=others)
    np.testing.assert_allclose(result.variance.reshape(factor.shape), factor, rtol=1e-5)
    summand = wanted.mean(axis=others) - before.mean(axis=others) * factor
    np.testing.assert_allclose(result.mean.reshape(factor.shape), summand, atol=1e-6)


def test_a_channel_whose_codes_are_all_equal_keeps_its_mean():
    weight = np.array([[1.0, 1.01, 0.99, 1.0, -0.2, 1.0]], np.float32)
    result = quantize_weight(weight[:, :4], 1, (0,), strategy="MAX_MIN", correct=True)
    assert (result.codes == result.codes[0, 0]).all()
    assert result.variance.item() == 1
    assert result.dequantize()[0] == pytest.approx(1.0, abs=1e-6)


# ---------------------------------------------------------------------------------------- MSE


@pytest.mark.parametrize("seed", range(40))
def test_one_bit_is_the_optimum(seed):
    weight = normal(1, 9, seed=seed) ** 3
    result = quantize_weight(weight, 1, (0,), strategy="MSE", correct=True)
    assert squared_error(weight, result)[0] == pytest.approx(least_error(weight[0], 1), rel=1e-5)


def test_two_bits_are_near_the_optimum():
    """A search of several starts; what is left on the smallest channels is asserted, too."""
    weight = np.concatenate([normal(30, 9, seed=1), normal(30, 9, seed=2) ** 3, normal(30, 9) + 2])
    found = squared_error(weight, quantize_weight(weight, 2, (0,), strategy="MSE", correct=True))
    least = np.array([least_error(channel, 2) for channel in weight])
    assert (found >= least * (1 - 1e-5)).all()
    assert np.mean(found <= least * 1.0001) > 0.9
    assert found.sum() / least.sum() < 1.1


@pytest.mark.parametrize(
    ("bits", "error"), [(1, 0.3634), (2, 0.1188), (3, 0.03744), (4, 0.01154), (5, 0.003495)]
)
def test_normal_weights_reach_the_known_least_error(bits, error):
    """Max 1960, "Quantizing for Minimum Distortion", table II: equally spaced levels."""
    weight = normal(1, 400_000)
    result = quantize_weight(weight, bits, (), strategy="MSE", correct=False)
    assert squared_error(weight, result).sum() / weight.size == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_corrected_mse_keeps_the_variance_from_three_bits_on(bits):
    """Section 15 item 17 of the reference: the mean only at 1 and 2 bits."""
    weight = normal(8, 300) + np.float32(0.4)
    plain = quantize_weight(weight, bits, (0,), strategy="MSE", correct=False)
    result = quantize_weight(weight, bits, (0,), strategy="MSE", correct=True)
    np.testing.assert_array_equal(result.codes, plain.codes)
    wanted, reals = weight.astype(np.float64), result.dequantize().astype(np.float64)
    np.testing.assert_allclose(reals.mean(axis=1), wanted.mean(axis=1), atol=1e-6)
    if bits <= 2:
        assert (result.variance == 1).all()
        assert (reals.std(axis=1) < wanted.std(axis=1)).all()
        return
    assert (result.variance > 1).all()
    np.testing.assert_allclose(reals.std(axis=1), wanted.std(axis=1), rtol=1e-6)
    np.testing.assert_allclose(reals, plain.dequantize() * result.variance + result.mean, atol=1e-5)


@given(weights, st.sampled_from(WIDTHS))
def test_mse_keeps_the_mean_and_is_never_worse_than_max_min(weight, bits):
    result = quantize_weight(weight, bits, (0,), strategy="MSE", correct=False)
    rounding = np.abs(weight).max(axis=1).astype(np.float64) * FLOAT32 * 4 + SUBNORMAL
    means = result.dequantize().astype(np.float64).mean(axis=1)
    assert (np.abs(means - weight.mean(axis=1, dtype=np.float64)) <= rounding).all()
    error = squared_error(weight, result)
    slack = weight.shape[1] * rounding**2
    for correct in (False, True):
        other = quantize_weight(weight, bits, (0,), strategy="MAX_MIN", correct=correct)
        assert (error <= squared_error(weight, other) * 1.001 + slack).all()


def test_an_outlier_does_not_cost_the_rest():
    weight = normal(1, 10_000) * np.float32(0.01)
    weight[0, 0] = 0.1
    mse, whole = (
        squared_error(weight, quantize_weight(weight, 4, (0,), strategy=one, correct=False))[0]
        for one in STRATEGIES[::-1]
    )
    assert mse < whole / 2


# ------------------------------------------------------------------------ channels and groups


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bits", [1, 3, 9])
@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_channels_are_quantized_one_by_one(strategy, bits, axes, monkeypatch):
    weight = normal(3, 4, 20)
    whole = quantize_weight(weight, bits, axes, strategy=strategy, correct=True)
    assert_well_formed(whole, weight)
    assert whole.scale.shape == tuple(weight.shape[i] if i in axes else 1 for i in range(3))
    others = [slice(None) if i not in axes else None for i in range(3)]
    for at in itertools.product(*(range(weight.shape[i]) for i in axes)):
        picked = iter(at)
        index = tuple(next(picked) if one is None else one for one in others)
        alone = quantize_weight(
            np.ascontiguousarray(weight[index]), bits, (), strategy=strategy, correct=True
        )
        np.testing.assert_array_equal(whole.codes[index], alone.codes)
        np.testing.assert_allclose(whole.dequantize()[index], alone.dequantize(), rtol=1e-6)
    monkeypatch.setattr(groups, "_PIECE", 50)  # blocks of few channels
    again = quantize_weight(weight, bits, axes, strategy=strategy, correct=True)
    np.testing.assert_array_equal(again.codes, whole.codes)
    np.testing.assert_array_equal(again.scale, whole.scale)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_groups_are_channels_of_slices(strategy):
    convolution, matrix = normal(6, 4, 3, 3), normal(48, 5)
    result = quantize_weight(convolution, 4, (0,), strategy=strategy, correct=True, groups=12)
    assert_well_formed(result, convolution)
    assert (result.codes.shape, result.scale.shape) == ((6, 3, 12), (6, 3, 1))
    slices = convolution.reshape(6, 36)
    for at in range(3):
        own = slices[:, 12 * at : 12 * at + 12]
        alone = quantize_weight(own, 4, (0,), strategy=strategy, correct=True)
        np.testing.assert_array_equal(
            result.dequantize().reshape(6, 3, 12)[:, at], alone.dequantize()
        )
    result = quantize_weight(matrix, 4, (1,), strategy=strategy, correct=True, groups=16)
    assert_well_formed(result, matrix)
    assert (result.codes.shape, result.scale.shape) == ((3, 16, 5), (3, 1, 5))
    for at in range(3):
        own = np.ascontiguousarray(matrix[16 * at : 16 * at + 16])
        alone = quantize_weight(own, 4, (1,), strategy=strategy, correct=True)
        np.testing.assert_array_equal(
            result.dequantize()[16 * at : 16 * at + 16], alone.dequantize()
        )


@pytest.mark.parametrize(
    ("shape", "axes", "size", "expected"),
    [
        ((8, 4, 3, 3), (0,), 12, ((8, 3, 12), (0, 1))),
        ((8, 4, 3, 3), (0,), 32, None),  # 36 is no multiple
        ((8, 4, 3, 3), (0,), 36, None),  # one group is one scale per channel
        ((64, 10), (1,), 16, ((4, 16, 10), (0, 2))),
        ((2, 64, 10), (2,), 16, ((8, 16, 10), (0, 2))),
        ((1, 40, 32), (0, 1), 16, ((1, 40, 2, 16), (0, 1, 2))),
        ((64, 10), (), 16, ((40, 16), (0,))),
        ((32, 8, 2, 2), (1,), 16, ((2, 16, 8, 2, 2), (0, 2))),
        ((4, 6, 5), (0, 2), 3, None),
        ((10, 1), (0,), 16, None),
    ],
)
def test_how_groups_divide_a_weight(shape, axes, size, expected):
    assert group_shape(shape, axes, size) == expected


def test_inputs_that_do_not_divide_share_one_scale_per_channel():
    weight = normal(4, 10)
    result = quantize_weight(weight, 4, (0,), strategy="MSE", correct=True, groups=4)
    assert (result.codes.shape, result.scale.shape) == ((4, 10), (4, 1))


# -------------------------------------------------------------------------------- hard weights


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -7.3, 1e-30, LARGEST, -LARGEST, 1e-45])
def test_constant_channels_are_exact(strategy, correct, bits, value):
    weight = np.full((3, 7), value, np.float32)
    weight[1] = normal(7)
    result = quantize_weight(weight, bits, (0,), strategy=strategy, correct=correct)
    assert_well_formed(result, weight)
    np.testing.assert_array_equal(result.dequantize()[[0, 2]], weight[[0, 2]])
    assert (result.codes[[0, 2]] == 0).all()
    assert not np.signbit(result.offset[result.offset == 0]).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(
    "channel",
    [
        [-LARGEST, LARGEST, 1.0, 0.0],
        [LARGEST, LARGEST / 2, LARGEST / 3, LARGEST / 5],
        [-LARGEST, -LARGEST / 2, 0.0, -1.0],
        [1e-45, -1e-45, 0.0, 3e-45],
        [1e-38, 1.5e-38, 2e-38, 0.0],
        [1e-12, -1e-12, 3e-12, 2e-12],
        [LARGEST, 1e-45, 0.0, 0.0],
        [1.0, 1.0, 1.0, float(np.nextafter(np.float32(1), np.float32(2)))],
    ],
)
def test_the_ends_of_float32_neither_overflow_nor_vanish(strategy, bits, channel):
    weight = np.array([channel], np.float32)
    for correct in (False, True):
        result = quantize_weight(weight, bits, (0,), strategy=strategy, correct=correct)
        assert_well_formed(result, weight)
        with np.errstate(all="raise", under="ignore"):
            reals = result.dequantize().astype(np.float64)
        largest = np.abs(weight).max().astype(np.float64)
        assert np.abs(reals).max() <= 3 * largest + 1e-37
        if bits >= 8 and 1e-37 < largest < LARGEST / 4:
            assert np.abs(reals - weight).max() <= largest * 2.0 ** (1 - bits)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((0, 4), (0,)), ((4, 0), (0,)), ((0,), ()), ((1, 1), (0,)), ((), ()), ((2, 1, 3, 1, 2), (0,))],
)
def test_empty_and_odd_shapes(strategy, shape, axes):
    weight = normal(*shape) if shape else np.float32(1.5).reshape(())
    result = quantize_weight(weight, 4, axes, strategy=strategy, correct=True)
    assert_well_formed(result, weight)
    assert result.dequantize().shape == shape


def test_weights_that_are_not_finite_are_counted():
    weight = normal(4, 5)
    weight[1, 2], weight[3, 0], weight[3, 1] = np.nan, np.inf, -np.inf
    with pytest.raises(NumericError, match="3 of 20 weights are NaN or infinite"):
        quantize_weight(weight, 8, (0,), strategy="MAX_MIN", correct=True)


def test_a_width_out_of_range_is_refused():
    with pytest.raises(ValueError, match="1 to 16 bits, found 17"):
        quantize_weight(normal(2, 2), 17, (0,), strategy="MSE", correct=True)


def test_a_large_layer_with_one_scale_is_read_in_pieces():
    """The search sees a part of it, and the pieces together are the whole."""
    weight = normal(1200, 1000)
    result = quantize_weight(weight, 4, (), strategy="MSE", correct=True)
    assert_well_formed(result, weight)
    assert result.dequantize().mean(dtype=np.float64) == pytest.approx(
        weight.mean(dtype=np.float64), abs=1e-7
    )
    assert squared_error(weight, result).sum() / weight.size == pytest.approx(0.01154, rel=0.01)
