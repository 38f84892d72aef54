from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ptq_core.api import Encoded, NoOptions
from ptq_encoding_packed import ptq_encodings
from ptq_encoding_packed.classes import design, first_ranks
from ptq_encoding_packed.entropy import Entropy, stored

Array = NDArray[Any]
Check = Callable[[Encoded, Array, int], None]

ENTRY = next(entry for entry in ptq_encodings() if entry.name == "ENTROPY")
ENTROPY = ENTRY.factory(NoOptions())
RATES = [0.05, 0.3, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 9, 12]


def entropy(codes: Array) -> float:
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())


def codes_of(kind: str, rate: float, size: int) -> tuple[Array, int]:
    """Rounded Gaussian or Laplacian numbers of this entropy, and the width that they need."""
    draw = getattr(np.random.default_rng(int(rate * 100)), kind)
    reals = draw(size=size)
    low, high = 0.1, 4000.0
    for _ in range(12):
        middle = math.sqrt(low * high)
        if entropy(np.rint(reals[:20_000] * middle)) < rate:
            low = middle
        else:
            high = middle
    codes = np.rint(reals * high).clip(-(2**15), 2**15 - 1).astype(np.int16)
    bits = max(int(codes.max()).bit_length(), int(-codes.min() - 1).bit_length()) + 1
    return (codes.astype(np.int8) if bits <= 8 else codes), bits


@pytest.mark.parametrize("kind", ["normal", "laplace"])
@pytest.mark.parametrize("rate", RATES)
def test_size_against_the_entropy(kind: str, rate: float) -> None:
    codes, bits = codes_of(kind, rate, 100_000)
    encoded = ENTROPY.encode(codes, bits, 17)
    bound = entropy(codes)
    found = 8 * stored(encoded, bits) / codes.size
    # vectors of codes can come below the entropy of single ones, by chance and by their finite size
    assert 0.99 * bound < found < (bound + 0.25 if bound < 3.45 else bound * 1.06)
    np.testing.assert_array_equal(ENTROPY.decode(encoded.constants, bits, codes.shape), codes)


@pytest.mark.parametrize("rate", [0.05, 0.7, 1.5, 2.5, 3.5, 5, 7, 9, 12])
@pytest.mark.parametrize("opset", [13, 21])
def test_through_onnxruntime(rate: float, opset: int, decodes: Check) -> None:
    codes, bits = codes_of("normal", rate, 40_001)
    encoded = ENTROPY.encode(codes, bits, opset)
    assert "classes" in encoded.constants
    decodes(encoded, codes.reshape(13, 17, 181), opset)


@pytest.mark.parametrize("opset", [17, 18])
def test_other_opsets(opset: int, decodes: Check) -> None:
    codes, bits = codes_of("laplace", 3, 5000)
    decodes(ENTROPY.encode(codes, bits, opset), codes, opset)


def test_long_positions(decodes: Check) -> None:
    codes, bits = codes_of("normal", 5, 5000)
    usual, long = ENTROPY.encode(codes, bits, 17), Entropy(long=1).encode(codes, bits, 17)
    assert "_long (" in long.function
    assert "_long (" not in usual.function
    decodes(long, codes, 17)


def test_payloads_of_every_length(decodes: Check) -> None:
    codes, bits = codes_of("normal", 2, 4000)
    exact = 0
    for size in range(3900, 3960):
        part = codes[:size]
        encoded = ENTROPY.encode(part, bits, 17)
        np.testing.assert_array_equal(ENTROPY.decode(encoded.constants, bits, part.shape), part)
        if encoded.constants["payload"][-2] == 0:  # all positions end where a word begins
            decodes(encoded, part, 17)
            exact += 1
    assert exact > 0


@pytest.mark.parametrize("shape", [(1,), (2, 1, 3), (300, 400)])
def test_equal_codes_cost_nothing(shape: tuple[int, ...], decodes: Check) -> None:
    codes = np.full(shape, -3, np.int8)
    encoded = ENTROPY.encode(codes, 3, 17)
    assert [array.nbytes for array in encoded.constants.values()] == [1]
    np.testing.assert_array_equal(ENTROPY.decode(encoded.constants, 3, shape), codes)
    decodes(encoded, codes, 17)


@pytest.mark.parametrize("bits", [1, 4, 7, 8, 11, 16])
def test_noise_is_stored_as_packed(bits: int) -> None:
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 20_000)
    codes = codes.astype(np.int8 if bits <= 8 else np.int16)
    encoded = ENTROPY.encode(codes, bits, 17)
    assert "classes" not in encoded.constants
    np.testing.assert_array_equal(ENTROPY.decode(encoded.constants, bits, codes.shape), codes)


def test_structure_beyond_single_codes_is_used() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(-8, 8, (16, 4)).astype(np.int8)
    codes = blocks[rng.integers(0, 16, 20_000)]
    found = 8 * stored(ENTROPY.encode(codes, 4, 17), 4) / codes.size
    assert entropy(codes) > 3.5
    assert found < 1.1  # 4 bits choose a block of 4


def test_a_constant_high_part(decodes: Check) -> None:
    codes = np.random.default_rng(0).integers(0, 256, 5000).astype(np.int16)
    encoded = ENTROPY.encode(codes, 12, 17)
    assert stored(encoded, 12) < 5600
    decodes(encoded, codes, 17)


few = st.sampled_from([1, 2, 3, 5, 8, 9, 16]).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        st.lists(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), min_size=1, max_size=4),
        arrays.arrays(
            np.uint8,
            arrays.array_shapes(min_dims=0, min_side=0, max_side=30),
            elements=st.integers(0, 99),
        ),
    )
)


@settings(deadline=None)
@given(few)
def test_round_trip(case: tuple[int, list[int], Array]) -> None:
    bits, alphabet, picks = case
    container = np.int8 if bits <= 8 else np.int16
    codes = np.array(alphabet, container)[picks % len(alphabet)]
    encoded = ENTROPY.encode(codes, bits, 13)
    again = ENTROPY.encode(codes.copy(), bits, 13)
    assert again.function == encoded.function
    for name, array in encoded.constants.items():
        np.testing.assert_array_equal(again.constants[name], array)
    found = ENTROPY.decode(encoded.constants, bits, codes.shape)
    assert found.dtype == container
    np.testing.assert_array_equal(found, codes)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_the_code_is_the_best_of_its_kind(frequencies: list[int]) -> None:
    counts = np.array(sorted(frequencies, reverse=True))
    bits, widths = design(counts, table=8)
    k = widths.size.bit_length() - 1
    classes = np.searchsorted(first_ranks(widths), np.arange(counts.size), side="right") - 1
    places = np.arange(counts.size) - first_ranks(widths)[classes]
    assert np.all(places < 2.0 ** widths[classes])
    assert int(counts @ (k + widths[classes].astype(int))) + 8 * widths.size == bits

    def cost(tried: tuple[int, ...]) -> float:
        ends = np.cumsum(2 ** np.array(tried))
        if ends[-1] < counts.size:
            return math.inf
        of = np.searchsorted(ends, np.arange(counts.size), side="right")
        return float(counts @ (len(tried).bit_length() - 1 + np.array(tried)[of])) + 8 * len(tried)

    tries = [itertools.combinations_with_replacement(range(5), size) for size in (2, 4)]
    assert bits <= min(map(cost, itertools.chain(*tries)))


def test_functions_of_a_name_are_equal() -> None:
    texts: dict[str, set[str]] = {}
    for rate, size in itertools.product(RATES, [3000, 30_000]):
        codes, bits = codes_of("normal", rate, size)
        text = ENTROPY.encode(codes, bits, 17).function
        texts.setdefault(text.splitlines()[1].split()[0], set()).add(text)
    assert len(texts) > 5
    assert all(len(found) == 1 for found in texts.values())


@pytest.mark.parametrize("rate", [0.7, 3, 5, 9])
def test_damage_is_noticed(rate: float) -> None:
    codes, bits = codes_of("normal", rate, 20_000)
    constants = dict(ENTROPY.encode(codes, bits, 17).constants)
    for name, array in constants.items():
        with pytest.raises(ValueError, match=r"damaged|not of this tensor|found symbol"):
            ENTROPY.decode(constants | {name: array[:-1]}, bits, codes.shape)
        without = {key: value for key, value in constants.items() if key != name}
        with pytest.raises(ValueError, match="expected"):
            ENTROPY.decode(without, bits, codes.shape)
    with pytest.raises(ValueError, match="cut off"):
        ENTROPY.decode(constants, bits, (1, 20_500))
    with pytest.raises(ValueError, match="cut off"):
        ENTROPY.decode(constants, bits, (1, 0))
    altered = constants["classes"].copy()
    altered[16 : altered.size // 2] = 0
    with pytest.raises(ValueError, match="damaged"):
        ENTROPY.decode(constants | {"classes": altered}, bits, codes.shape)
    beyond = constants["payload"].copy()
    beyond[-1] = 1
    with pytest.raises(ValueError, match="behind the last"):
        ENTROPY.decode(constants | {"payload": beyond}, bits, codes.shape)
    wide = constants["classes"].copy()
    wide[1] = 17
    with pytest.raises(ValueError, match="17 bits"):
        ENTROPY.decode(constants | {"classes": wide}, bits, codes.shape)


def test_codes_out_of_range() -> None:
    with pytest.raises(ValueError, match="3 bits hold"):
        ENTROPY.encode(np.array([-5, 3], np.int8), 3, 17)
    with pytest.raises(ValueError, match="3 bits hold"):
        ENTROPY.decode({"value": np.array([9], np.int8)}, 3, (2,))
