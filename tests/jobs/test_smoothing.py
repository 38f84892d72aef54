"""Smoothing as a stage of a job, on small encoders with outliers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core import quantize
from ptq_core.types import Event
from tests import tiny_models as tiny
from tests.dynamic_checks import sections
from tests.encoders import OUTLIERS, encoder, full, graph_of, texts
from tests.tiny_models import Arrays
from tests.weight_checks import operators, run

DATA, OTHERS = texts(32), texts(16, seed=9)
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


def config(name: str, smoothing: bool) -> dict[str, Any]:
    if name in ("ALWC", "ACWC", "ACWL"):
        return sections(name, smoothing=smoothing)
    return full(name, smoothing=smoothing)


def sqnr(before: Path, after: Path) -> float:
    """Of the channels that are no outliers, on texts that calibration did not see."""
    wanted, found = (
        np.concatenate([np.delete(run(path, one)[0], OUTLIERS, -1) for one in OTHERS])
        for path in (before, after)
    )
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(encoder(), tmp_path)


@pytest.fixture
def pre(tmp_path: Path) -> Path:
    return tiny.save(encoder(pre=True), tmp_path, "pre.onnx")


@pytest.mark.parametrize("name", ["MAX_MIN", "MSE", "ALWC", "ACWC", "ACWL"])
def test_outliers_cost_a_few_decibels_less(
    name: str, model: Path, pre: Path, tmp_path: Path
) -> None:
    for path, least in ((model, LEAST[name]), (pre, 8.0)):
        found = {}
        for smoothing in (False, True):
            output = tmp_path / f"{smoothing}.onnx"
            report = quantize(path, output, config=config(name, smoothing), data=DATA)
            assert any("smoothing: " in note for note in report.notes) is smoothing
            assert ("smooth" in report.seconds) is smoothing
            found[smoothing] = sqnr(path, output)
        assert found[True] > found[False] + least


LEAST = {"MAX_MIN": 6.0, "MSE": 6.0, "ALWC": 3.0, "ACWC": 4.0, "ACWL": 1.0}


def test_it_is_on_by_default_and_told(pre: Path, tmp_path: Path) -> None:
    report = quantize(pre, tmp_path / "default.onnx", data=DATA)
    (note,) = (one for one in report.notes if one.startswith("smoothing: "))
    assert "which keep their whole range" in note
    assert "in the layers before" in note
    assert "on samples held back" in note
    report = quantize(pre, tmp_path / "dynamic.onnx", data=DATA, dynamic="ALWC")
    assert any(one.startswith("smoothing: ") for one in report.notes)


def test_what_is_smoothed_takes_max_min(pre: Path, tmp_path: Path) -> None:
    report = quantize(pre, tmp_path / "out.onnx", data=DATA, config=full("MSE"))
    methods = {name: one.method for name, one in report.plan.tensors.items()}
    assert methods["self0_in"] == "MAX_MIN"
    report = quantize(pre, tmp_path / "out.onnx", data=DATA, config=full("MSE", smoothing=False))
    methods = {name: one.method for name, one in report.plan.tensors.items()}
    assert methods["self0_in"] == "MSE"


def test_a_fold_takes_no_node_and_a_residual_a_mul(model: Path, pre: Path, tmp_path: Path) -> None:
    for path in (pre, model):
        graphs = []
        for smoothing in (False, True):
            output = tmp_path / "out.onnx"
            quantize(path, output, config=config("ACWC", smoothing), data=DATA)
            graphs.append(operators(onnx.load(output).graph))
        assert (graphs[0] == graphs[1]) is (path == pre)
        assert graphs[1]["Mul"] >= graphs[0]["Mul"]


@pytest.mark.parametrize("dynamic", [None, "ALWC"])
def test_convolutions_are_left_as_they_are(dynamic: str | None, tmp_path: Path) -> None:
    pictures = list(tiny.rng(0).uniform(-1, 1, (16, 3, 32, 32)).astype(np.float32))
    files = []
    for smoothing in (True, False):
        given = full(smoothing=smoothing)
        if dynamic is not None:
            given = sections(dynamic, smoothing=smoothing)
        report = quantize(DIGITS, tmp_path / f"{smoothing}.onnx", config=given, data=pictures)
        if dynamic is None:
            assert "smooth" not in report.seconds
            assert not any("smoothing" in one for one in report.notes)
            files.append(graph_of(tmp_path / f"{smoothing}.onnx"))
    assert len(set(files)) <= 1


def test_without_samples_nothing_is_smoothed(pre: Path, tmp_path: Path) -> None:
    report = quantize(pre, tmp_path / "out.onnx", dynamic="ALWC")
    assert "smooth" not in report.seconds
    assert not any("smoothing" in one for one in report.notes)


def test_one_sample_is_too_few_which_is_said(pre: Path, tmp_path: Path) -> None:
    report = quantize(pre, tmp_path / "a.onnx", data=DATA[:1])
    assert any("smoothing: none of " in one for one in report.notes)
    quantize(pre, tmp_path / "b.onnx", data=DATA[:1], config=full(smoothing=False))
    assert graph_of(tmp_path / "a.onnx") == graph_of(tmp_path / "b.onnx")


@pytest.mark.parametrize("per_channel", [True, False])
def test_data_that_can_be_read_only_once_will_do(
    per_channel: bool, pre: Path, tmp_path: Path
) -> None:
    def once() -> Iterator[Arrays]:
        yield from DATA

    for name, data in (("once", once()), ("list", DATA)):
        quantize(pre, tmp_path / f"{name}.onnx", data=data, per_channel=per_channel)
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "list.onnx").read_bytes()


def test_with_one_scale_per_layer_channels_are_equalized_first(pre: Path, tmp_path: Path) -> None:
    report = quantize(pre, tmp_path / "out.onnx", data=DATA, per_channel=False)
    stages = list(report.seconds)
    assert "smooth" in stages
    if "equalize" in stages:
        assert stages.index("equalize") < stages.index("smooth")
    plain = full(per_channel=False, smoothing=False)
    quantize(pre, tmp_path / "plain.onnx", data=DATA, config=plain)
    assert sqnr(pre, tmp_path / "out.onnx") > sqnr(pre, tmp_path / "plain.onnx") + 3.0


def test_a_fixed_batch_is_filled(tmp_path: Path) -> None:
    path = tiny.save(encoder(pre=True, batch=(4,)), tmp_path)
    report = quantize(path, tmp_path / "out.onnx", data=texts(8, rows=4))
    assert any("in the layers before" in one for one in report.notes)


def test_an_input_of_the_model_is_left_alone(tmp_path: Path) -> None:
    path = tiny.save(tiny.matmul_bias_3d(), tmp_path)
    data = list(tiny.rng(0).standard_normal((16, 1, 5, 6)).astype(np.float32))
    for one in data:
        one[..., 2] *= 50
    for given in (full(), sections(smoothing=True)):
        quantize(path, tmp_path / "out.onnx", data=data, config=given)
        assert "x_smoothed" not in str(onnx.load(tmp_path / "out.onnx").graph.node)


def test_progress_is_told(pre: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    quantize(pre, tmp_path / "out.onnx", data=DATA, progress=events.append)
    found = [one for one in events if one.stage == "smooth"]
    assert [found[0].kind, found[-1].kind] == ["start", "end"]
    (total,) = {one.total for one in found[1:-1]}
    assert total is not None
    assert total >= len(DATA)
    assert [one.done for one in found[1:-1]] == list(range(1, total + 1))


def test_memory_does_not_grow_with_the_samples(pre: Path, tmp_path: Path) -> None:
    """Beyond the first 128, of which something is kept."""
    peaks = []
    for count in (140, 140, 560):  # the first run imports and compiles
        data = ({"ids": one["ids"].repeat(8, 0)} for one in _many(count))
        tracemalloc.start()
        try:
            quantize(pre, tmp_path / "out.onnx", data=data, config=full(bias_correction=False))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < 1.25 * peaks[1]


def _many(count: int) -> Iterator[Arrays]:
    for seed in range(count):
        yield texts(1, seed=seed)[0]
