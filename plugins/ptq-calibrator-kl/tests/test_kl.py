from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq_calibrator_kl import Options, ptq_calibrators
from ptq_calibrator_kl.threshold import FILL, divergences, prepare, threshold
from ptq_core.api import Calibrator, ObservedTensor, QScheme, Range

(ENTRY,) = ptq_calibrators()
BINS, LEVELS = 2048, 128
SHARED = Path(__file__).parents[4] / "shared"
Floats = NDArray[Any]
Generator = np.random.Generator

relaxed = settings(deadline=None, max_examples=40)  # no deadline: the first loads the kernels


def calibrator(**options: Any) -> Calibrator:
    tensor = ObservedTensor(name="t", scheme=QScheme())
    return ENTRY.factory(tensor, ENTRY.options(**options))


def of(pieces: Iterable[Any], **options: Any) -> Range:
    made = calibrator(**options)
    for piece in pieces:
        made.observe(np.asarray(piece, np.float32))
    assert made.end_pass() is False
    return made.result()


# ------------------------------------------------- the two-pass form of seed-semantics section 4.3


class TwoPass:
    """The reference: the range first, then a histogram, then every candidate on its own.

    That takes its time; with ``by_kernel`` the kernel, which finds the same, searches.
    """

    def __init__(self, values: Floats, *, by_kernel: bool = True) -> None:
        values = np.asarray(values, np.float32).reshape(-1)
        self.largest = np.abs(values).max()
        self.width = np.float32(self.largest / np.float32(BINS))
        magnitudes = np.abs(values)
        magnitudes = magnitudes[magnitudes > np.float32(2.2e-16)]
        places = np.minimum((magnitudes / self.width).astype(np.int64), BINS - 1)
        counts = np.bincount(places, minlength=BINS).astype(np.float32)
        self.histogram = counts + np.float32(FILL)
        if by_kernel:
            mass = self.histogram.astype(np.float64)
            self.objectives = divergences(mass, np.ones(BINS), LEVELS, FILL)[:-1].tolist()
        else:
            self.objectives = [self.objective(kept) for kept in range(LEVELS, BINS)]
        self.index = LEVELS + int(np.argmin(self.objectives))
        self.threshold = float((np.float32(self.index) + np.float32(0.5)) * self.width)

    def objective(self, kept: int) -> float:
        """KL(P || Q) of a candidate."""
        histogram = self.histogram.astype(np.float64)
        clipped = histogram[:kept].copy()
        clipped[-1] += histogram[kept:].sum()
        return divergence(clipped, merged(histogram[:kept], LEVELS))


def merged(histogram: Floats, levels: int) -> Floats:
    """The bins in equal intervals, each one's mass spread evenly over its bins again.

    Bins are shared in proportion where borders cut them: both steps are integrals of a histogram
    that is constant inside a bin, and inside an interval.
    """
    places = np.arange(histogram.size + 1)
    borders = np.linspace(0, histogram.size, levels + 1)
    at_borders = np.interp(borders, places, np.append(0, np.cumsum(histogram)))
    return np.diff(np.interp(places, borders, at_borders))


def divergence(p: Floats, q: Floats) -> float:
    p, q = p / p.sum(), q / q.sum()
    some = p > 0
    terms = np.where(q[some] > 0, p[some] * np.log(p[some] / np.maximum(q[some], 1e-300)), 1.0)
    return float(terms.sum())


def golden_draws() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    return {
        "normal": random.standard_normal(100_000),
        "relu": np.maximum(random.standard_normal(100_000), 0),
        "laplace": random.laplace(size=100_000),
        "outlier": np.append(random.standard_normal(100_000), 50.0),
    }


GOLDEN = {"normal": (1691, 3.908), "relu": (1852, 3.860), "laplace": (1574, 9.01)}
GOLDEN["outlier"] = (158, 3.870)
DRAWS = golden_draws()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_reference_has_the_golden_values(name: str) -> None:
    found = TwoPass(DRAWS[name], by_kernel=False)
    assert found.index == GOLDEN[name][0]
    assert found.threshold == pytest.approx(GOLDEN[name][1], abs=0.005)


# -------------------------------------------------------------- one pass on continuous data


def gelu(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(0.8 * (x + 0.0447 * x**3))))


CONTINUOUS: dict[str, Callable[[Generator], Floats]] = {
    **{name: (lambda _, name=name: DRAWS[name]) for name in DRAWS},  # type: ignore[misc]
    "exponential": lambda random: random.exponential(size=200_000),
    "logistic": lambda random: random.logistic(size=200_000),
    "student": lambda random: random.standard_t(5, size=200_000),
    "gelu": lambda random: gelu(random.standard_normal(200_000)),
    "uniform": lambda random: random.uniform(-1, 1, size=100_000),
    "relu6": lambda random: np.clip(random.normal(1, 2, size=200_000), 0, 6),
    "sigmoid": lambda random: 1 / (1 + np.exp(-random.normal(0, 3, size=200_000))),
    "negative": lambda random: -random.gamma(2, size=200_000),
    "tiny": lambda random: random.normal(0, 1e-12, size=100_000),
    "large": lambda random: random.normal(1e20, 1e21, size=200_000),
}


def sqnr(values: Floats, low: float, high: float) -> float:
    """Of 8 bits over the range, in dB."""
    values = np.asarray(values, np.float64)
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    codes = np.clip(np.rint((values - low) / step), 0, 255)
    noise = np.square(codes * step + low - values).sum()
    return 10 * math.log10(np.square(values).sum() / noise)


def sides(values: Floats, clip: float) -> tuple[float, float]:
    return max(float(values.min()), -clip), min(float(values.max()), clip)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_one_pass_chooses_as_well_as_the_reference(name: str) -> None:
    values = CONTINUOUS[name](np.random.default_rng(3)).astype(np.float32)
    reference = TwoPass(values)
    found = of(np.array_split(values, 7))
    clip = max(-found.low, found.high)
    kept = math.floor(clip / float(reference.width))  # all bins: a candidate only here
    assert reference.objective(min(kept, BINS)) <= 1.01 * min(reference.objectives)
    theirs = sqnr(values, *sides(values, reference.threshold))
    assert sqnr(values, found.low, found.high) >= theirs - 0.1


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_data_has_no_bin_that_is_really_empty(name: str) -> None:
    reference = TwoPass(CONTINUOUS[name](np.random.default_rng(4)))
    counts = np.floor(reference.histogram).astype(np.float64)
    mass, support = prepare(counts, LEVELS)
    assert support.all()
    np.testing.assert_array_equal(mass, counts + FILL)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real networks are not part of the repository")
def test_one_pass_chooses_as_well_as_the_reference_on_real_activations() -> None:
    onnx, cv2 = pytest.importorskip("onnx"), pytest.importorskip("cv2")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(SHARED / "models" / "resnet20_cifar10.onnx")
    names = [one.output[0] for one in model.graph.node if one.op_type in ("Add", "Relu", "Conv")]
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, None) for one in names
    )
    pictures = sorted((SHARED / "data" / "dev" / "cifar10" / "calib").rglob("*.jpg"))[:60]
    pixels = np.stack([cv2.imread(str(one))[:, :, ::-1] for one in pictures]).astype(np.float32)
    batch = ((pixels - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (given,) = session.get_inputs()
    gains = []
    for values in session.run(
        names, {given.name: np.ascontiguousarray(batch.transpose(0, 3, 1, 2))}
    ):
        reference = TwoPass(values)
        found = of([values])
        kept = math.floor(max(-found.low, found.high) / float(reference.width))
        assert reference.objective(min(kept, BINS)) <= 1.01 * min(reference.objectives)
        theirs = sqnr(values, *sides(values, reference.threshold))
        gains.append(sqnr(values, found.low, found.high) - theirs)
    assert np.mean(gains) > -0.1


# ------------------------------------------------------------------------------ few distinct values


SPARSE: dict[str, Callable[[Generator], Floats]] = {
    "pixels": lambda random: np.clip(random.normal(110, 60, size=300_000), 0, 255).astype(np.uint8),
    "pixels of one frequency": lambda random: random.integers(0, 256, 300_000),
    "a constant": lambda _: np.full(100_000, 3.7),
    "two values": lambda random: random.choice([1.0, 100.0], 100_000),
    "three values": lambda random: random.choice([0.0, 0.5, 1.0], 100_000),
    "one-hot": lambda random: random.random(100_000) < 0.5,
    "one-hot, both signs": lambda random: random.choice([-1, 0, 2], 100_000),
    "categories": lambda random: random.integers(0, 10, 100_000),
    "a spike at 6": lambda random: np.clip(random.normal(1, 3, size=200_000), 0, 6),
    "a spike at 6, alone": lambda random: np.where(
        random.random(200_000) < 0.1, 6, np.abs(random.normal(0, 0.5, size=200_000))
    ),
}


@pytest.mark.parametrize("name", SPARSE)
def test_few_distinct_values_are_not_clipped(name: str) -> None:
    values = np.asarray(SPARSE[name](np.random.default_rng(5)), np.float32)
    assert of([values]) == Range(low=float(values.min()), high=float(values.max()))


@pytest.mark.parametrize("name", ["pixels of one frequency", "a constant", "three values"])
def test_the_reference_clips_them(name: str) -> None:
    values = np.asarray(SPARSE[name](np.random.default_rng(5)), np.float32)
    assert TwoPass(values).threshold < 0.999 * values.max()


def test_dark_pixels_keep_every_value_that_is_not_rare() -> None:
    pixels = np.random.default_rng(6).exponential(20, size=1_000_000).clip(0, 255).astype(np.uint8)
    assert of([pixels]).high > 100
    assert TwoPass(pixels.astype(np.float32)).threshold < 20


def test_only_the_surroundings_of_discrete_values_are_really_empty() -> None:
    counts = np.zeros(256)
    counts[:60] = 1000  # continuous
    counts[[100, 130]] = 30, 2  # a value, and a few by chance
    counts[199:201] = 20, 30  # one value, spread over two bins
    counts[230:233] = 500  # too wide to be one value
    mass, support = prepare(counts, 32)
    expected = np.ones(256)
    expected[92:109] = expected[191:209] = 0
    expected[[100, 200]] = 1
    np.testing.assert_array_equal(support, expected)
    counts[199:201] = 0, 50
    np.testing.assert_array_equal(mass, counts + FILL * expected)


def test_little_data_is_not_clipped() -> None:
    values = np.random.default_rng(7).standard_normal(200_000).astype(np.float32)
    few, many = values[:30_000], values
    assert of([few]) == Range(low=float(few.min()), high=float(few.max()))
    assert of([many]).high < values.max()
    assert of([few, np.zeros(10**6)]).high == few.max()  # zeros say nothing


# -------------------------------------------------------------------------------------- the search


def literal(mass: list[float], support: list[float], levels: int, kept: int) -> float:
    """The divergence of one candidate, bin by bin; really empty bins have neither mass nor part."""
    p = mass[:kept]
    p[-1] += sum(mass[kept:])
    q = [0.0] * kept
    for level in range(levels):
        first, end = level * kept / levels, (level + 1) * kept / levels
        parts = [max(0.0, min(j + 1, end) - max(j, first)) * support[j] for j in range(kept)]
        parts = [part if part > 1e-9 else 0.0 for part in parts]
        inside = sum(part * one for part, one in zip(parts, mass, strict=False))
        for j, part in enumerate(parts):
            q[j] += part * inside / sum(parts) if inside else 0.0
    total = sum(q)
    q = [one if support[j] and one else FILL for j, one in enumerate(q)]
    return sum(
        one / sum(p) * math.log(one / sum(p) / (other / total))
        for one, other in zip(p, q, strict=True)
        if one > 0
    )


@relaxed
@given(
    st.lists(st.sampled_from([0, 0, 1, 3, 40, 1000]), min_size=4, max_size=40).filter(any),
    st.integers(2, 8),
    st.booleans(),
)
def test_the_kernel_finds_what_the_sum_over_all_bins_is(
    given_counts: list[int], levels: int, fill: bool
) -> None:
    levels = min(levels, len(given_counts))
    support = [1.0 if fill or one else 0.0 for one in given_counts]
    mass = [one + FILL * part for one, part in zip(given_counts, support, strict=True)]
    found = divergences(np.array(mass), np.array(support), levels, FILL)
    assert len(found) == len(mass) - levels + 1
    for kept in range(levels, len(mass) + 1):
        if not any(mass[:kept]):
            assert found[kept - levels] == math.inf
        else:
            expected = literal(mass, support, levels, kept)
            # what fills empty bins is 1e-7 of a count: it enters the sums in another order
            assert found[kept - levels] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_kernel_finds_the_objectives_of_the_reference(name: str) -> None:
    reference = TwoPass(DRAWS[name], by_kernel=False)
    found = divergences(reference.histogram.astype(np.float64), np.ones(BINS), LEVELS, FILL)
    np.testing.assert_allclose(found[:-1], reference.objectives, rtol=1e-5, atol=1e-8)
    assert LEVELS + int(np.argmin(found)) == reference.index


def test_among_equals_the_largest_wins() -> None:
    counts = np.zeros(64)
    counts[[3, 35]] = 2000  # both in bins of their own, in every candidate that has them
    assert threshold(counts, 8) == 1.0


# --------------------------------------------------------------------------------- the calibrator


def test_the_entry() -> None:
    assert (ENTRY.name, ENTRY.aliases, ENTRY.batched) == ("KL", ("ENTROPY",), True)
    assert ENTRY.options() == Options(bins=2048, levels=128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins = 1: expected 2 to 4096; levels = 128: expected 2 to bins, which is 1"),
        ({"bins": 5000}, "bins = 5000: expected 2 to 4096"),
        ({"levels": 1}, "levels = 1: expected 2 to bins, which is 2048"),
        ({"bins": 100}, "levels = 128: expected 2 to bins, which is 100"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        Options(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(("bins", "levels"), [(512, 128), (2048, 16), (4096, 255), (128, 128)])
def test_options_are_used(bins: int, levels: int) -> None:
    found = of([DRAWS["laplace"]], bins=bins, levels=levels)
    steps = max(-found.low, found.high) / float(TwoPass(DRAWS["laplace"]).largest) * bins
    assert levels <= steps <= bins
    assert steps == bins or steps % 1 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.abs(DRAWS["normal"]) + 1.0, 1.0, None),
        (np.maximum(DRAWS["normal"], 0), 0.0, None),
        (np.minimum(DRAWS["normal"], 0), None, 0.0),
        (-np.abs(DRAWS["normal"]) - 1.0, None, -1.0),
    ],
)
def test_only_what_was_seen_is_kept(values: Floats, low: float | None, high: float | None) -> None:
    found = of([values])
    seen = values.astype(np.float32)
    assert seen.min() <= found.low < found.high <= seen.max()
    assert low is None or found.low == seen.min() == pytest.approx(low, abs=1e-3)
    assert high is None or found.high == seen.max() == pytest.approx(high, abs=1e-3)
    assert max(-found.low, found.high) < np.abs(seen).max()  # and the tail is clipped


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([], math.inf, -math.inf),
        ([0.0] * 9, 0.0, 0.0),
        ([-4.0], -4.0, -4.0),
        ([2.5] * 50_000, 2.5, 2.5),
        ([1e-30, -1e30] * 20_000, -1e30, 1e-30),
        ([1e-40, 1e-45] * 20_000, 1e-45, 1e-40),
    ],
)
def test_degenerate_data(values: list[float], low: float, high: float) -> None:
    expected = Range(low=float(np.float32(low)), high=float(np.float32(high)))
    assert of([values]) == expected


@relaxed
@given(st.data(), st.sampled_from(["normal", "relu", "outlier"]))
def test_order_split_and_merging_do_not_matter(data: st.DataObject, name: str) -> None:
    values = DRAWS[name].astype(np.float32)
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(values.size)
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), min_size=1, max_size=4)))
    pieces = np.split(values[order], cuts)
    merged_one = calibrator()
    for piece in pieces:
        other = calibrator()
        other.observe(piece)
        merged_one.merge(other)
    assert of([values]) == of(pieces) == merged_one.result()
