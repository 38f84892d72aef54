from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_core.arithmetic import parameters, range_parameters, sqnr
from ptq_core.estimates import TensorEstimate, clipped_hard, clipping_warning, estimate
from ptq_core.types import QScheme, Range

U8, S8 = QScheme(), QScheme(dtype="int8", symmetric=True, narrow_range=True)


def whole_range(values: np.ndarray, scheme: QScheme = U8) -> Range:
    return Range(low=float(values.min()), high=float(values.max()))


def found(values: np.ndarray, low: float, high: float, scheme: QScheme = U8) -> TensorEstimate:
    one = estimate(values.astype(np.float32), parameters(low, high, scheme))
    assert one is not None
    return one


def test_codes_themselves_lose_nothing() -> None:
    values = np.arange(-100, 156) / 128  # all 256 codes of a step that is a power of two
    one = found(values, -100 / 128, 155 / 128)
    assert one == TensorEstimate(sqnr=math.inf, whole_sqnr=math.inf, clipped=0.0, clipping=0.0)
    assert one.lost == 0.0


def test_rounding_noise_of_evenly_spread_values() -> None:
    """Step^2 / 12 of noise, 1 / 3 of signal: 20 log10(2^8) dB, for 255 steps nearly."""
    one = found(np.linspace(0, 1, 16001), 0.0, 1.0)
    assert one.sqnr == pytest.approx(20 * math.log10(2 * 255), abs=0.05)
    assert one.whole_sqnr == one.sqnr
    assert (one.clipped, one.clipping, one.lost) == (0.0, 0.0, 0.0)


def test_what_is_cut_off_is_counted() -> None:
    """999 zeros and a 4, cut off at 1: all noise is that one's, 9 of 16."""
    values = np.zeros(1000)
    values[7] = 4.0
    one = found(values, 0.0, 1.0)
    assert one.sqnr == pytest.approx(10 * math.log10(16 / 9), rel=1e-6)
    assert one.whole_sqnr > 100  # 4 is the highest code, but for the rounding of the scale
    assert (one.clipped, one.clipping) == (0.001, 1.0)
    assert one.lost > 90


def test_the_first_half_step_beyond_the_range_is_rounding() -> None:
    step = 1 / 255
    assert found(np.array([1.0, 1 + 0.49 * step]), 0.0, 1.0).clipped == 0.0
    assert found(np.array([1.0, 1 + 0.51 * step]), 0.0, 1.0).clipped == 0.5


def test_whole_range_fits_into_the_bounds_of_the_activation() -> None:
    """As the parameters do: what a Relu6 gives is measured against codes from 0 to 6."""
    values = np.linspace(0, 6, 1000, dtype=np.float32)
    params = range_parameters(whole_range(values), U8, (0.0, 6.0))
    one = estimate(values, params, (0.0, 6.0))
    assert one is not None
    assert one.sqnr == one.whole_sqnr


def test_no_values_no_estimate() -> None:
    assert estimate(np.empty(0, np.float32), parameters(0.0, 1.0, U8)) is None


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50),
    st.floats(-100, 0), st.floats(0.01, 100), st.sampled_from([U8, S8]),
)  # fmt: skip
def test_against_the_definition(
    numbers: list[float], low: float, high: float, scheme: QScheme
) -> None:
    """Code by code, in Python."""
    params = parameters(low, high, scheme)
    scale, zero_point = float(params.scale), int(params.zero_point)
    restored, outside = [], []
    for value in numbers:
        code = round(value / scale) + zero_point  # half to even
        outside.append(not scheme.qmin <= code <= scheme.qmax)
        restored.append((min(max(code, scheme.qmin), scheme.qmax) - zero_point) * scale)
    one = estimate(np.array(numbers, np.float32), params)
    assert one is not None
    reals = np.array(numbers)
    assert one.sqnr == pytest.approx(sqnr(reals, np.array(restored)), abs=1e-9)
    assert one.clipped == pytest.approx(np.mean(outside))
    noise = (reals - restored) ** 2
    if noise.sum() > 0:
        share = noise[np.array(outside)].sum() / noise.sum()
        assert one.clipping == pytest.approx(share, abs=1e-9)
    assert one.lost >= 0


# --------------------------------------------------------------------------------------- warnings


def loss(sqnr: float, whole: float, *, clipping: float = 0.9) -> TensorEstimate:
    return TensorEstimate(sqnr=sqnr, whole_sqnr=whole, clipped=0.003, clipping=clipping)


def test_what_is_clipped_hard() -> None:
    tensors = {
        "fine": loss(30.0, 45.0),  # enough is left
        "no better": loss(20.0, 22.0),  # nor would the whole range leave more
        "rounding": loss(15.0, 30.0, clipping=0.4),
        "bad": loss(24.0, 30.0),
        "worst": loss(10.0, 31.0),
        "exact whole": loss(20.0, math.inf),
    }
    assert clipped_hard(tensors) == ["exact whole", "worst", "bad"]


def test_the_warning_names_the_worst() -> None:
    assert clipping_warning("KL", {"a": loss(30.0, 45.0)}) is None
    assert clipping_warning("KL", {"conv10": loss(9.84, 31.16, clipping=0.8)}) == (
        "KL clips hard: 'conv10' 9.8 dB against 31.2 dB with the whole range (0.3 % of the values "
        "carry 80 % of the noise); consider MAX_MIN"
    )
    many = clipping_warning("KL", {f"t{i}": loss(20.0 - i, 40.0) for i in range(5)})
    assert many is not None
    assert many.index("'t4'") < many.index("'t3'") < many.index("'t2'")
    assert "'t1'" not in many
    assert "and 2 more" in many
