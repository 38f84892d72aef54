"""Equalization and bias correction as stages of a job, on the example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ptq_core import calibrate, quantize
from ptq_core.calibration_table import read_table
from ptq_core.errors import InputError
from tests import tiny_models as tiny

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = DIGITS / "digits.onnx"
PICTURES = list(tiny.rng(0).uniform(-1, 1, (24, 3, 32, 32)).astype(np.float32))


def test_equalization_is_a_stage_of_its_own_and_only_with_one_scale_per_layer(
    tmp_path: Path,
) -> None:
    report = quantize(MODEL, tmp_path / "a.onnx", data=PICTURES, per_channel=False)
    assert list(report.seconds)[2] == "equalize"
    assert any(one.startswith("equalization: ") for one in report.notes)
    report = quantize(MODEL, tmp_path / "b.onnx", data=PICTURES)
    assert "equalize" not in report.seconds
    assert not any("equalization" in one for one in report.notes)


def test_data_that_can_be_read_only_once_will_do(tmp_path: Path) -> None:
    def once() -> Iterator[np.ndarray]:
        yield from PICTURES

    quantize(MODEL, tmp_path / "once.onnx", data=once(), per_channel=False)
    quantize(MODEL, tmp_path / "list.onnx", data=PICTURES, per_channel=False)
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "list.onnx").read_bytes()


def test_a_table_carries_the_equalization(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    calibrate(MODEL, table, data=PICTURES, per_channel=False)
    assert read_table(table).equalization
    quantize(MODEL, tmp_path / "direct.onnx", data=PICTURES, per_channel=False)
    quantize(MODEL, tmp_path / "recalled.onnx", calibration=table, per_channel=False)
    assert (tmp_path / "direct.onnx").read_bytes() == (tmp_path / "recalled.onnx").read_bytes()


def test_a_table_is_for_one_kind_of_weights(tmp_path: Path) -> None:
    """Ranges of an equalized network are not those of the other."""
    table = tmp_path / "table.json"
    calibrate(MODEL, table, data=PICTURES)
    assert json.loads(table.read_text())["equalization"] == {}
    with pytest.raises(InputError, match="per_channel = false here") as caught:
        quantize(MODEL, tmp_path / "out.onnx", calibration=table, per_channel=False)
    assert "calibrate again" in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_bias_correction_can_be_switched_off_and_is_told(tmp_path: Path) -> None:
    report = quantize(MODEL, tmp_path / "on.onnx", data=PICTURES)
    assert "correct" in report.seconds
    assert any(
        one.startswith(("biases of ", "bias correction is left out")) for one in report.notes
    )
    off = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"bias_correction": False},
    }
    report = quantize(MODEL, tmp_path / "off.onnx", data=PICTURES, config=off)
    assert "correct" not in report.seconds
    assert not any("bias" in one for one in report.notes)
