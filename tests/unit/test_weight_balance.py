"""Scales of inputs, and integer zero points."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_core.arithmetic import sqnr
from ptq_core.weights.balance import input_scale
from ptq_core.weights.grid import quantize_weight
from ptq_core.weights.quantized import QuantizedWeight, container
from ptq_core.weights.zero_points import with_zero_points
from tests.tiny_models import normal, rng


def balanced(weight: np.ndarray, bits: int, axes: tuple[int, ...]) -> np.ndarray:
    divisor = input_scale(weight, axes)
    assert divisor is not None
    found = quantize_weight(weight / divisor, bits, axes, strategy="MSE", correct=True)
    return found.dequantize() * divisor


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((12, 8), (1,), (12, 1)),
        ((12, 8), (0,), (1, 8)),
        ((3, 12, 8), (2,), (1, 12, 1)),
        ((3, 12, 8), (1,), (1, 1, 8)),
        ((3, 12, 8), (0,), None),
        ((8, 4, 3, 3), (0,), None),
        ((2, 12, 8), (0, 1), None),
        ((12, 8), (), None),
        ((12,), (0,), None),
    ],
)
def test_one_scale_for_each_input_of_a_matrix(
    shape: tuple[int, ...], axes: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    found = input_scale(normal(*shape), axes)
    assert (None if found is None else found.shape) == expected


def test_scales_of_a_product_of_two_are_found() -> None:
    """Where every weight is a row's size by a column's, rows' sizes come out, but for a factor."""
    rows, columns = np.geomspace(0.1, 10, 16), np.geomspace(1e-3, 1e3, 24)
    weight = rng(0).choice([-1.0, 1.0], (16, 24)) * rows[:, None] * columns
    found = input_scale(weight.astype(np.float32), (1,))
    assert found is not None
    # signs have no mean of exactly 0, so that a column's deviation is a little less than its size
    np.testing.assert_allclose(found.ravel(), rows, rtol=0.15)
    assert np.exp(np.log(found.astype(float)).mean()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("factor", [1e-30, 0.5, 1e20])
def test_the_weights_own_size_does_not_matter(factor: float) -> None:
    weight = normal(16, 24) * np.geomspace(0.1, 10, 16, dtype=np.float32)[:, None]
    first, second = input_scale(weight, (1,)), input_scale(weight * np.float32(factor), (1,))
    np.testing.assert_allclose(first, second, rtol=1e-3)
    columns = np.geomspace(1e-3, 1e3, 24, dtype=np.float32)
    np.testing.assert_allclose(first, input_scale(weight * columns, (1,)), rtol=1e-3)


def test_scales_are_numbers_of_float16() -> None:
    weight = normal(64, 48) * np.geomspace(1e-12, 1e12, 64, dtype=np.float32)[:, None]
    found = input_scale(weight, (1,))
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
    assert (found > 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_weights_need_no_scale(value: float) -> None:
    assert input_scale(np.full((12, 8), value, np.float32), (1,)) is None


def test_dead_inputs_and_channels_do_no_harm() -> None:
    weight = normal(16, 24)
    weight[3], weight[:, 5] = 0.0, 0.0
    found = input_scale(weight, (1,))
    assert found is not None
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert found.ravel()[3] < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_left_to_others(value: float) -> None:
    weight = normal(16, 24)
    weight[2, 3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert input_scale(weight, (1,)) is None


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_noise_follows_the_size_of_the_weights(bits: int) -> None:
    """What it is for: rows of small weights, which meet large inputs, keep their precision."""
    rows = np.geomspace(0.1, 10, 64)
    weight = (normal(64, 48) * rows[:, None]).astype(np.float32)
    plain = quantize_weight(weight, bits, (1,), strategy="MSE", correct=True).dequantize()
    inputs = rng(1).standard_normal((200, 64)) / rows
    wanted = inputs @ weight
    assert sqnr(wanted, inputs @ balanced(weight, bits, (1,))) > sqnr(wanted, inputs @ plain) + 6


# ---------------------------------------------------------------------------------- zero points


def check(weight: np.ndarray, found: QuantizedWeight) -> None:
    """Well formed, and zero has a code that gives exactly zero."""
    low, high = -(2 ** (found.bits - 1)), 2 ** (found.bits - 1) - 1
    assert found.codes.dtype == np.dtype(container(found.bits))
    assert low <= found.codes.min()
    assert found.codes.max() <= high
    assert (low <= found.zero_point).all()
    assert (found.zero_point <= high).all()
    assert (found.scale > 0).all()
    assert found.scale.dtype == found.offset.dtype == np.float32
    np.testing.assert_array_equal(
        found.offset, -(found.zero_point.astype(np.float32) * found.scale)
    )
    zero = found.zero_point.astype(np.float32) * found.scale + found.offset
    assert (zero == 0.0).all()
    steps = (found.codes.astype(np.float32) - found.zero_point.astype(np.float32)) * found.scale
    np.testing.assert_allclose(
        found.dequantize(), steps.reshape(weight.shape), rtol=1e-5, atol=1e-6 * np.abs(weight).max()
    )


def with_points(
    weight: np.ndarray, bits: int, axes: tuple[int, ...] = (0,), groups: int | None = None
) -> tuple[QuantizedWeight, QuantizedWeight]:
    free = quantize_weight(weight, bits, axes, strategy="MSE", correct=True, groups=groups)
    return free, with_zero_points(weight, free)


@given(
    bits=st.integers(1, 16),
    mean=st.floats(-3, 3),
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(4, 40), (3, 2, 3, 3), (5, 1)]),
)
def test_zero_has_a_code_whatever_the_weights(
    bits: int, mean: float, seed: int, shape: tuple[int, ...]
) -> None:
    weight = normal(*shape, seed=seed, scale=1.0) + np.float32(mean)
    _, found = with_points(weight, bits)
    check(weight, found)


@pytest.mark.parametrize("bits", [3, 4, 8, 12, 16])
def test_little_is_lost_against_free_offsets(bits: int) -> None:
    weight = normal(16, 400)
    free, found = with_points(weight, bits)
    check(weight, found)
    lost = sqnr(weight, free.dequantize()) - sqnr(weight, found.dequantize())
    assert lost < {3: 2.0, 4: 0.7}.get(bits, 0.4)


def test_a_fixed_zero_point_is_left_as_it_is() -> None:
    """Weights that lie on such a grid are exact."""
    codes = rng(0).integers(-8, 8, (6, 200))
    codes[:, :2] = [-8, 7]
    weight = ((codes - 3) * np.geomspace(0.25, 8, 6)[:, None]).astype(np.float32)
    _, found = with_points(weight, 4)
    np.testing.assert_allclose(found.dequantize(), weight, rtol=1e-5, atol=1e-5)
    assert (found.zero_point == 3).all()


@pytest.mark.parametrize("value", [0.0, 0.75, -2.0])
def test_constants(value: float) -> None:
    weight = np.full((3, 20), value, np.float32)
    _, found = with_points(weight, 8)
    check(weight, found)
    np.testing.assert_allclose(found.dequantize(), weight, rtol=0.01)


def test_groups() -> None:
    weight = normal(8, 64)
    _, found = with_points(weight, 4, (0,), groups=16)
    assert found.scale.shape == (8, 4, 1)
    check(weight, found)
    assert sqnr(weight, found.dequantize()) > 18
