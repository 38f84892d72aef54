from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from ptq_core.api import Encoded, NoOptions
from ptq_encoding_packed import ptq_encodings
from ptq_encoding_packed.bits import layout, pack, unpack

Array = NDArray[Any]
Check = Callable[[Encoded, Array, int], None]

ENTRY = next(entry for entry in ptq_encodings() if entry.name == "PACKED")
PACKED = ENTRY.factory(NoOptions())
WIDTHS = range(1, 17)


def container(bits: int) -> type:
    return np.int8 if bits <= 8 else np.int16


def random(bits: int, shape: tuple[int, ...]) -> Array:
    codes = np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    return codes.astype(container(bits))


def packable(bits: int) -> st.SearchStrategy[Array]:
    values = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    shapes = arrays.array_shapes(min_dims=0, min_side=0, max_side=20)
    return arrays.arrays(container(bits), shapes, elements=values)


def test_the_entry() -> None:
    assert ENTRY.portable
    assert ENTRY.options is NoOptions


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_through_onnxruntime(bits: int, opset: int, decodes: Check) -> None:
    codes = random(bits, (7, 5, 9))
    decodes(PACKED.encode(codes, bits, opset), codes, opset)


@pytest.mark.parametrize("bits", WIDTHS)
def test_one_code_through_onnxruntime(bits: int, decodes: Check) -> None:
    for code in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1):
        codes = np.full((1, 1), code, container(bits))
        decodes(PACKED.encode(codes, bits, 17), codes, 17)


@settings(deadline=None)
@given(st.sampled_from(WIDTHS).flatmap(lambda bits: st.tuples(st.just(bits), packable(bits))))
def test_round_trip(case: tuple[int, Array]) -> None:
    bits, codes = case
    for opset in (13, 25):
        found = PACKED.decode(PACKED.encode(codes, bits, opset).constants, bits, codes.shape)
        assert found.dtype == container(bits)
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_no_bit_is_wasted(bits: int) -> None:
    codes = random(bits, (1000, 33))
    constants = PACKED.encode(codes, bits, 17).constants
    nbytes = sum(array.nbytes for array in constants.values())
    exact = codes.size * bits / 8
    assert exact <= nbytes < exact + bits  # the last column of bytes is filled up


def test_the_bytes_of_four_bits() -> None:
    codes = np.array([-8, -7, -6, 7, -5], np.int8)
    (data,) = PACKED.encode(codes, 4, 13).constants.values()
    assert data.tolist() == [0xF0, 0x31, 0x02]  # code j and code j + 3 in byte j


def test_the_bytes_of_seven_bits() -> None:
    values = np.arange(8, dtype=np.uint8) * 9
    data = pack(values, 7)
    assert (data & 127).tolist() == values[:7].tolist()
    assert int((data >> 7) @ 2 ** np.arange(7)) == values[7]


@pytest.mark.parametrize("width", range(1, 8))
def test_each_bit_of_the_data_is_one_bit_of_one_code(width: int) -> None:
    form = layout(width)
    seen = []
    for place in range(8 * form.rows):
        data = np.zeros(form.rows, np.uint8)
        data[place // 8] = 1 << place % 8
        values = unpack(data, width, form.codes)
        assert sum(int(value).bit_count() for value in values) == 1
        seen.append(values.tobytes())
    assert len(set(seen)) == 8 * form.rows


@pytest.mark.parametrize(("bits", "opset", "dtype"), [(4, 21, "int4"), (2, 25, "int2")])
def test_native_types(bits: int, opset: int, dtype: str) -> None:
    codes = random(bits, (3, 5))
    encoded = PACKED.encode(codes, bits, opset)
    assert encoded.function == ""
    assert encoded.constants["codes"].dtype == getattr(ml_dtypes, dtype)
    written = onnx_ir.to_proto(onnx_ir.tensor(encoded.constants["codes"]))
    assert len(written.raw_data) == -(-15 * bits // 8)
    assert PACKED.encode(codes, bits, opset - 1).function


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 25, reason="this onnx has no opset 25")
@pytest.mark.parametrize("bits", [1, 2, 4, 7, 12])
def test_opset_25(bits: int, decodes: Check) -> None:
    codes = random(bits, (6, 7))
    decodes(PACKED.encode(codes, bits, 25), codes, 25)


@pytest.mark.parametrize("bits", [8, 16])
def test_whole_bytes_are_stored_as_they_are(bits: int) -> None:
    codes = random(bits, (3, 5))
    encoded = PACKED.encode(codes, bits, 13)
    assert encoded.function == ""
    np.testing.assert_array_equal(encoded.constants["codes"], codes)
    assert encoded.constants["codes"].dtype == container(bits)


def test_one_function_for_each_width() -> None:
    texts = {bits: {PACKED.encode(random(bits, (n,)), bits, 17).function for n in (1, 9, 700)}
             for bits in WIDTHS}  # fmt: skip
    assert all(len(found) == 1 for found in texts.values())
    for bits in set(WIDTHS) - {8, 16}:
        (text,) = texts[bits]
        assert f"Unpack{bits} (" in text


def test_codes_out_of_range() -> None:
    with pytest.raises(ValueError, match="from -5 to 3, but 3 bits hold -4 to 3"):
        PACKED.encode(np.array([-5, 3], np.int8), 3, 17)
    with pytest.raises(ValueError, match="width of 17 bits"):
        PACKED.encode(np.array([1], np.int16), 17, 17)
    with pytest.raises(ValueError, match="type float32"):
        PACKED.encode(np.ones(3, np.float32), 8, 17)


@pytest.mark.parametrize("bits", [1, 3, 5, 7, 9, 12, 15])
def test_cut_off_data(bits: int) -> None:
    codes = random(bits, (10, 10))
    constants = dict(PACKED.encode(codes, bits, 17).constants)
    for name, array in constants.items():
        with pytest.raises(ValueError, match=r"expected|take"):
            PACKED.decode(constants | {name: array[:-1]}, bits, codes.shape)


def test_altered_data() -> None:
    codes = random(3, (3,))
    constants = {"data": PACKED.encode(codes, 3, 17).constants["data"].copy()}
    constants["data"][-1] |= 0b11000000
    with pytest.raises(ValueError, match="behind the last of 3 values"):
        PACKED.decode(constants, 3, (3,))
    with pytest.raises(ValueError, match="another width"):
        PACKED.decode(constants, 12, (3,))
    with pytest.raises(ValueError, match="float32"):
        PACKED.decode({"codes": np.zeros(3, np.float32)}, 8, (3,))
    with pytest.raises(ValueError, match="4 bits hold"):
        PACKED.decode({"codes": np.full(3, 100, np.int8)}, 4, (3,))
