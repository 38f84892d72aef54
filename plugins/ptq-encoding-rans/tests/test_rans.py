"""RANS: codes come back, in as many bytes as their entropy says, and damage is noticed."""

from __future__ import annotations

import heapq
import math
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ptq_core.plugins import discover
from ptq_encoding_rans import frequencies, kernels
from ptq_encoding_rans.stream import CHUNK_BITS, Rans

RANS = Rans()
CHUNK = 1 << CHUNK_BITS[0]


def dtype(bits: int) -> type:
    return np.int8 if bits <= 8 else np.int16


def draw(bits: int, count: int, spread: float, seed: int = 0) -> NDArray[Any]:
    """Codes of a normal distribution."""
    half = 1 << (bits - 1)
    values = np.rint(np.random.default_rng(seed).normal(0, spread, count))
    return np.clip(values, -half, half - 1).astype(dtype(bits))


def stream_of(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    constants = RANS.encode(codes, bits, 17).constants
    assert list(constants) == ["stream"]
    stream: NDArray[np.uint8] = constants["stream"]
    assert stream.dtype == np.uint8
    return stream


def comes_back(codes: NDArray[Any], bits: int) -> bool:
    back = RANS.decode({"stream": stream_of(codes, bits)}, bits, codes.shape)
    return back.dtype == codes.dtype and np.array_equal(back, codes)


def entropy_bytes(codes: NDArray[Any]) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


# ------------------------------------------------------------------------------- it comes back


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width_comes_back(bits: int) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(bits).integers(-half, half, (7, 11, 13)).astype(dtype(bits))
    assert comes_back(codes, bits)
    assert comes_back(draw(bits, 3000, half / 8), bits)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
@pytest.mark.parametrize(("bits", "spread"), [(4, 2.0), (12, 300.0)])
def test_every_length_comes_back(count: int, bits: int, spread: float) -> None:
    assert comes_back(draw(bits, count, spread), bits)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 16))
def test_whatever_the_codes_they_come_back(data: st.DataObject, bits: int) -> None:
    half = 1 << (bits - 1)
    elements = st.integers(-half, half - 1)
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, max_side=9)
    assert comes_back(data.draw(hnp.arrays(dtype(bits), shapes, elements=elements)), bits)


@pytest.mark.parametrize("value", [-8, 0, 7])
def test_one_value_takes_next_to_nothing(value: int) -> None:
    codes = np.full((100, 1000), value, np.int8)
    assert comes_back(codes, 4)
    assert stream_of(codes, 4).size < 70


def test_a_rare_value_among_very_many_comes_back() -> None:
    codes = np.zeros(1 << 18, np.int8)
    codes[100_000] = -3
    codes[-1] = 5
    assert comes_back(codes, 4)


def test_values_far_apart_come_back() -> None:
    codes = np.random.default_rng(0).choice([-32768, -7, 0, 12345, 32767], 5000).astype(np.int16)
    assert comes_back(codes, 16)
    assert stream_of(codes, 16).size < entropy_bytes(codes) + 80


def test_arrays_of_any_memory_layout_are_taken() -> None:
    codes = draw(6, 6000, 5).reshape(10, 20, 30)
    expected = stream_of(np.ascontiguousarray(codes.transpose(2, 0, 1)), 6)
    np.testing.assert_array_equal(stream_of(codes.transpose(2, 0, 1), 6), expected)


def test_equal_codes_make_equal_streams() -> None:
    codes = draw(8, 300_000, 20)
    np.testing.assert_array_equal(stream_of(codes, 8), stream_of(codes.copy(), 8))


def test_a_stored_stream_is_still_read() -> None:
    # by version 1 of the stream; two symbols with half of the slots each
    codes = np.array([0, -1, 0, 0, -1, -1, -1, 0, 0, -1], np.int8)
    stored = stream_of(codes, 1).tobytes()
    assert stored.hex() == STORED
    back = RANS.decode({"stream": np.frombuffer(bytes.fromhex(STORED), np.uint8)}, 1, (10,))
    np.testing.assert_array_equal(back, codes)


# header; table; words in the chunk; states; no word was needed
STORED = (
    "010c00117f000100060000000a00000000000000ff00000800c00000000000000018040000000400"
    "000802000008020000000200000002000000020000080200"
)


def test_a_code_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="at least -4 and at most 3"):
        RANS.encode(np.array([0, 4], np.int8), 3, 17)
    with pytest.raises(ValueError, match="at least -128"):
        RANS.encode(np.array([0, 300], np.int16), 8, 17)


# ------------------------------------------------------------------------------------- its size


@pytest.mark.parametrize("count", [50_000, 1_000_000])
@pytest.mark.parametrize(
    ("bits", "spread"),
    [(1, 3.0), (2, 0.6), (3, 1.0), (4, 2.0), (5, 3.0), (6, 9.0), (7, 12.0), (8, 5.0), (8, 30.0),
     (9, 40.0), (10, 100.0), (12, 300.0), (16, 40.0)],
)  # fmt: skip
def test_stored_within_one_percent_of_the_entropy(bits: int, spread: float, count: int) -> None:
    codes = draw(bits, count, spread)
    assert stream_of(codes, bits).size < entropy_bytes(codes) * (1.01 if count < 1e6 else 1.003)


def test_a_fifteenth_of_a_bit_is_within_one_percent() -> None:
    codes = (np.random.default_rng(0).random(2_000_000) < 0.008).astype(np.int8)
    assert entropy_bytes(codes) * 8 / codes.size < 1 / 14
    assert stream_of(codes, 2).size < 1.01 * entropy_bytes(codes)


def test_codes_without_structure_take_their_bits() -> None:
    for bits in (1, 4, 7, 8, 12, 16):
        half = 1 << (bits - 1)
        codes = np.random.default_rng(0).integers(-half, half, 200_000).astype(dtype(bits))
        assert stream_of(codes, bits).size < 1.005 * codes.size * bits / 8


def test_wide_codes_are_not_taken_for_a_table_of_their_own() -> None:
    # 50,000 codes of 16 bits are nearly all different: the table alone would be as large as they
    codes = draw(16, 50_000, 5000)
    source = math.log2(5000 * math.sqrt(2 * math.pi * math.e))  # bits, of the distribution itself
    assert stream_of(codes, 16).size * 8 / codes.size < 1.005 * source


def greedy(counts: list[int], slots: int) -> list[int]:
    """Slot by slot to whoever saves most bits by it: the optimum, since each saves less."""
    freq = [1] * len(counts)
    heap = [(-n * math.log2(2), i) for i, n in enumerate(counts)]
    heapq.heapify(heap)
    for _ in range(slots - len(counts)):
        _, i = heapq.heappop(heap)
        freq[i] += 1
        heapq.heappush(heap, (-counts[i] * math.log2((freq[i] + 1) / freq[i]), i))
    return freq


def bits_with(counts: list[int], freq: Any) -> float:
    slots = sum(int(f) for f in freq)
    return math.fsum(n * math.log2(slots / int(f)) for n, f in zip(counts, freq, strict=True))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300))
def test_slots_are_given_where_they_save_most(counts: list[int]) -> None:
    freq = frequencies.normalize(np.array(counts), 12)
    assert freq.sum() == 4096
    assert freq.min() >= 1
    best = bits_with(counts, greedy(counts, 4096))
    assert bits_with(counts, freq) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("symbols", [1, 2, 255, 4095, 4096])
def test_equal_counts_get_nearly_equal_slots(symbols: int) -> None:
    freq = frequencies.normalize(np.full(symbols, 17), 12)
    assert freq.sum() == 4096
    assert freq.max() - freq.min() <= 1


# ------------------------------------------------------------------------------------- the table


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.integers(0, 65535), st.integers(1, 10**6), min_size=1, max_size=200))
def test_the_table_is_read_as_it_was_written(found: dict[int, int]) -> None:
    symbols = np.array(sorted(found))
    freq = frequencies.normalize(np.array([found[one] for one in sorted(found)]), 13)
    data = frequencies.written(symbols, freq)
    back = frequencies.read(data, int(symbols[0]), symbols.size, 13)
    np.testing.assert_array_equal(back[0], symbols)
    np.testing.assert_array_equal(back[1], freq)


def test_a_table_of_another_total_is_refused() -> None:
    data = frequencies.written(np.arange(4), np.array([1, 2, 3, 4090]))
    assert frequencies.read(data, 0, 4, 12)[1].tolist() == [1, 2, 3, 4090]
    with pytest.raises(ValueError, match="table"):
        frequencies.read(data, 0, 4, 13)
    with pytest.raises(ValueError, match="table"):
        frequencies.read(data[:-1], 0, 4, 12)
    with pytest.raises(ValueError, match="table"):
        frequencies.read(data, 0xFFFE, 4, 12)


# ------------------------------------------------------------------------- twins of the kernels


def encode_twin(codes: Any, freq: Any, before: Any, half: int, low: int, k: int) -> Any:
    states, words = [1 << 16] * 8, []
    for i in reversed(range(len(codes))):
        symbol = (int(codes[i]) + half) >> low
        f, x = int(freq[symbol]), states[i % 8]
        while x >= f << (32 - k):
            words.append(x % 65536)
            x //= 65536
        states[i % 8] = (x // f) * (1 << k) + x % f + int(before[symbol])
    return states, words[::-1]


def decode_twin(states: Any, words: Any, freq: Any, before: Any, k: int, n: int) -> Any:
    states, words = [int(x) for x in states], list(words)
    codes = []
    for i in range(n):
        x = states[i % 8]
        slot = x % (1 << k)
        symbol = max(s for s in range(len(freq)) if freq[s] and before[s] <= slot)
        x = int(freq[symbol]) * (x >> k) + slot - int(before[symbol])
        while x < 1 << 16:
            x = x * 65536 + int(words.pop(0))
        states[i % 8] = x
        codes.append(symbol)
    return codes, states, words


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([np.int8, np.int16]), st.integers(0, 7), st.integers(12, 15))
def test_the_coder_equals_its_twin(data: st.DataObject, kind: Any, low: int, k: int) -> None:
    half = 1 << (8 * np.dtype(kind).itemsize - 1)
    values = data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=12))
    count = data.draw(st.integers(1, 200))
    codes = np.random.default_rng(count).choice(values, count).astype(kind)
    grouped = np.bincount((codes.astype(int) + half) >> low, minlength=2 * half >> low)
    symbols = np.flatnonzero(grouped)
    freq = np.zeros(grouped.size, np.uint32)
    freq[symbols] = frequencies.normalize(grouped[symbols], k)
    before = (np.cumsum(freq) - freq).astype(np.uint32)

    states, words = np.empty(8, np.uint32), np.zeros(count, np.uint16)
    used = kernels.encode(codes, freq, before, half, low, k, states, words)
    expected = encode_twin(codes, freq, before, half, low, k)
    assert states.tolist() == expected[0]
    words = words[count - used :]
    assert words.tolist() == expected[1]

    table = np.empty(1 << k, np.uint64)
    kernels.slots(symbols, freq[symbols], half, low, table)
    back = np.empty(count, kind)
    padded = np.append(words, np.zeros(8, np.uint16))
    assert kernels.decode(states, padded, 0, used, table, k, back)
    few, cut = freq[symbols], before[symbols]
    twin, ends, left = decode_twin(states, words, few, cut, k, count)
    assert back.tolist() == [(int(symbols[one]) << low) - half for one in twin]
    assert ends == [1 << 16] * 8
    assert not left


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int16, st.integers(1, 50)), st.integers(1, 8))
def test_low_bits_equal_their_twin(codes: NDArray[np.int16], low: int) -> None:
    packed = np.zeros(-(-codes.size // 8) * low, np.uint8)
    kernels.put_low(codes, low, packed)
    whole = sum((int(code) & ((1 << low) - 1)) << (low * i) for i, code in enumerate(codes))
    assert packed.tobytes() == whole.to_bytes(packed.size, "little")
    back = (codes >> low) << low
    kernels.get_low(packed, low, back)
    np.testing.assert_array_equal(back, codes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**5), min_size=1, max_size=40), st.integers(0, 15))
def test_golomb_codes_equal_their_twin(values: list[int], order: int) -> None:
    text = ""
    for value in values:
        digits = f"{value + (1 << order):b}"
        text += "0" * (len(digits) - 1 - order) + digits
    data = np.zeros(-(-len(text) // 8), np.uint8)
    assert kernels.put_golomb(np.array(values), order, 0, data) == len(text)
    assert "".join(f"{byte:08b}" for byte in data)[: len(text)] == text
    back = np.zeros(len(values), np.int64)
    assert kernels.get_golomb(data, order, 0, back) == len(text)
    assert back.tolist() == values
    if text[-1] == "1":  # else the last byte may hold zeros only
        assert kernels.get_golomb(data[:-1], order, 0, back) == -1


@given(hnp.arrays(np.int8, st.integers(0, 300)))
def test_counts_equal_numpy(codes: NDArray[np.int8]) -> None:
    counts = np.zeros(256, np.int64)
    kernels.count(codes, counts, 128)
    np.testing.assert_array_equal(counts, np.bincount(codes.astype(int) + 128, minlength=256))


# --------------------------------------------------------------------------------------- damage


def test_damage_is_noticed_and_never_harms() -> None:
    codes = draw(3, 5000, 1)  # of which no bits are stored as they are
    stream = stream_of(codes, 3)
    noticed = 0
    for place in range(stream.size):
        altered = stream.copy()
        altered[place] ^= 0x55
        try:
            back = RANS.decode({"stream": altered}, 3, codes.shape)
        except ValueError:
            noticed += 1
            continue
        assert back.shape == codes.shape
    # the coder has no checksum; what is altered nearly always ends in another state
    assert noticed > 0.99 * stream.size


def test_a_stream_cut_short_is_refused() -> None:
    for codes, bits in ((draw(8, 3000, 10), 8), (draw(16, 3000, 5000), 16)):
        stream = stream_of(codes, bits)
        for size in range(0, stream.size, 7):
            with pytest.raises(ValueError, match=r"stream|table"):
                RANS.decode({"stream": stream[:size]}, bits, codes.shape)
        with pytest.raises(ValueError, match="too long"):
            RANS.decode({"stream": np.append(stream, np.uint8(0))}, bits, codes.shape)


def test_another_shape_or_version_is_refused() -> None:
    stream = stream_of(draw(8, 3000, 10), 8)
    with pytest.raises(ValueError, match="has 3000 codes, expected 2999"):
        RANS.decode({"stream": stream}, 8, (2999,))
    with pytest.raises(ValueError, match="expected none"):
        RANS.decode({"stream": stream}, 8, (0, 5))
    other = stream.copy()
    other[0] = 9
    with pytest.raises(ValueError, match="version 9"):
        RANS.decode({"stream": other}, 8, (3000,))


def test_a_header_that_promises_too_much_is_refused() -> None:
    stream = stream_of(draw(8, 3000, 10), 8).tobytes()
    count = 1 << 60
    huge = stream[:12] + struct.pack("<Q", count) + stream[20:]
    with pytest.raises(ValueError, match="codes, expected 3000"):
        RANS.decode({"stream": np.frombuffer(huge, np.uint8)}, 8, (3000,))


# --------------------------------------------------------------------------------------- plugin


def test_it_is_found_and_not_portable() -> None:
    registered = discover().encoding("rans")
    assert registered.record.name == "ptq-encoding-rans"
    assert not registered.entry.portable
    encoding = registered.entry.factory(registered.entry.options())
    encoded = encoding.encode(np.arange(8, dtype=np.int8), 8, 13)
    assert encoded.function == ""


def test_offering_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, ptq_encoding_rans as p; list(p.ptq_encodings()); "
        "print(sorted({'numba', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_kernels_let_other_threads_run() -> None:
    for kernel in (kernels.encode, kernels.decode, kernels.count):
        assert kernel.targetoptions["nogil"]
