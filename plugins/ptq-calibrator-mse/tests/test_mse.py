from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from ptq_calibrator_mse import ptq_calibrators
from ptq_core.api import ObservedTensor, QScheme, Range

(ENTRY,) = ptq_calibrators()
relaxed = settings(deadline=None, max_examples=50)  # no deadline: the first loads the kernels
U8 = QScheme()
S8 = QScheme(dtype="int8", symmetric=True)
NARROW = QScheme(dtype="int8", symmetric=True, narrow_range=True)
MIDDLE = QScheme(dtype="uint8", symmetric=True)
U16, S16 = QScheme(dtype="uint16"), QScheme(dtype="int16", symmetric=True)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)  # with -0.0 and denormals
SAMPLE = arrays(np.float32, array_shapes(max_dims=3, max_side=20), elements=FINITE)
SAMPLES = st.lists(SAMPLE, min_size=1, max_size=6)
SCHEMES = st.sampled_from([U8, S8, NARROW, MIDDLE, U16, S16])


def observed(samples: Any, scheme: QScheme = U8) -> Any:
    made: Any = ENTRY.factory(ObservedTensor(name="t", scheme=scheme), ENTRY.options())
    for sample in samples:
        made.observe(sample)
    assert made.end_pass() is False
    return made


def parameters(found: Range, scheme: QScheme) -> tuple[float, int]:
    """Scale and zero point of a range: Jacob et al. 2018, section 2.3."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if scheme.symmetric:
        low, high = -max(-low, high), max(-low, high)
    scale = (high - low) / (scheme.qmax - scheme.qmin) or 1.0
    if scheme.symmetric:
        return scale, 0 if scheme.signed else 1 << (scheme.bits - 1)
    return scale, round(scheme.qmin - low / scale)


def true_error(values: NDArray[Any], found: Range, scheme: QScheme) -> float:
    """Mean squared error of quantizing the values, by doing it."""
    scale, zero_point = parameters(found, scheme)
    codes = np.clip(np.rint(values / scale) + zero_point, scheme.qmin, scheme.qmax)
    return float(np.mean(((codes - zero_point) * scale - values) ** 2))


def whole(values: NDArray[Any]) -> Range:
    """What MAX_MIN gives."""
    return Range(low=float(values.min()), high=float(values.max()))


# --------------------------------------------------------------------------------- the optimum

RNG = np.random.default_rng(5)
NORMAL = RNG.normal(size=200_000)
DATA: dict[str, NDArray[np.float64]] = {
    "normal": NORMAL,
    "relu": np.maximum(NORMAL, 0),
    "relu6": np.clip(4 * NORMAL, 0, 6),
    "hard_swish": NORMAL * np.clip(2 * NORMAL + 3, 0, 6) / 3,
    "laplace": RNG.laplace(size=200_000),
    "off_centre": NORMAL + 3,
    "negative": -RNG.gamma(2, size=200_000),
    "heavy_tail": RNG.standard_t(3, 200_000),
    "lognormal": RNG.lognormal(0, 1.5, 200_000),
    "few_outliers": np.concatenate((NORMAL, [50.0, 61.0, -40.0])),
}
# The grid's best also profits from chance: rounding errors of so many values vary by 0.2 %.
WITHIN = 1.01


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("scheme", [S8, NARROW, MIDDLE], ids=["int8", "narrow", "uint8"])
def test_no_symmetric_range_is_better(name: str, scheme: QScheme) -> None:
    values = DATA[name].astype(np.float32)
    largest = float(np.abs(values).max())
    best = min(
        true_error(values, Range(low=-bound, high=bound), scheme)
        for bound in largest * np.geomspace(0.05, 1.01, 60)
    )
    assert true_error(values, observed([values], scheme).result(), scheme) <= WITHIN * best


@pytest.mark.parametrize("name", DATA)
def test_no_asymmetric_range_is_better(name: str) -> None:
    values = DATA[name].astype(np.float32)[:100_000:]
    if name == "few_outliers":
        values = DATA[name].astype(np.float32)[-100_000:]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.geomspace(0.1, 1.01, 16)
    best = min(
        true_error(values, Range(low=low * below, high=high * above), U8)
        for below in (shares if low < 0 else [1.0])
        for above in (shares if high > 0 else [1.0])
    )
    assert true_error(values, observed([values]).result(), U8) <= WITHIN * best


def test_the_optimum_of_a_normal_distribution() -> None:
    """Clipping at ``a``: the tails' integral of (x - a)**2, and step**2 / 12 inside."""

    def error(a: float) -> float:
        tail = math.erfc(a / math.sqrt(2)) / 2
        density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        return 2 * ((1 + a * a) * tail - a * density) + (2 * a / 254) ** 2 / 12 * (1 - 2 * tail)

    closed_form = min(np.linspace(3, 5, 2001), key=error)
    assert closed_form == pytest.approx(3.92, abs=0.01)  # Banner et al. 2019, for 8 bits
    values = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
    found = observed([values], NARROW).result()
    assert found.high == pytest.approx(closed_form, rel=0.01)
    assert error(found.high) < 1.001 * error(closed_form)


def test_values_that_are_codes_keep_their_range() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.float32)
    found = observed([pixels]).result()
    assert found.low == 0.0
    assert found.high == pytest.approx(255.0, rel=1e-4)


@pytest.mark.parametrize("scheme", [U16, S16])
def test_sixteen_bits_cut_off_next_to_nothing(scheme: QScheme) -> None:
    values = DATA["normal"].astype(np.float32)
    found = observed([values], scheme).result()
    lost = np.clip(values, found.low, found.high) - values
    assert np.abs(lost).max() < 2 * (found.high - found.low) / 65535


@relaxed
@given(
    arrays(np.float32, st.integers(1, 500), elements=FINITE),
    st.sampled_from([U8, NARROW]),  # whose widest scale is that of MAX_MIN
)
def test_it_is_never_worse_than_max_min(values: NDArray[np.float32], scheme: QScheme) -> None:
    doubles = values.astype(np.float64)
    # Few values do not spread evenly over a bin, whose width is less than 1/32 of a step.
    scale, _ = parameters(whole(doubles), scheme)
    allowed = 1.02 * true_error(doubles, whole(doubles), scheme) + scale**2 / 32
    assert true_error(doubles, observed([values], scheme).result(), scheme) <= allowed


@relaxed
@given(SAMPLES, SCHEMES)
def test_the_range_is_what_its_codes_represent(
    samples: list[NDArray[np.float32]], scheme: QScheme
) -> None:
    found = observed(samples, scheme).result()
    assert found.low <= 0.0 <= found.high
    if found.low == found.high:
        assert not any(sample.any() for sample in samples)
        return
    steps = -found.low / (found.high - found.low) * (scheme.qmax - scheme.qmin)
    if scheme.symmetric:
        assert found.low == -found.high
    else:
        assert steps == pytest.approx(round(steps), abs=1e-6)  # the zero point is exact


@relaxed
@given(SAMPLES, SCHEMES, st.integers(-20, 20))
def test_data_times_a_power_of_two_gives_the_range_times_it(
    samples: list[NDArray[np.float32]], scheme: QScheme, power: int
) -> None:
    inside = [np.where(np.abs(s) < 1e-20, 0, np.clip(s, -1e20, 1e20)) for s in samples]
    factor = np.float32(2.0**power)
    found, times = (observed(x, scheme).result() for x in (inside, [s * factor for s in inside]))
    assert times.low == found.low * 2.0**power
    assert times.high == found.high * 2.0**power


# -------------------------------------------------------------------------- a streaming reducer


@relaxed
@given(SAMPLES, SCHEMES, st.data())
def test_neither_order_nor_split_nor_batches_change_a_bit(
    samples: list[NDArray[np.float32]], scheme: QScheme, data: Any
) -> None:
    expected = observed(samples, scheme).result()
    mixed = data.draw(st.permutations(samples))
    cut = data.draw(st.integers(0, len(samples)))
    first, second = observed(mixed[:cut], scheme), observed(mixed[cut:], scheme)
    first.merge(second)
    assert first.result() == expected
    batch = np.concatenate([sample.reshape(-1) for sample in samples])
    assert observed([batch], scheme).result() == expected


# --------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("scheme", [U8, U16, NARROW], ids=["u8", "u16", "narrow"])
@pytest.mark.parametrize("value", [2.0, -3.5, 1e-40, 3e38])
def test_constant_data_is_represented_exactly(value: float, scheme: QScheme) -> None:
    found = observed([np.full(100, value, np.float32)], scheme).result()
    bound = float(np.float32(value))
    low = -abs(bound) if scheme.symmetric else min(bound, 0.0)
    high = abs(bound) if scheme.symmetric else max(bound, 0.0)
    assert found.low == pytest.approx(low, rel=1e-12, abs=0)
    assert found.high == pytest.approx(high, rel=1e-12, abs=0)


@pytest.mark.parametrize("scheme", [U8, S8])
def test_zeros_have_a_range_without_width(scheme: QScheme) -> None:
    zeros = np.array([0.0, -0.0], np.float32)
    assert observed([zeros, np.zeros((0, 4), np.float32)], scheme).result() == Range(low=0, high=0)


def test_a_scalar_is_taken() -> None:
    found = observed([np.float32(3.0).reshape(())]).result()
    assert found == Range(low=0.0, high=pytest.approx(3.0, rel=1e-12))


def test_without_a_value_there_is_no_range() -> None:
    with pytest.raises(ValueError, match="no value was observed"):
        observed([]).result()


# ------------------------------------------------------------------------------ why it is there


@pytest.mark.parametrize("one_sided", [True, False], ids=["relu", "normal"])
@pytest.mark.parametrize("share", [1e-6, 1e-5])
def test_outliers_cost_it_less_than_max_min(one_sided: bool, share: float) -> None:
    rng = np.random.default_rng(1)
    clean = rng.normal(size=2_000_000).astype(np.float32)
    if one_sided:
        clean = np.maximum(clean, 0)
    dirty = clean.copy()
    planted = rng.choice(clean.size, int(share * clean.size), replace=False)
    dirty[planted] = 50 * (clean[planted] + np.sign(clean[planted] + 1e-9))
    found = observed([dirty]).result()
    ratio = true_error(clean, whole(dirty), U8) / true_error(clean, found, U8)
    assert 10 * math.log10(ratio) > 4  # dB


# ----------------------------------------------------------------------------------- the entry


def test_the_entry() -> None:
    assert ENTRY.name == "MSE"
    assert ENTRY.batched


def test_offering_it_imports_no_numba() -> None:
    code = "import sys, ptq_calibrator_mse as p; list(p.ptq_calibrators())"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'numba' not in sys.modules"], check=True)
