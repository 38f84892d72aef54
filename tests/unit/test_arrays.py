import subprocess
import sys
import zipfile
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_core.api import ModelInput, NoOptions
from ptq_core.builtins import arrays

ENTRIES = {entry.name: entry for entry in arrays.ptq_preprocessors()}
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool")


def reader(kind, shape, dtype="float32", layout=None, data_layout=None):
    model_input = ModelInput(
        name="x", dtype=dtype, shape=tuple(shape), layout=layout, data_layout=data_layout
    )
    return ENTRIES[kind].factory(model_input, NoOptions())


def numbers(shape, dtype="float32"):
    return (np.arange(np.prod(shape, dtype=int)) % 120).reshape(shape).astype(dtype)


def assert_is(found, expected):
    np.testing.assert_array_equal(found, expected, strict=True)
    assert found.flags.c_contiguous
    assert found.dtype.isnative


@pytest.fixture
def file(tmp_path):
    """Writes bytes or an array, returns the path; the name has letters outside ASCII."""

    def write(content, name="sämple.npy"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content, allow_pickle=True)
        return path

    return write


def message(call, *arguments):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the text
        call(*arguments)
    return str(caught.value)


def test_importing_the_plugin_loads_no_numpy():
    code = (
        "import sys, ptq_core.builtins.arrays as p; list(p.ptq_preprocessors());"
        "assert 'numpy' not in sys.modules, 'numpy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------ BIN


@given(
    shape=st.lists(st.integers(1, 5), max_size=5),
    dtype=st.sampled_from(DTYPES),
    open_axis=st.none() | st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_bin_gives_back_what_was_written(tmp_path_factory, shape, dtype, open_axis):
    if open_axis == 0 and len(shape) > 1:
        shape[0] = 1  # an open batch is 1
    values = numbers(shape, dtype)
    path = tmp_path_factory.mktemp("bin") / "x.bin"
    path.write_bytes(values.astype(values.dtype.newbyteorder("<")).tobytes())
    model_shape = [None if axis == open_axis else dim for axis, dim in enumerate(shape)]
    assert_is(reader("BIN", model_shape, dtype).read(path), values)


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    data_layout=st.sampled_from([None, "NCHW", "NHWC"]),
    open_axis=st.none() | st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_bin_is_transposed_to_the_model_s_layout(
    tmp_path_factory, shape, layout, data_layout, open_axis
):
    sample = numbers(shape)
    written = sample
    if data_layout is not None and data_layout != layout:
        written = np.moveaxis(sample, 1, -1) if layout == "NCHW" else np.moveaxis(sample, -1, 1)
    path = tmp_path_factory.mktemp("bin") / "x.bin"
    path.write_bytes(written.astype("<f4").tobytes())
    model_shape = ["n" if axis == open_axis else dim for axis, dim in enumerate(shape)]
    assert_is(reader("BIN", model_shape, "float32", layout, data_layout).read(path), sample)


def test_bin_nhwc_golden(file):
    # Two pixels side by side, RGB RGB in the file, two planes of each colour in the model.
    path = file(np.array([1, 2, 3, 4, 5, 6], "<f4").tobytes(), "x.bin")
    found = reader("BIN", (1, 3, 1, 2), "float32", "NCHW", "NHWC").read(path)
    assert found.tolist() == [[[[1, 4]], [[2, 5]], [[3, 6]]]]


def test_bin_says_where_a_layout_has_no_effect(file):
    values = numbers((1, 2, 3, 4))
    plain = reader("BIN", (1, 2, 3, 4), data_layout="NHWC")
    assert_is(plain.read(file(values.tobytes(), "x.bin")), values)
    assert len(plain.notes) == 1
    assert "NHWC has no effect" in plain.notes[0]
    assert reader("BIN", (1, 2, 3, 4), "float32", "NCHW", "NHWC").notes == []
    assert reader("BIN", (1, 8), data_layout="NHWC").notes == []  # not 4-D: no layout at all


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (24 * 8, "192 bytes, expected 96 = [1, 2, 3, 4] x 4 (float32) for input 'x'; as float64"),
        (24 * 8, "or 2 samples would have this size: give each a file of its own"),
        (24, "as uint8 or int8 it would have this size: write the file as float32"),
        (48, "as float16 it would"),
        (24 * 12, "3 samples would have this size"),
        (95, "the file has 95 bytes, expected 96 = [1, 2, 3, 4] x 4 (float32) for input 'x'"),
        (0, "the file is empty"),
    ],
)
def test_bin_of_the_wrong_size(file, size, expected):
    text = message(reader("BIN", (None, 2, 3, 4)).read, file(bytes(size), "x.bin"))
    assert expected in text


@pytest.mark.parametrize("size", [0, 4, 13])
def test_bin_with_an_open_dimension_of_the_wrong_size(file, size):
    text = message(reader("BIN", ("batch", 2, "length")).read, file(bytes(size), "x.bin"))
    assert f"{size} bytes, expected a multiple of 8 = [1, 2, length] x 4 (float32)" in text


def test_bin_cannot_tell_two_open_dimensions():
    assert "--inputShape" in message(reader, "BIN", ("batch", 3, None, None))


def test_bin_of_booleans_with_other_bytes(file):
    assert "besides 0 and 1" in message(reader("BIN", (3,), "bool").read, file(b"\0\1\2", "x.bin"))


@pytest.mark.parametrize("kind", ["BIN", "NPY"])
@pytest.mark.parametrize("dtype", ["object", "str", "no such type"])
def test_element_types_that_no_file_can_hold(kind, dtype):
    assert dtype in message(reader, kind, (1, 2), dtype)


@pytest.mark.parametrize("kind", ["BIN", "NPY"])
def test_a_missing_file_is_an_os_error(kind, tmp_path):
    with pytest.raises(FileNotFoundError):
        reader(kind, (1, 2)).read(tmp_path / "missing")


# ------------------------------------------------------------------------------------------ NPY


@pytest.mark.parametrize(
    ("model_shape", "shape"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ((1, 2, 3, 4), (2, 3, 4)),
        (("n", 2, None, None), (2, 5, 6)),
        (("n", "length"), (7,)),
        ((), ()),
        (("n",), ()),
    ],
)
def test_npy_with_the_model_s_shape(file, model_shape, shape):
    values = numbers(shape)
    npy = reader("NPY", model_shape)
    found = npy.read(file(values))
    assert_is(found, values if len(shape) == len(model_shape) else values[None])
    assert npy.notes == []


@pytest.mark.parametrize("batch", [(), (1,)])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_npy_in_the_other_layout_is_transposed_and_said(file, batch, known, layout):
    nchw = numbers((1, 3, 4, 5))
    nhwc = np.moveaxis(nchw, 1, -1)
    sample, other = (nchw, nhwc) if layout == "NCHW" else (nhwc, nchw)
    npy = reader("NPY", sample.shape, "float32", layout if known else None)
    path = file(other.reshape(*batch, *other.shape[1:]))
    assert_is(npy.read(path), sample)
    npy.read(path)
    swapped = "NHWC" if layout == "NCHW" else "NCHW"
    assert npy.notes == [f"input 'x': the arrays are {swapped}, the model is {layout}: transposed"]


def test_npy_transposes_only_from_the_layout_that_is_not_the_model_s(file):
    # (1, 4, 5, 3) is NCHW transposed to NHWC; a model that is NHWC cannot mean that.
    path = file(numbers((1, 4, 5, 3)))
    assert "takes [1, 3, 4, 5]" in message(
        reader("NPY", (1, 3, 4, 5), "float32", "NHWC").read, path
    )


def test_npy_that_could_be_transposed_in_two_ways_is_refused(file):
    npy = reader("NPY", (1, 2, "h", "w"))
    message(npy.read, file(numbers((1, 4, 2, 2))))
    assert npy.notes == []


@pytest.mark.parametrize("shape", [(1, 2, 3, 5), (3,), (1, 1, 2, 3, 4), (8, 2, 3, 4), (0, 2, 3, 4)])
def test_npy_of_another_shape(file, shape):
    text = message(reader("NPY", (1, 2, 3, 4)).read, file(numbers(shape)))
    assert str(list(shape)) in text
    assert "[1, 2, 3, 4]" in text


def test_npy_that_is_empty_fits_no_open_dimension(file):
    assert "[0, 4]" in message(reader("NPY", (None, 4)).read, file(numbers((0, 4))))


def test_npy_with_a_batch_of_several_is_said(file):
    npy = reader("NPY", ("n", 4))
    assert npy.read(file(numbers((3, 4)))).shape == (3, 4)
    assert "batches of several" in npy.notes[0]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float16"),
        ("int64", "int32"),
        ("int32", "int64"),
        ("uint8", "int64"),
        ("uint64", "int64"),
        ("bool", "int64"),
        ("int64", "uint8"),
    ],
)
def test_npy_types_that_are_converted(file, found, wanted):
    values = numbers((1, 6), found)
    npy = reader("NPY", (1, 6), wanted)
    assert_is(npy.read(file(values)), values.astype(wanted))
    assert npy.notes == [f"input 'x': the arrays are {found}, converted to the model's {wanted}"]


@pytest.mark.parametrize("dtype", [">f4", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_byte_and_memory_order_do_not_matter(file, dtype, order):
    values = np.asarray(numbers((1, 2, 3)), dtype, order=order)
    npy = reader("NPY", (1, 2, 3))
    assert_is(npy.read(file(values)), numbers((1, 2, 3)))
    assert npy.notes == []


@pytest.mark.parametrize(
    ("values", "wanted", "expected"),
    [
        (np.array([[1, 300]], "int64"), "uint8", "holds 300"),
        (np.array([[1, -1]], "int8"), "uint64", "holds -1"),
        (np.array([[1, 2**63]], "uint64"), "int64", "holds 9223372036854775808"),
        (np.array([[0, 2]], "int64"), "bool", "holds 2"),
        (np.array([[1e39, 0]]), "float32", "holds 1e+39"),
        (np.array([[7e4, 0]], "float32"), "float16", "holds 70000.0"),
        (np.array([[1, 2]], "uint8"), "float32", "uint8, input 'x' takes float32: bring the"),
        (np.array([[1.0, 2]]), "int64", "float64, input 'x' takes int64"),
        (np.array([[1, 2j]]), "float32", "complex128"),
        (np.array([["a", "b"]]), "float32", "str"),
        (np.array([[1, None]]), "float32", "Python objects"),
    ],
)
def test_npy_types_and_values_that_are_refused(file, values, wanted, expected):
    assert expected in message(reader("NPY", (1, 2), wanted).read, file(values))


def test_npy_infinities_are_not_an_overflow(file):
    found = reader("NPY", (1, 3)).read(file(np.array([[np.inf, -np.inf, np.nan]])))
    assert_is(found, np.array([[np.inf, -np.inf, np.nan]], np.float32))


def test_npz_with_one_array_and_with_the_input_s_name(tmp_path):
    values = numbers((1, 4))
    np.savez(tmp_path / "one.npz", anything=values)
    np.savez_compressed(tmp_path / "more.npz", y=values + 1, x=values)
    np.savez(tmp_path / "wrong.npz", y=values, z=values)
    np.savez(tmp_path / "none.npz")
    npy = reader("NPY", (1, 4))
    assert_is(npy.read(tmp_path / "one.npz"), values)
    assert_is(npy.read(tmp_path / "more.npz"), values)
    assert "2 arrays (y, z)" in message(npy.read, tmp_path / "wrong.npz")
    assert "0 arrays" in message(npy.read, tmp_path / "none.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("method", ["read", "stack"])
def test_truncated_numpy_files(tmp_path, suffix, method):
    path = tmp_path / f"x{suffix}"
    values = numbers((2, 3))
    if suffix == ".npy":
        np.save(path, values)
    else:
        np.savez_compressed(path, x=values)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        text = message(getattr(reader("NPY", (2, 3)), method), path)
        assert "NumPy file" in text, size


@pytest.mark.filterwarnings("ignore")  # NumPy's and zipfile's own, for some of the damage
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_a_damaged_file_is_the_file_s_fault_whatever_the_byte(tmp_path, save):
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, numbers((2, 3)))
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for change in (0x01, 0x20, 0xFF):
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :]
            )
            try:
                reader("NPY", (2, 3)).read(path)
            except (ValueError, OSError):
                refused += 1
    assert refused > len(whole) // 2  # most of it is header or under a checksum


def test_files_that_are_not_numpy_s(file, tmp_path):
    npy = reader("NPY", (1, 2))
    assert "not a NumPy file: it is empty" in message(npy.read, file(b""))
    assert "it starts with 68 65 6c 6c 6f" in message(npy.read, file(b"hello"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("text.txt", "hello")
    assert "takes float32" in message(npy.read, tmp_path / "x.npz")


# ---------------------------------------------------------------------------------------- stack


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("batch", [(), (1,)])
def test_stack_gives_the_samples_one_by_one(tmp_path, suffix, batch):
    values = numbers((5, *batch, 3, 4))
    path = tmp_path / f"x{suffix}"
    np.save(path, values) if suffix == ".npy" else np.savez(path, x=values)
    stack = reader("NPY", ("n", 3, 4)).stack(path)
    assert isinstance(stack, Sequence)
    assert len(stack) == 5
    for index, sample in enumerate(stack):
        assert_is(sample, values[index].reshape(1, 3, 4))
    assert_is(stack[-1], values[-1].reshape(1, 3, 4))
    assert [len(stack[1:4]), len(stack[::2])] == [3, 3]
    with pytest.raises(IndexError):
        stack[5]


def test_stack_transposes_and_converts_like_read(file):
    nhwc = numbers((6, 4, 5, 3), "float64")
    npy = reader("NPY", (1, 3, 4, 5), "float32", "NCHW")
    stack = npy.stack(file(nhwc))
    assert_is(stack[2], np.moveaxis(nhwc, -1, 1)[2:3].astype(np.float32))
    assert len(npy.notes) == 2


def test_stack_maps_the_file_and_reads_nothing_ahead(file):
    sample = reader("NPY", (1, 3)).stack(file(numbers((4, 3))))[2]
    assert not sample.flags.writeable
    owner = sample
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner, np.memmap)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), "shape [], samples along axis 0"),
        ((0, 3), "shape [0, 3], samples along axis 0"),
        ((4, 5), "shape [5], input 'x' takes [1, 3]"),
    ],
)
def test_stack_of_another_shape(file, shape, expected):
    assert expected in message(reader("NPY", (1, 3)).stack, file(numbers(shape)))


def test_stack_of_python_objects(file):
    values = np.array([[1, None]])
    assert "Python objects" in message(reader("NPY", (1, 2)).stack, file(values))


def test_stack_of_another_type_is_refused_before_the_first_sample(file):
    assert "uint8" in message(reader("NPY", (1, 3)).stack, file(numbers((4, 3), "uint8")))
