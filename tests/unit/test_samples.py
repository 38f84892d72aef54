from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_core.errors import ConfigError, DataError
from ptq_core.plugins import PluginRecord, Registered
from ptq_core.samples import (
    Sample,
    Samples,
    add_to_digest,
    batches,
    fixed_batches,
    layout_of,
    model_inputs,
    read_ahead,
    samples_from_arrays,
    samples_from_files,
)
from ptq_core.types import ModelInput, PreprocessorEntry
from tests import tiny_models as tiny


def item(name: str = "x", shape: tuple[Any, ...] = ("N", 3), dtype: str = "float32") -> ModelInput:
    return ModelInput(name=name, dtype=dtype, shape=shape)


def feeds_of(samples: Samples) -> list[dict[str, np.ndarray]]:
    return [sample.feeds for sample in samples.open()]


# ------------------------------------------------------------------------------------ the model


def test_inputs_of_a_model() -> None:
    found = model_inputs(ir.from_proto(tiny.several_inputs()))
    assert [(one.name, one.dtype, one.shape, one.layout) for one in found] == [
        ("image", "float32", ("N", 3, 4, 4), "NCHW"),
        ("vector", "float32", ("N", 6), None),
    ]


def test_shapes_can_be_fixed() -> None:
    model = ir.from_proto(tiny.dynamic_shapes())
    found = model_inputs(model, shapes={"x": (2, 3, 8, 9)})
    assert found[0].shape == (2, 3, 8, 9)


def test_wrong_shapes_are_told_all_at_once() -> None:
    model = ir.from_proto(tiny.several_inputs())
    with pytest.raises(ConfigError) as caught:
        model_inputs(model, shapes={"imag": (1, 3, 4, 4), "vector": (1, 7), "image": (1, 3, 4)})
    problems = [str(one) for one in caught.value.problems]
    assert len(problems) == 3
    assert any("did you mean 'image'" in one for one in problems)
    assert any("input 'vector' has shape [N, 6], found [1, 7]" in one for one in problems)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 3, 224, 224), "NCHW"),
        (("N", 1, 28, 28), "NCHW"),
        ((1, 224, 224, 3), "NHWC"),
        ((1, 3, 5, 3), None),
        ((1, 64, 8, 8), None),
        ((1, 3, 224), None),
        ((None, 3, None, None), "NCHW"),
    ],
)
def test_layouts(shape: tuple[Any, ...], layout: str | None) -> None:
    assert layout_of(shape) == layout


@pytest.mark.parametrize(
    ("shape", "nodes", "layout"),
    [
        ([1, 4, 8, 8], [tiny.node("Conv", "x w", "y")], "NCHW"),
        ([1, 4, 8, 3], [tiny.node("Conv", "x w", "y")], "NCHW"),
        ([1, 4, 8, 8], [tiny.node("Relu", "x", "r"), tiny.node("Conv", "r w", "y")], None),
        ([1, 8, 8, 4], [tiny.node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
                        tiny.node("Conv", "t w", "y")], "NHWC"),
        ([1, 8, 8, 4], [tiny.node("Transpose", "x", "t", perm=[0, 2, 1, 3]),
                        tiny.node("Relu", "t", "y")], None),
    ],
)  # fmt: skip
def test_the_first_operators_tell_the_layout(
    shape: list[int], nodes: list[Any], layout: str | None
) -> None:
    weight = tiny.normal(2, 4, 1, 1)
    model = tiny.model(nodes, {"x": shape}, {"y": [None] * 4}, {"w": weight})
    (found,) = model_inputs(ir.from_proto(model))
    assert found.layout == layout


# ---------------------------------------------------------------------------------------- arrays


def test_an_array_for_each_sample_with_or_without_batch_axis() -> None:
    data = [np.ones(3), np.full((1, 3), 2.0), np.full((2, 3), 3.0)]
    found = feeds_of(samples_from_arrays(data, [item()]))
    assert [one["x"].shape for one in found] == [(1, 3), (1, 3), (2, 3)]
    assert {one["x"].dtype for one in found} == {np.dtype(np.float32)}
    assert not any(one["x"].flags.writeable for one in found)


def test_one_large_array_is_samples_along_its_first_axis() -> None:
    found = feeds_of(samples_from_arrays(np.arange(12.0).reshape(4, 3), [item()]))
    assert len(found) == 4
    np.testing.assert_array_equal(found[1]["x"], [[3, 4, 5]])


def test_the_callers_array_stays_writable() -> None:
    array = np.zeros((1, 3), np.float32)
    feeds_of(samples_from_arrays([array], [item()]))
    array[0] = 1


def test_a_data_loaders_pairs_contribute_their_first_part() -> None:
    data = [(np.ones((2, 3)), np.array([0, 1])), [np.zeros((2, 3)), 5]]
    assert [one["x"].shape for one in feeds_of(samples_from_arrays(data, [item()]))] == [
        (2, 3),
        (2, 3),
    ]


def test_plain_lists_of_numbers_are_arrays() -> None:
    np.testing.assert_array_equal(
        feeds_of(samples_from_arrays([[1.0, 2.0, 3.0]], [item()]))[0]["x"], [[1, 2, 3]]
    )


def test_tensors_of_other_libraries_are_taken_as_arrays() -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.ones((1, 3), np.float32)

    assert feeds_of(samples_from_arrays([Tensor()], [item()]))[0]["x"].shape == (1, 3)


def test_several_inputs_come_as_dicts() -> None:
    inputs = [item("a"), item("b", ("N", 2), "int64")]
    found = feeds_of(
        samples_from_arrays([{"b": np.array([1, 2], np.int32), "a": np.zeros(3)}], inputs)
    )
    assert {name: (array.shape, str(array.dtype)) for name, array in found[0].items()} == {
        "a": ((1, 3), "float32"),
        "b": ((1, 2), "int64"),
    }


@pytest.mark.parametrize(
    ("element", "message"),
    [
        ({"a": np.zeros(3)}, "sample 0 has a, the model's inputs are a, b"),
        (
            {"a": np.zeros(3), "b": np.zeros(2, int), "bb": 1},
            "did you mean 'b'",
        ),
        (np.zeros(3), "one array, the model has 2 inputs"),
        ({"a": np.zeros(4), "b": np.zeros(2, int)}, r"shape \[1, 4\], the model takes \[N, 3\]"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, "is float64, the model takes int64"),
        ({"a": np.array([1, np.nan, np.inf]), "b": np.zeros(2, int)}, "2 values that are NaN"),
        ({"a": np.zeros(3), "b": np.array(["x", "y"])}, "the model takes int64"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit(element: Any, message: str) -> None:
    inputs = [item("a"), item("b", ("N", 2), "int64")]
    with pytest.raises(DataError, match=message) as caught:
        feeds_of(samples_from_arrays([element], inputs))
    assert "sample 0" in str(caught.value)


def test_a_fixed_batch_takes_multiples_and_single_samples() -> None:
    fixed = [item(shape=(4, 3))]
    for rows in (1, 4, 8):
        feeds_of(samples_from_arrays([np.zeros((rows, 3))], fixed))
    with pytest.raises(DataError, match="has shape"):
        feeds_of(samples_from_arrays([np.zeros((3, 3))], fixed))
    with pytest.raises(DataError, match="has shape"):
        feeds_of(samples_from_arrays([np.zeros((0, 3))], fixed))


def test_a_list_can_be_read_again_and_a_generator_cannot() -> None:
    again = samples_from_arrays([np.zeros(3)] * 2, [item()])
    assert len(feeds_of(again)) == len(feeds_of(again)) == again.count == 2
    once = samples_from_arrays((np.zeros(3) for _ in range(2)), [item()])
    assert once.count is None
    assert len(feeds_of(once)) == 2
    with pytest.raises(DataError, match="read only once"):
        once.open()


def test_making_samples_reads_nothing() -> None:
    def explode() -> Iterator[np.ndarray]:
        raise AssertionError("read too early")
        yield

    samples_from_arrays(explode(), [item()])


# --------------------------------------------------------------------------------------- batches


def some(rows: list[int], width: int = 2) -> list[Sample]:
    """Samples with these numbers of rows, every row another value."""
    count, made = 0, []
    for index, size in enumerate(rows):
        values = np.arange(count, count + size, dtype=np.float32)
        made.append(Sample(name=f"s{index}", feeds={"x": np.repeat(values[:, None], width, 1)}))
        count += size
    return made


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=12)


@given(sizes, st.integers(1, 7))
def test_batches_keep_every_row_in_order(rows: list[int], size: int) -> None:
    found = list(batches(iter(some(rows)), lambda: size))
    values = np.concatenate([one.feeds["x"][:, 0] for one in found])
    np.testing.assert_array_equal(values, np.arange(sum(rows)))
    assert [one.rows for one in found] == [one.size for one in found]
    assert sum((one.names for one in found), ()) == tuple(f"s{i}" for i in range(len(rows)))
    assert all(len(one.names) <= size for one in found)


@given(sizes, st.integers(1, 7))
def test_fixed_batches_have_the_size_and_every_row_once(rows: list[int], size: int) -> None:
    found = list(fixed_batches(iter(some(rows)), size))
    assert all(one.size == size for one in found)
    values = np.concatenate([one.feeds["x"][: one.rows, 0] for one in found])
    np.testing.assert_array_equal(np.sort(values), np.arange(sum(rows)))
    assert all(one.rows <= size for one in found)
    # what is repeated is the last real row
    for one in found:
        assert (one.feeds["x"][one.rows :, 0] == one.feeds["x"][one.rows - 1, 0]).all()


def test_batches_are_not_mixed_of_different_shapes() -> None:
    samples = [*some([1, 1]), *some([1], width=3), *some([1])]
    assert [one.feeds["x"].shape for one in batches(iter(samples), lambda: 10)] == [
        (2, 2),
        (1, 3),
        (1, 2),
    ]


@given(sizes, st.integers(1, 6), st.integers(1, 6))
def test_the_digest_does_not_depend_on_grouping(rows: list[int], first: int, second: int) -> None:
    def digest(found: Iterator[Any]) -> str:
        made = hashlib.sha256()
        for batch in found:
            add_to_digest(made, batch)
        return made.hexdigest()

    samples = some(rows)
    plain = digest(batches(iter(samples), lambda: 1))
    assert plain == digest(batches(iter(samples), lambda: first))
    single = some([1] * sum(rows))
    assert plain == digest(fixed_batches(iter(single), second))
    changed = some(rows)
    changed[-1].feeds["x"][-1, -1] += 1
    assert plain != digest(batches(iter(changed), lambda: first))


# ------------------------------------------------------------------------------------ read ahead


def test_reading_ahead_keeps_order_and_is_bounded() -> None:
    produced: list[int] = []

    def source() -> Iterator[Any]:
        for index in range(20):
            produced.append(index)
            yield index

    found = []
    for one in read_ahead(source(), 3):
        time.sleep(0.002)
        # three wait in the queue, one is in the reader's hand, one was just taken
        assert len(produced) - len(found) <= 5
        found.append(one)
    assert found == list(range(20))


def test_an_error_in_the_source_comes_out_after_what_was_read() -> None:
    def source() -> Iterator[Any]:
        yield 1
        yield 2
        raise DataError("the third is broken")

    reader = read_ahead(source(), 8)
    assert [next(reader), next(reader)] == [1, 2]
    with pytest.raises(DataError, match="the third is broken"):
        next(reader)


def test_stopping_early_ends_the_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    reader = read_ahead(endless(), 2)  # type: ignore[arg-type]
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert not [one for one in threading.enumerate() if one.name == "ptq-read-ahead"]


# ----------------------------------------------------------------------------------------- files

RECORD = PluginRecord(name="ptq-test", entry_point="test", version="1.0")


class Numbers:
    """Reads a text file with one number into an array of three."""

    def __init__(self, item: ModelInput, options: Any) -> None:
        if item.dtype != "float32":
            raise ValueError(f"cannot fill {item.dtype}")

    def read(self, path: Path, /) -> np.ndarray:
        text = path.read_text()
        if text == "crash":
            raise RuntimeError("a defect")
        return np.full((1, 3), float(text), np.float32)


READER = Registered(
    entry=PreprocessorEntry(name="NUMBERS", summary="numbers", factory=Numbers, suffixes=(".num",)),
    record=RECORD,
)


def folder(path: Path, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"{name}.num").write_text(text)
    return path


def from_files(folders: dict[str, Path], size: int = 100, **given: Any) -> Samples:
    inputs = [item(name) for name in given.pop("names", folders)]
    return samples_from_files(folders, size, inputs, READER, None, **given)


def test_files_are_read_in_byte_order(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", b="2", a="1", B="0")
    (path / "notes.txt").write_text("not a sample")
    (path / ".hidden.num").write_text("not a sample")
    samples = from_files({"x": path})
    assert [float(one["x"][0, 0]) for one in feeds_of(samples)] == [0, 1, 2]
    assert samples.count == 3
    assert any("2 entries that are no NUMBERS samples" in note for note in samples.notes)
    assert any("asks for 100 samples, there are 3" in one for one in samples.warnings)
    assert samples.held_out is None


def test_what_is_left_over_is_held_out(tmp_path: Path) -> None:
    samples = from_files({"x": folder(tmp_path / "x", a="1", b="2", c="3")}, size=2)
    assert [float(one["x"][0, 0]) for one in feeds_of(samples)] == [1, 2]
    assert samples.held_out is not None
    assert [float(one.feeds["x"][0, 0]) for one in samples.held_out()] == [3]


def test_too_few_samples_are_an_error_when_strict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="asks for 5 samples, there are 1"):
        from_files({"x": folder(tmp_path / "x", a="1")}, size=5, strict=True)


def test_folders_without_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        from_files({"x": tmp_path / "none"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no samples: NUMBERS reads \.num, found nothing"):
        from_files({"x": tmp_path / "empty"})
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(DataError, match="found 1 other entries"):
        from_files({"x": tmp_path / "empty"})
    with pytest.raises(DataError, match="is a file"):
        from_files({"x": tmp_path / "empty" / "a.png"})


def test_inputs_without_folders_and_folders_without_inputs(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", a="1")
    with pytest.raises(ConfigError) as caught:
        from_files({"imagee": path}, names=["image", "vector"])
    text = str(caught.value)
    assert "no input 'imagee'" in text
    assert "did you mean 'image'" in text
    assert "no samples for input 'image', 'vector'" in text


def test_several_inputs_are_paired_by_name(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", p="1", q="2")
    b = folder(tmp_path / "b", q="20", p="10")
    found = feeds_of(from_files({"a": a, "b": b}))
    assert [(float(one["a"][0, 0]), float(one["b"][0, 0])) for one in found] == [(1, 10), (2, 20)]


def test_several_inputs_with_other_names_are_paired_by_order_with_a_warning(
    tmp_path: Path,
) -> None:
    a = folder(tmp_path / "a", p="1", q="2", r="3")
    b = folder(tmp_path / "b", s="10", t="20")
    samples = from_files({"a": a, "b": b})
    found = feeds_of(samples)
    assert [(float(one["a"][0, 0]), float(one["b"][0, 0])) for one in found] == [(1, 10), (2, 20)]
    assert any("paired by their order (a: 3, b: 2)" in one for one in samples.warnings)


def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    samples = from_files({"x": folder(tmp_path / "x", a="1", b="no number")})
    with pytest.raises(DataError, match=r"b\.num.*could not convert") as caught:
        feeds_of(samples)
    assert "--skip-bad" in str(caught.value)


def test_bad_files_can_be_skipped_and_are_counted_once(tmp_path: Path) -> None:
    samples = from_files(
        {"x": folder(tmp_path / "x", a="1", b="no number", c="3", d="nan")}, skip_bad=True
    )
    for _ in range(2):  # two passes
        assert [float(one["x"][0, 0]) for one in feeds_of(samples)] == [1, 3]
    assert len(samples.skipped) == 2
    assert "b.num" in samples.skipped[0]
    assert "d.num" in samples.skipped[1]


def test_a_readers_defect_is_blamed_on_its_plugin(tmp_path: Path) -> None:
    from ptq_core.errors import PluginError

    samples = from_files({"x": folder(tmp_path / "x", a="crash")}, skip_bad=True)
    with pytest.raises(PluginError, match=r"ptq-test.*a defect"):
        feeds_of(samples)


def test_an_input_that_the_reader_cannot_fill(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", a="1")
    with pytest.raises(ConfigError, match="cannot fill int64"):
        samples_from_files({"x": path}, 1, [item(dtype="int64")], READER, None)
