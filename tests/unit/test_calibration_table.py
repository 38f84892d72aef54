from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_core.calibration_table import (
    CalibrationTable,
    DataFacts,
    Figures,
    LayerCorrection,
    MethodTable,
    ModelFacts,
    OutputFigures,
    PlanFacts,
    content_sha256,
    read_table,
    table_text,
    tensorrt_cache,
    write_text,
)
from ptq_core.errors import InputError
from ptq_core.types import Range

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def table(**methods: MethodTable) -> CalibrationTable:
    return CalibrationTable(
        ptq="0.1.0",
        model=ModelFacts(file="net.onnx", sha256="ab" * 32),
        plan=PlanFacts(target="CPU", per_channel=True, skip=("head/*",), sha256="cd" * 32),
        data=DataFacts(samples=100, sha256="ef" * 32),
        methods=methods or {"MAX_MIN": found()},
    )


def found(**ranges: tuple[float, float]) -> MethodTable:
    return MethodTable(
        plugins=("ptq-calibrator-max-min==0.1.0",),
        ranges=ranges or {"x": (-1.0, 2.0), "r[1]": (0.0, 6.0)},
        verification=Figures(
            samples=8,
            held_out=True,
            outputs=(OutputFigures(name="y", cosine=0.999, worst_cosine=0.99, sqnr=None),),
        ),
        corrections={"conv": LayerCorrection(gain=(1.0, 1.01), offset=(0.5, -0.25))},
    )


def written(folder: Path, content: Any) -> Path:
    path = folder / "table.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def as_values(**changes: Any) -> dict[str, Any]:
    return {**json.loads(table_text(table())), **changes}


# ------------------------------------------------------------------------------- there and back


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair))),
        max_size=5,
    ),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=4),
)
def test_what_is_written_is_read(
    ranges: dict[str, tuple[float, float]], channels: list[tuple[float, float]]
) -> None:
    """Any name, any number, bit for bit."""
    gain, offset = zip(*channels, strict=True) if channels else ((), ())
    made = table(
        KL=MethodTable(
            ranges=ranges, corrections={"layer": LayerCorrection(gain=gain, offset=offset)}
        )
    )
    assert CalibrationTable.model_validate_json(table_text(made)) == made


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_text(path, table_text(table()))
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n  "format": 1,\n  "ptq": "0.1.0",\n  "model": {\n')
    assert '\n        "x": [-1.0, 2.0],\n        "r[1]": [0.0, 6.0]\n' in text
    assert '"gain": [1.0, 1.01],' in text
    fields = ["format", "ptq", "model", "plan", "data", "equalization", "smoothing", "methods"]
    assert list(json.loads(text)) == fields
    assert read_table(path) == table()
    assert [one.name for one in tmp_path.iterdir()] == ["table.json"]


def test_ranges_and_corrections_as_stages_take_them() -> None:
    one = found()
    assert one.observed() == {"x": Range(low=-1.0, high=2.0), "r[1]": Range(low=0.0, high=6.0)}
    correction = one.layer_corrections()["conv"]
    np.testing.assert_array_equal(correction.gain, [1.0, 1.01])
    np.testing.assert_array_equal(correction.offset, [0.5, -0.25])


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half\ud800")
    assert path.read_text(encoding="utf-8") == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["table.json"]


def test_the_hash_is_of_the_content_and_not_of_the_names(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    first = content_sha256([one, two])
    two.rename(tmp_path / "three")
    assert content_sha256([one, tmp_path / "three"]) == first
    one.write_bytes(b"a")  # the border between the files counts
    (tmp_path / "three").write_bytes(b"bc")
    assert content_sha256([one, tmp_path / "three"]) != first


# ------------------------------------------------------------------------------ what is no table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[common_quant_param]\n", "not JSON"),
        ("[1, 2]", "lacks 'format' and 'methods'"),
        ('{"format": 1}', "lacks 'format' and 'methods'"),
        ('{"format": 2, "methods": {}}', "of format 2, expected 1"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_another_file_is_refused_in_one_message(content: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert len(caught.value.problems) == 1
    assert str(path) in str(caught.value)
    assert caught.value.problems[0].hint


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x0a\xff\xfe")
    with pytest.raises(InputError, match="is no calibration table: not text"):
        read_table(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_table(path)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ("[2.0, 1.0]", "expected low <= high, found 2 and 1"),
        ("[NaN, 1.0]", "finite"),
        ("[0.0, Infinity]", "finite"),
        ("[0.0, 1e999]", "finite"),
        ('["0.0", 1.0]', "number"),
        ("[0.0]", "required"),
        ("[0.0, 1.0, 2.0]", "at most 2"),
        ("null", "array"),
    ],
)
def test_a_bad_range_is_named(bounds: str, message: str, tmp_path: Path) -> None:
    text = table_text(table()).replace("[-1.0, 2.0]", bounds)
    with pytest.raises(InputError, match=message) as caught:
        read_table(written(tmp_path, text))
    assert "methods.MAX_MIN.ranges.x" in str(caught.value)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    values = as_values(data={"samples": "many"}, comment="mine")
    values["methods"]["MAX_MIN"]["ranges"]["x"] = [3, -3]
    values["methods"]["MAX_MIN"]["corrections"]["conv"]["gain"] = [1.0]
    with pytest.raises(InputError) as caught:
        read_table(written(tmp_path, values))
    text = str(caught.value)
    for part in ("data.samples", "data.sha256", "comment", "ranges.x", "1 gains and 2 offsets"):
        assert part in text
    assert len(caught.value.problems) == 5


def test_a_table_without_methods_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"methods: .*at least 1"):
        read_table(written(tmp_path, as_values(methods={})))


# -------------------------------------------------------------------------------------- TensorRT


def test_tensorrt_scale_of_minus_one_to_one() -> None:
    """1 / 127 is 3c010204, as in TensorRT's own caches for pictures in [0, 1]."""
    ranges = {"images": Range(low=-0.5, high=1.0), "a: b": Range(low=-254.0, high=3.0)}
    assert tensorrt_cache(ranges, min_max=True) == (
        "TRT-8601-MinMaxCalibration\nimages: 3c010204\na: b: 40000000\n"
    )
    assert tensorrt_cache(ranges, min_max=False).startswith("TRT-8601-EntropyCalibration2\n")


def test_tensorrt_scale_of_nothing_is_that_of_one() -> None:
    assert "z: 3c010204\n" in tensorrt_cache({"z": Range(low=0.0, high=0.0)}, min_max=True)


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20),
        st.tuples(st.floats(-1e30, 0), st.floats(1e-30, 1e30)),
        min_size=1,
        max_size=5,
    )
)
def test_tensorrt_cache_round_trip(ranges: dict[str, tuple[float, float]]) -> None:
    """Read as TensorRT does: the name, then the bits of the scale."""
    observed = {name: Range(low=low, high=high) for name, (low, high) in ranges.items()}
    head, *lines = tensorrt_cache(observed, min_max=False).splitlines()
    assert head == "TRT-8601-EntropyCalibration2"
    read = {}
    for line in lines:
        name, _, bits = line.rpartition(": ")
        (read[name],) = struct.unpack("<f", struct.pack("<I", int(bits, 16)))
    assert set(read) == set(ranges)
    for name, (low, high) in ranges.items():
        assert read[name] == np.float32(max(-low, high) / 127)


def test_names_that_tensorrt_cannot_take() -> None:
    with pytest.raises(InputError, match="names"):
        tensorrt_cache({"a\nb": Range(low=0.0, high=1.0)}, min_max=False)
