from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ptq_core.arithmetic import round_half_away
from ptq_core.errors import NumericError
from ptq_core.weights import mixed
from ptq_core.weights.entropy import entropy, entropy_bytes, frequencies
from ptq_core.weights.mixed import finest_step, quantize_step, raised, relative_error, step_for

Weight = NDArray[np.float32]


def draw(make: Callable[[np.random.Generator], Any], seed: int = 0) -> Weight:
    return np.asarray(make(np.random.default_rng(seed)), np.float32)


def plain_error(weight: Weight, values: NDArray[Any]) -> float:
    """The definition, written down once more."""
    exact = weight.astype(np.float64)
    return float(np.sqrt(((exact - values) ** 2).sum() / ((exact - exact.mean()) ** 2).sum()))


WEIGHTS = {
    "normal": draw(lambda g: g.standard_normal((64, 96))),
    "laplace": draw(lambda g: g.laplace(size=(90, 100))),
    "uniform": draw(lambda g: g.random((64, 64))),
    "with a mean": draw(lambda g: g.normal(1, 0.01, (64, 64))),
    "far from zero": draw(lambda g: g.normal(1e4, 1, (64, 64))),
    "one outlier": draw(lambda g: np.r_[g.standard_normal(9999), 1e6].reshape(100, 100)),
    "sparse": draw(lambda g: g.standard_normal((64, 64)) * (g.random((64, 64)) < 0.05)),
    "two values": draw(lambda g: g.choice([-1.0, 1.0], (64, 64))),
    "on a grid": draw(lambda g: np.round(g.standard_normal((64, 64)) * 30) / 30),
    "small": draw(lambda g: g.standard_normal((64, 64)) * 1e-30),
    "huge": draw(lambda g: g.standard_normal((64, 64)) * 1e36),
    "rank 5": draw(lambda g: g.standard_normal((2, 3, 4, 5, 6))),
    "large": draw(lambda g: g.standard_normal((300, 1000))),
    "outlier that a sample misses": draw(
        lambda g: np.r_[g.standard_normal(199_999), 1e4].reshape(400, 500)
    ),
}


# -------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("target", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_step_makes_the_error_that_was_asked_for(name: str, target: float) -> None:
    weight = WEIGHTS[name]
    quantized = quantize_step(weight, step_for(weight, target))
    assert plain_error(weight, quantized.dequantize()) == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize(
    ("target", "bits"), [(0.005, 7.90), (0.02, 5.90), (0.05, 4.58), (0.1, 3.58)]
)
def test_entropy_of_a_normal_weight(target: float, bits: float) -> None:
    """seed-semantics section 8.1: log2(1.193 / error)."""
    weight = draw(lambda g: g.standard_normal((1000, 500)))
    codes = quantize_step(weight, step_for(weight, target)).codes
    assert entropy(codes) == pytest.approx(bits, abs=0.02)
    assert entropy(codes) == pytest.approx(np.log2(1.193 / target), abs=0.02)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("target", [1e-4, 0.02, 0.9])
def test_the_search_ends(name: str, target: float, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    measure = mixed._error

    def counted(*given: Any) -> float:
        nonlocal count
        count += 1
        return measure(*given)

    monkeypatch.setattr(mixed, "_error", counted)
    step_for(WEIGHTS[name], target)
    assert 1 <= count <= 48, "24 on a sample, and as many on the whole weight"


def test_small_errors_of_smooth_weights_need_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    measure = mixed._error

    def counted(*given: Any) -> float:
        nonlocal count
        count += 1
        return measure(*given)

    monkeypatch.setattr(mixed, "_error", counted)
    step_for(WEIGHTS["large"], 0.02)
    assert count <= 5


@pytest.mark.parametrize("value", [0.0, 0.3, -2.7, 1e-40, 3e38, np.float32(1) / 3])
@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (3, 4096, 7)])
def test_a_constant_weight_is_exact(value: float, shape: tuple[int, ...]) -> None:
    weight = np.full(shape, value, np.float32)
    quantized = quantize_step(weight, step_for(weight, 0.02))
    if abs(value) >= np.finfo(np.float32).tiny or value == 0.0:
        np.testing.assert_array_equal(quantized.dequantize(), weight)
    assert quantized.bits == 1
    assert entropy(quantized.codes) == 0.0
    assert relative_error(weight, weight) == 0.0


def test_an_empty_weight() -> None:
    weight = np.zeros((0, 4), np.float32)
    quantized = quantize_step(weight, step_for(weight, 0.02), (0,))
    assert quantized.codes.shape == (0, 4)
    assert entropy_bytes(quantized.codes) == 0


def test_numbers_below_the_normal_ones_become_zero() -> None:
    weight = draw(lambda g: g.standard_normal((8, 8)) * 1e-42)
    step = step_for(weight, 0.02)
    quantized = quantize_step(weight, step)
    assert np.abs(quantized.dequantize() - weight).max() < np.finfo(np.float32).tiny
    assert raised(quantized, step)


def test_where_float32_itself_is_coarser_the_largest_step_below_is_taken() -> None:
    weight = draw(lambda g: g.normal(1e6, 0.05, (64, 64)))  # its values are 0.0625 apart
    quantized = quantize_step(weight, step_for(weight, 0.02))
    assert plain_error(weight, quantized.dequantize()) <= 0.0202


def depthwise() -> Weight:
    """Channels of nine weights whose sizes differ by orders of magnitude."""
    sizes = 10.0 ** np.linspace(-1.5, 0, 40).reshape(40, 1, 1, 1)
    return draw(lambda g: g.standard_normal((40, 1, 3, 3)) * sizes)


def test_small_channels_count_each_for_itself() -> None:
    weight = depthwise()
    step = step_for(weight, 0.02, (0,))
    values = quantize_step(weight, step).dequantize().astype(np.float64)
    squares = ((weight - values) ** 2).mean(axis=(1, 2, 3))
    errors = np.sqrt(squares) / weight.astype(np.float64).std(axis=(1, 2, 3))
    assert errors.mean() == pytest.approx(0.02, rel=0.01)
    assert relative_error(weight, values, (0,)) == pytest.approx(errors.mean())
    assert step < step_for(weight, 0.02) / 2, "the large channels alone ask for less"


def test_a_dead_channel_asks_for_no_precision() -> None:
    weight = depthwise()
    expected = step_for(weight, 0.02, (0,))
    weight[3] *= 1e-12
    assert step_for(weight, 0.02, (0,)) > expected / 3


def test_large_channels_count_together() -> None:
    weight = (
        WEIGHTS["normal"] * np.float32(10.0) ** np.linspace(-1, 0, 64, dtype=np.float32)[:, None]
    )
    assert step_for(weight, 0.02, (0,)) == step_for(weight, 0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    weight = np.ones((3, 3), np.float32)
    weight[0, :2] = bad
    with pytest.raises(NumericError, match="has 2 values that are NaN or infinite"):
        step_for(weight, 0.02)
    with pytest.raises(NumericError, match="has 2 values that are NaN or infinite"):
        quantize_step(weight, 0.1)


@pytest.mark.parametrize("target", [0.0, -0.1])
def test_an_error_has_to_be_positive(target: float) -> None:
    with pytest.raises(NumericError, match="above 0"):
        step_for(np.eye(3, dtype=np.float32), target)


@pytest.mark.parametrize("step", [0.0, -1.0, np.inf, np.nan])
def test_a_step_has_to_be_positive(step: float) -> None:
    with pytest.raises(NumericError, match="a step has to be finite and above 0"):
        quantize_step(np.eye(3, dtype=np.float32), step)


# ------------------------------------------------------------------------------------- the codes


def spread_out(*codes: float) -> Weight:
    """These values among so many zeros that the mean is nearest to 0."""
    return np.r_[np.zeros(100_000), codes].astype(np.float32).reshape(1, -1)


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        ((), 1), ((-1,), 1), ((1,), 2), ((-2, 1), 2), ((-3,), 3), ((-128, 127), 8), ((128,), 9),
        ((-129,), 9), ((-32765, 32765), 16),
    ],
)  # fmt: skip
def test_codes_are_as_wide_as_they_need_to_be(codes: tuple[int, ...], bits: int) -> None:
    weight = spread_out(*codes)
    quantized = quantize_step(weight, 1.0)
    assert quantized.bits == bits
    assert quantized.codes.dtype == (np.int8 if bits <= 8 else np.int16)
    np.testing.assert_array_equal(quantized.codes, weight)
    np.testing.assert_array_equal(quantized.dequantize(), weight)


def test_codes_that_do_not_fit_raise_the_step() -> None:
    weight = spread_out(1e6, -3.0)
    quantized = quantize_step(weight, 0.01)
    assert raised(quantized, 0.01)
    assert float(quantized.scale.item()) == pytest.approx(finest_step(weight), rel=1e-6)
    assert quantized.codes.max() in (32765, 32766)
    assert not raised(quantize_step(weight, 100.0), 100.0)


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=1, max_dims=4, max_side=6),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.sampled_from([1e-4, 0.02, 0.3, 2.0]),
    st.booleans(),
)
def test_any_weight(weight: Weight, target: float, keep: bool) -> None:
    step = step_for(weight, target)
    quantized = quantize_step(weight, step, (0,) if keep else ())
    low, high = -(2 ** (quantized.bits - 1)), 2 ** (quantized.bits - 1) - 1
    assert ((quantized.codes >= low) & (quantized.codes <= high)).all()
    scale, offset = float(quantized.scale.item()), float(quantized.offset.item())
    assert scale > 0
    # half a step, or one more where a sum is kept; and float32's own rounding
    reach = np.abs(weight).max() * 2e-7 + scale * (1.5 if keep else 0.5) * 1.000001
    exact = quantized.codes.astype(np.float64) * scale + offset
    assert (np.abs(exact - weight) <= reach).all()


def test_zeros_stay_exactly_zero() -> None:
    weight = draw(lambda g: np.where(g.random((50, 50)) < 0.5, 0, g.normal(0.3, 1, (50, 50))))
    quantized = quantize_step(weight, step_for(weight, 0.02), (0,))
    plain = quantize_step(weight, step_for(weight, 0.02))
    assert float(plain.offset.item()) != 0.0
    assert (plain.dequantize()[weight == 0] == 0).all()
    assert (plain.codes[weight == 0] == plain.zero_point.item()).all()
    moved = quantized.dequantize()[weight == 0] != 0
    assert moved.mean() < 0.01, "zeros are the last that keeping a sum moves"


def test_values_are_those_of_float32_arithmetic() -> None:
    weight = WEIGHTS["with a mean"]
    quantized = quantize_step(weight, step_for(weight, 0.02), (0,))
    scale, offset = np.float32(quantized.scale.item()), np.float32(quantized.offset.item())
    wanted = np.array([np.float32(code) * scale + offset for code in quantized.codes.ravel()])
    assert wanted.dtype == np.float32
    np.testing.assert_array_equal(quantized.dequantize().ravel(), wanted)


# ---------------------------------------------------------------------------------- kept sums


def channel_errors(weight: Weight, codes: NDArray[Any], axis: int, like: Any) -> NDArray[Any]:
    """What the sum of each channel is off by, in steps."""
    scale, offset = float(like.scale.item()), float(like.offset.item())
    error = codes - (weight.astype(np.float64) - offset) / scale
    return np.asarray(error.sum(axis=tuple(i for i in range(weight.ndim) if i != axis)))


@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 1, 3, 3), 0), ((16, 24, 3, 3), 0), ((64, 48), 1)]
)
def test_sums_of_channels_are_kept(shape: tuple[int, ...], axis: int) -> None:
    weight = draw(lambda g: g.standard_normal(shape))
    step = step_for(weight, 0.1)
    kept, plain = quantize_step(weight, step, (axis,)), quantize_step(weight, step)
    assert np.abs(channel_errors(weight, kept.codes, axis, kept)).max() <= 0.5 + 1e-9
    assert np.abs(channel_errors(weight, plain.codes, axis, plain)).max() > 0.5
    assert np.abs(kept.codes.astype(int) - plain.codes.astype(int)).max() == 1
    assert relative_error(weight, kept.dequantize()) < 1.2 * relative_error(
        weight, plain.dequantize()
    )


def test_kept_sums_cost_the_least_squared_error() -> None:
    """Against every way to round up or down."""
    rows = draw(lambda g: g.standard_normal((12, 8)) * 3).astype(np.float64)
    kept = quantize_step(rows, 1.0, (0,))
    exact = rows - kept.offset.item()
    for row, codes in zip(exact, kept.codes.astype(int), strict=True):
        wanted = round_half_away(row).sum() - round_half_away((round_half_away(row) - row).sum())
        ways = [
            np.floor(row) + np.array(up)
            for up in itertools.product((0, 1), repeat=len(row))
            if (np.floor(row) + np.array(up)).sum() == wanted
        ]
        least = min(((way - row) ** 2).sum() for way in ways)
        assert codes.sum() == wanted
        assert ((codes - row) ** 2).sum() == pytest.approx(least)


def test_of_equal_weights_the_first_are_moved() -> None:
    weight = np.array([[0.4] * 10 + [-100.0, 100.0]], np.float32)
    quantized = quantize_step(weight, 1.0, (0,))
    assert quantized.codes.tolist() == [[1] * 4 + [0] * 6 + [-100, 100]]


def test_the_axis_of_the_channels_is_only_a_matter_of_layout() -> None:
    weight = WEIGHTS["normal"]
    by_rows = quantize_step(weight, 0.3, (0,)).codes
    by_columns = quantize_step(np.ascontiguousarray(weight.T), 0.3, (1,)).codes
    np.testing.assert_array_equal(by_columns.T, by_rows)
    spread = weight.reshape(8, 8, 96)
    np.testing.assert_array_equal(quantize_step(spread, 0.3, (0, 1)).codes.reshape(64, 96), by_rows)


def test_large_weights_are_rounded_in_pieces_alike() -> None:
    weight = draw(lambda g: g.standard_normal((700, 1000)))
    whole = quantize_step(weight, 0.3)
    np.testing.assert_array_equal(
        whole.codes,
        round_half_away((weight - whole.offset.astype(float)) / whole.scale.astype(float)),
    )
    one_row = quantize_step(weight.reshape(1, -1), 0.3)
    np.testing.assert_array_equal(one_row.codes.ravel(), whole.codes.ravel())


# ------------------------------------------------------------------------------------- entropy


def test_entropy_of_known_distributions() -> None:
    assert entropy(np.array([0, 1, 2, 3], np.int8)) == pytest.approx(2.0)
    assert entropy(np.array([-5, -5, -5, 7], np.int16)) == pytest.approx(0.811278, abs=1e-6)
    assert entropy(np.array([9, 9, 9], np.int8)) == 0.0
    assert entropy(np.zeros((0, 3), np.int8)) == 0.0
    assert entropy(np.array([-32768, 32767], np.int16)) == pytest.approx(1.0)


def test_entropy_does_not_depend_on_shape_or_order() -> None:
    codes = np.random.default_rng(0).integers(-100, 100, (30, 50)).astype(np.int8)
    mixed_up = np.random.default_rng(1).permutation(codes.ravel())
    assert entropy(codes) == pytest.approx(entropy(mixed_up))
    assert entropy_bytes(codes) == int(np.ceil(1500 * entropy(codes) / 8))


def test_frequencies_of_many_codes() -> None:
    codes = np.random.default_rng(0).integers(-3, 4, 2_500_000).astype(np.int16)
    found = frequencies(codes)
    assert found.tolist() == [int((codes == code).sum()) for code in range(-3, 4)]
