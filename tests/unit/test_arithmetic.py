from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ptq_core.arithmetic import (
    QParams,
    cosine,
    dequantize,
    fit_within,
    parameters,
    quantize,
    quantize_bias,
    range_parameters,
    round_half_away,
    sqnr,
    weight_parameters,
    widen_for_bias,
)
from ptq_core.errors import NumericError
from ptq_core.types import QScheme, Range

U8 = QScheme(dtype="uint8")
S8 = QScheme(dtype="int8")
W8 = QScheme(dtype="int8", symmetric=True, narrow_range=True)
SCHEMES = [
    QScheme(dtype=dtype, symmetric=symmetric, narrow_range=narrow)  # type: ignore[arg-type]
    for dtype in ("int8", "uint8", "int16", "uint16")
    for symmetric in (False, True)
    for narrow in (False, True)
]
EPSILON = np.finfo(np.float32).eps

bounds = st.floats(-1e6, 1e6, allow_subnormal=False)
intervals = st.tuples(bounds, bounds).map(sorted)
schemes = st.sampled_from(SCHEMES)


def all_codes(params: QParams) -> np.ndarray:
    scheme = params.scheme
    return np.arange(scheme.qmin, scheme.qmax + 1).astype(scheme.dtype)


# -------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 1),
        (-0.5, -1),
        (1.5, 2),
        (2.5, 3),
        (-2.5, -3),
        (0.49999999999999994, 0),  # adding 0.5 gives exactly 1.0
        (-0.49999999999999994, 0),
        (4503599627370495.5, 4503599627370496),
        (4503599627370497.0, 4503599627370497),  # 2**52 + 1: adding 0.5 is a tie, to even
        (-9007199254740991.0, -9007199254740991),
        (1e300, 1e300),
        (0.0, 0),
    ],
)
def test_rounding_is_half_away_from_zero(value: float, expected: float) -> None:
    assert round_half_away(value) == expected


@given(st.floats(-1e15, 1e15))
def test_rounding_goes_to_a_nearest_integer_and_is_odd(value: float) -> None:
    rounded = float(round_half_away(value))
    assert rounded == math.trunc(rounded)
    assert abs(rounded - value) <= 0.5
    assert round_half_away(-value) == -rounded


# ------------------------------------------------------------------------------ parameters

# seed-semantics section 5: low, high, narrow, symmetric; encoded low and high, scale, zero point.
GOLDEN = [
    (-5.1, 5.1, False, False, -5.12, 5.08, 0.04, 0),
    (1, 5, False, False, 0, 5, 0.0196078, -128),
    (-5, -1, False, False, -5, 0, 0.0196078, 127),
    (-1, 3, False, False, -1.0039216, 2.9960785, 0.0156863, -64),
    (0, 6, False, False, 0, 6, 0.0235294, -128),
    (-2.54, 1, True, True, -2.54, 2.54, 0.02, 0),
    (-3, 3, False, True, -3.01176, 2.98824, 0.0235294, 0),
    (0.5, 0.5, False, False, 0, 0.5, 0.0019608, -128),
    (0, 0, False, False, 0, 1, 0.0039216, -128),  # ours: the scale of [0, 1]
]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row[0]}..{row[1]}")
def test_golden_table(row: tuple) -> None:
    low, high, narrow, symmetric, encoded_low, encoded_high, scale, zero_point = row
    scheme = QScheme(dtype="int8", symmetric=symmetric, narrow_range=narrow)
    params = parameters(low, high, scheme)
    assert params.scale.shape == params.zero_point.shape == ()
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == np.int8
    assert params.zero_point == zero_point
    # The table has six to eight digits.
    np.testing.assert_allclose(params.scale, scale, rtol=2e-5)
    ends = dequantize(np.array([scheme.qmin, scheme.qmax], np.int8), params)
    np.testing.assert_allclose(ends, [encoded_low, encoded_high], rtol=2e-5)


@given(intervals, schemes)
def test_zero_is_exact_and_the_range_is_covered(interval: list[float], scheme: QScheme) -> None:
    low, high = interval
    params = parameters(low, high, scheme)
    assert scheme.qmin <= int(params.zero_point) <= scheme.qmax
    assert dequantize(quantize(np.zeros(1, np.float32), params), params)[0] == 0.0
    ends = dequantize(np.array([scheme.qmin, scheme.qmax]).astype(scheme.dtype), params)
    # The zero point takes half a step from one side at most; an unsigned symmetric type, whose
    # middle is not its middle, a whole one.
    step = float(params.scale) * (1.0 if scheme.symmetric else 0.5) * (1 + 1e-4)
    assert ends[0] <= min(low, 0.0) + step
    assert ends[1] >= max(high, 0.0) - step


@given(intervals, schemes)
def test_dequantized_codes_are_fixed_points(interval: list[float], scheme: QScheme) -> None:
    params = parameters(*interval, scheme)
    codes = all_codes(params)
    np.testing.assert_array_equal(quantize(dequantize(codes, params), params), codes)


@given(
    hnp.arrays(np.float32, 20, elements=st.floats(-1000, 1000, width=32)),
    st.sampled_from([s for s in SCHEMES if s.bits == 8]),
)
def test_error_is_at_most_half_a_step_inside_the_range(values: np.ndarray, scheme: QScheme) -> None:
    params = parameters(values.min(), values.max(), scheme)
    low, high = dequantize(np.array([scheme.qmin, scheme.qmax]).astype(scheme.dtype), params)
    error = np.abs(dequantize(quantize(values, params), params) - values.astype(np.float64))
    inside = (values >= low) & (values <= high)
    # 1e-5 of a step: the codes' reals are float32, up to 255 steps from zero.
    assert (error[inside] <= float(params.scale) * (0.5 + 1e-4)).all()
    # What lies outside saturates at the nearer end.
    saturated = dequantize(quantize(values, params), params)[~inside]
    assert np.isin(saturated, [low, high]).all()


@given(intervals, schemes, st.integers(-12, 12))
def test_scaling_the_range_scales_the_scale(
    interval: list[float], scheme: QScheme, power: int
) -> None:
    low, high = interval
    assume(high - low > 1e-4)  # far from the smallest width
    factor = 2.0**power  # exact in binary, so that nothing is rounded differently
    before, after = parameters(low, high, scheme), parameters(low * factor, high * factor, scheme)
    assert after.scale == before.scale * np.float32(factor)
    assert after.zero_point == before.zero_point


@given(intervals)
def test_negating_the_range_mirrors_the_zero_point(interval: list[float]) -> None:
    low, high = interval
    assume(high - low > 1e-4)
    params, mirrored = parameters(low, high, U8), parameters(-high, -low, U8)
    np.testing.assert_allclose(mirrored.scale, params.scale, rtol=1e-6)
    assert abs(int(mirrored.zero_point) + int(params.zero_point) - 255) <= 1  # ties


@pytest.mark.parametrize(
    ("low", "high"), [(float("nan"), 1.0), (0.0, float("inf")), (float("-inf"), 0.0), (2.0, 1.0)]
)
def test_bad_ranges_are_refused(low: float, high: float) -> None:
    with pytest.raises(NumericError, match="a range has to be"):
        parameters(low, high, U8)


def test_ranges_per_channel_are_the_ranges_one_by_one() -> None:
    lows, highs = np.array([-1.0, 0.0, -3.0, 0.0]), np.array([1.0, 6.0, -2.0, 0.0])
    params = parameters(lows, highs, S8, axis=0)
    single = [parameters(low, high, S8) for low, high in zip(lows, highs, strict=True)]
    np.testing.assert_array_equal(params.scale, [one.scale for one in single])
    np.testing.assert_array_equal(params.zero_point, [one.zero_point for one in single])
    assert params.axis == 0


# -------------------------------------------------------------------------- quantize, all int8


@pytest.mark.parametrize("scheme", SCHEMES[:8], ids=str)
def test_quantize_against_the_definition(scheme: QScheme) -> None:
    """Every eighth of a step over the whole range and beyond, against scalar arithmetic."""
    params = parameters(-1.3, 2.6, scheme)
    scale, zero_point = float(params.scale), int(params.zero_point)
    values = (np.arange(-300 * 8, 300 * 8) / 8 * scale).astype(np.float32)

    def one(value: float) -> int:
        real = value / scale + zero_point
        rounded = math.floor(abs(real) + 0.5) * (1 if real >= 0 else -1)
        return min(max(rounded, scheme.qmin), scheme.qmax)

    codes = quantize(values, params)
    assert codes.dtype == scheme.dtype
    np.testing.assert_array_equal(codes, [one(float(value)) for value in values])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_quantize_per_channel_is_quantize_of_each_channel(axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    params = weight_parameters(weight, W8, axis)
    codes = quantize(weight, params)
    restored = dequantize(codes, params)
    for index in range(weight.shape[axis]):
        channel = np.take(weight, index, axis)
        single = weight_parameters(channel, W8, None)
        assert single.scale == params.scale[index]
        np.testing.assert_array_equal(np.take(codes, index, axis), quantize(channel, single))
        np.testing.assert_array_equal(
            np.take(restored, index, axis), dequantize(quantize(channel, single), single)
        )


def test_weights_without_values_or_of_zeros_have_a_usable_scale() -> None:
    weight = np.zeros((3, 2), np.float32)
    weight[1] = [0.5, -1.0]
    params = weight_parameters(weight, W8, 0)
    np.testing.assert_allclose(params.scale, np.array([1, 1, 1]) / 127, rtol=1e-6)
    np.testing.assert_array_equal(dequantize(quantize(weight, params), params)[[0, 2]], 0.0)


# ------------------------------------------------------------------------------- clip bounds


def fits_for_onnxruntime(params: QParams, clip: tuple[float, float]) -> bool:
    """The rule by which onnxruntime drops a Clip in front of a QuantizeLinear, in float32."""
    zero_point = np.float32(int(params.zero_point))
    low = params.scale * (np.float32(params.scheme.qmin) - zero_point)
    high = params.scale * (np.float32(params.scheme.qmax) - zero_point)
    below = np.float32(clip[0]) - low
    above = high - np.float32(clip[1])
    return bool(below <= EPSILON) and bool(above <= EPSILON)


@given(st.floats(2**-10, 1e4, width=32), st.floats(0.0, 2.0))
def test_relu_n_fits_and_still_covers(maximum: float, reached: float) -> None:
    clip = (0.0, maximum)
    params = range_parameters(Range(low=0.0, high=maximum * reached), U8, clip)
    assert fits_for_onnxruntime(params, clip)
    assert params.zero_point == 0
    if reached:
        wanted = min(maximum * reached, maximum)
        assert float(params.scale) * 255 >= wanted * (1 - 1e-6)


@given(st.floats(0.0625, 100.0, width=32), st.floats(0.0625, 100.0, width=32))
def test_clip_on_both_sides_fits_and_covers_all_but_a_few_steps(low: float, high: float) -> None:
    assume(0.1 < low / high < 10.0)
    clip = (-low, high)
    params = range_parameters(Range(low=-low, high=high), U8, clip)
    assert fits_for_onnxruntime(params, clip)
    # Half a step of zero point in the shorter side, stretched over the longer one: up to
    # 0.5 * (255 / 23) steps of 255 for sides of 1 to 10.
    covered = float(params.scale) * 255 / (low + high)
    assert 0.97 < covered <= 1.0 + 1e-6


def test_every_relu_maximum_of_many_fits() -> None:
    """The rounding of float32 products is where a plain division goes wrong."""
    maxima = np.random.default_rng(0).uniform(0.01, 50.0, 5000).astype(np.float32)
    naive = 0
    for maximum in map(float, maxima):
        clip = (0.0, maximum)
        plain = parameters(0.0, maximum, U8)
        naive += not fits_for_onnxruntime(plain, clip)
        fitted = fit_within(plain, clip)
        assert fits_for_onnxruntime(fitted, clip)
        assert fitted.scale >= plain.scale * (1 - 1e-6)
    assert naive > 0, "the correction is not exercised"


def test_a_range_outside_the_clip_is_cut_to_it() -> None:
    params = range_parameters(Range(low=-3.0, high=9.0), U8, (0.0, 6.0))
    assert params.zero_point == 0
    np.testing.assert_allclose(params.scale, 6 / 255, rtol=1e-6)


def test_a_range_inside_the_clip_stays() -> None:
    params = range_parameters(Range(low=0.0, high=3.0), U8, (0.0, 6.0))
    assert params.scale == parameters(0.0, 3.0, U8).scale


def test_relu_of_zeros_keeps_the_scale_of_zero_to_one() -> None:
    params = range_parameters(Range(low=0.0, high=0.0), U8, (0.0, math.inf))
    np.testing.assert_allclose(params.scale, 1 / 255, rtol=1e-6)


@pytest.mark.parametrize("scheme", [W8, QScheme(dtype="int8", symmetric=True)])
def test_symmetric_codes_behind_relu_keep_their_scale(scheme: QScheme) -> None:
    """Half of them are below zero and no use, which is no reason to have no scale."""
    for bounds in ((0.0, math.inf), (0.0, 6.0)):
        params = range_parameters(Range(low=-1.0, high=4.0), scheme, bounds)
        assert float(params.scale) == parameters(0.0, 4.0, scheme).scale > 0.03
        assert params.zero_point == 0
    params = range_parameters(Range(low=0.0, high=9.0), scheme, (0.0, 6.0))
    assert float(params.scale) == parameters(0.0, 6.0, scheme).scale


# -------------------------------------------------------------------------------------- bias


def test_an_ordinary_bias_leaves_the_weights_alone() -> None:
    weight = weight_parameters(np.array([[1.0, -2.0], [0.5, 0.1]], np.float32), W8, 0)
    bias = np.array([1.0, -3.0], np.float32)
    assert widen_for_bias(weight, bias, 0.02) is weight
    codes, scale = quantize_bias(bias, 0.02, weight)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(scale, np.float32(0.02) * weight.scale)
    np.testing.assert_allclose(codes * scale.astype(np.float64), bias, atol=scale.max() / 2)


@pytest.mark.parametrize("axis", [0, None])
def test_a_bias_too_large_for_int32_raises_the_weights_scale(axis: int | None) -> None:
    weights = np.array([[1e-12, -2e-12], [0.5, 0.1]], np.float32)
    bias = np.array([5.0, 0.25], np.float32)
    if axis is None:
        weights = weights[:1]
    params = weight_parameters(weights, W8, axis)
    with pytest.raises(NumericError, match="int32"):
        quantize_bias(bias, 0.02, params)
    widened = widen_for_bias(params, bias, 0.02)
    codes, scale = quantize_bias(bias, 0.02, widened)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 2**7  # float32 rounding of the scale
    np.testing.assert_allclose(codes * scale.astype(np.float64), bias, rtol=1e-6)
    assert (widened.scale >= params.scale).all()
    if axis == 0:
        assert widened.scale[1] == params.scale[1], "only the channel that needs it"
    # the weights beside such a bias vanish, which is right: they are less than its rounding
    error = np.abs(dequantize(quantize(weights, widened), widened) - weights)
    assert (error <= widened.scale.max() / 2).all()


@given(
    hnp.arrays(np.float32, 6, elements=st.floats(-1e4, 1e4, width=32)),
    hnp.arrays(np.float32, 6, elements=st.floats(2**-40, 1, width=32)),
    st.floats(1e-7, 10.0),
)
def test_any_bias_is_kept_to_half_its_step(
    bias: np.ndarray, scales: np.ndarray, input_scale: float
) -> None:
    weight = QParams(scheme=W8, scale=scales, zero_point=np.zeros(6, np.int8), axis=0)
    widened = widen_for_bias(weight, bias, input_scale)
    codes, scale = quantize_bias(bias, input_scale, widened)
    error = np.abs(codes * scale.astype(np.float64) - bias)
    assert (error <= scale * 0.5000001).all()


# ----------------------------------------------------------------------------------- measures


def test_cosine_in_closed_form() -> None:
    a = np.array([3.0, 0.0, 4.0], np.float32)
    assert cosine(a, 2 * a) == pytest.approx(1.0, abs=1e-15)
    assert cosine(a, -a) == pytest.approx(-1.0, abs=1e-15)
    assert cosine(a, np.array([0.0, 7.0, 0.0])) == 0.0
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(3), np.zeros(3)) == 1.0
    assert cosine(np.zeros(3), a) == 0.0


def test_cosine_does_not_overflow_in_float32() -> None:
    a = np.full(4, 1e30, np.float32)
    assert cosine(a, a) == pytest.approx(1.0)


def test_sqnr_in_closed_form() -> None:
    a = np.array([3.0, 4.0])
    assert sqnr(a, a * 1.1) == pytest.approx(20.0)  # noise is a tenth of the signal
    assert sqnr(a, np.zeros(2)) == pytest.approx(0.0)
    assert sqnr(a, a) == math.inf
    assert sqnr(np.zeros(2), a) == -math.inf


def test_sqnr_of_uniform_noise_is_six_decibels_a_bit() -> None:
    """A full-scale uniform signal: 20 log10(2**bits)."""
    values = np.random.default_rng(0).uniform(0, 1, 200_000).astype(np.float32)
    params = parameters(0.0, 1.0, U8)
    found = sqnr(values, dequantize(quantize(values, params), params))
    # A uniform signal's power about zero is 1/3, the noise's step**2 / 12.
    assert found == pytest.approx(10 * math.log10(4 * 255**2), abs=0.1)
