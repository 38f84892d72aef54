"""Calibration tables of smoothed models: the same files, and clear words where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptq_core import calibrate, quantize
from ptq_core.calibration_table import read_table
from ptq_core.errors import InputError
from tests import tiny_models as tiny
from tests.command_line import Ptq
from tests.encoders import encoder, full, graph_of, texts

DATA = texts(32)


@pytest.fixture
def pre(tmp_path: Path) -> Path:
    return tiny.save(encoder(pre=True), tmp_path, "pre.onnx")


def test_a_table_gives_the_file_that_samples_give(pre: Path, tmp_path: Path) -> None:
    methods = ["MSE", "KL"]
    calibrate(pre, tmp_path / "table.json", data=DATA, methods=methods)
    assert read_table(tmp_path / "table.json").smoothing
    for method in methods:
        quantize(pre, tmp_path / "direct.onnx", data=DATA, config=full(method))
        recalled = tmp_path / "recalled.onnx"
        quantize(pre, recalled, calibration=tmp_path / "table.json", config=full(method))
        assert (tmp_path / "direct.onnx").read_bytes() == recalled.read_bytes()


def test_a_table_with_equalization_too(pre: Path, tmp_path: Path) -> None:
    table, given = tmp_path / "table.json", full(per_channel=False)
    calibrate(pre, table, data=DATA, config=given)
    quantize(pre, tmp_path / "direct.onnx", data=DATA, config=given)
    quantize(pre, tmp_path / "recalled.onnx", calibration=table, config=given)
    assert (tmp_path / "direct.onnx").read_bytes() == (tmp_path / "recalled.onnx").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"self0_in": [1.0] * 5}, "'self0_in' has 32 channels, stored are 5"),
        ({"nobody": [1.0] * 32}, "this one has no tensor 'nobody'"),
        ({"self0_in": [0.0] * 32}, "expected positive numbers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    change: dict[str, list[float]], message: str, ptq: Ptq, pre: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.json"
    calibrate(pre, table, data=DATA)
    found = json.loads(table.read_text())
    found["smoothing"] = change
    table.write_text(json.dumps(found))
    done = ptq("quantize", pre, "--calibration", table, "-o", tmp_path / "out.onnx")
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "out.onnx").exists()


def test_a_table_for_other_skipped_nodes(pre: Path, tmp_path: Path) -> None:
    """A group that is partly skipped would need a Mul; one that is wholly skipped is left alone."""
    table, output = tmp_path / "table.json", tmp_path / "out.onnx"
    calibrate(pre, table, data=DATA)
    with pytest.raises(InputError, match="no range for 1 tensors") as caught:
        quantize(pre, output, calibration=table, config=full(skip=("self0_q_matmul",)))
    assert "same target and skipped nodes" in str(caught.value)
    assert not output.exists()
    report = quantize(pre, output, calibration=table, config=full(skip=("up0_matmul",)))
    assert any("smoothing: 1 of the table's" in one for one in report.notes)


def test_a_smoothed_table_is_not_for_a_model_that_is_not(pre: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    calibrate(pre, table, data=DATA)
    with pytest.raises(InputError, match="smoothing = false here"):
        quantize(pre, tmp_path / "out.onnx", calibration=table, config=full(smoothing=False))


def test_a_table_without_divisors_leaves_the_model_as_it_is(pre: Path, tmp_path: Path) -> None:
    table, given = tmp_path / "table.json", full(smoothing=False)
    calibrate(pre, table, data=DATA, config=given)
    content = json.loads(table.read_text())
    assert content.pop("smoothing") == {}  # as tables of other versions are
    table.write_text(json.dumps(content))
    quantize(pre, tmp_path / "recalled.onnx", calibration=table, config=full())
    quantize(pre, tmp_path / "direct.onnx", data=DATA, config=given)
    assert graph_of(tmp_path / "recalled.onnx") == graph_of(tmp_path / "direct.onnx")


def test_ranges_for_tensorrt_are_those_of_the_model_as_it_is(pre: Path, tmp_path: Path) -> None:
    report = calibrate(pre, tmp_path / "table.json", data=DATA, tensorrt=tmp_path / "x.cache")
    assert not report.table.smoothing
    assert "smooth" not in report.seconds
    assert "_smoothed" not in (tmp_path / "x.cache").read_text()
    assert any("without smoothing" in one for one in report.notes)
    layers = calibrate(
        pre, data=DATA, tensorrt=tmp_path / "x.cache", config=full(per_channel=False)
    )
    assert bool(layers.table.equalization) == any("equalized" in one for one in layers.warnings)
