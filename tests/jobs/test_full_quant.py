"""Full quantization from Python, on tiny models and on the example."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core import quantize
from ptq_core.errors import ConfigError, DataError, InputError, ModelError
from ptq_core.graph import model as model_module
from ptq_core.jobs import Report, Settings
from ptq_core.types import Event
from tests import tiny_models as tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
SAMPLES = 10


def data_for(made: onnx.ModelProto, count: int = SAMPLES) -> list[dict[str, np.ndarray]]:
    return [tiny.feeds(made, seed, batch=1) for seed in range(count)]


STAGES = ["prepare", "plan", "load", "calibrate", "correct", "emit", "verify", "check", "save"]


def run(made: onnx.ModelProto, folder: Path, **given: Any) -> Report:
    given.setdefault("data", data_for(made))
    return quantize(tiny.save(made, folder), folder / "out.onnx", target="CPU", **given)


# ------------------------------------------------------------------------------------ tiny models


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_tiny_model(name: str, tmp_path: Path) -> None:
    made = tiny.MODELS[name]()
    data = data_for(made)
    report = run(made, tmp_path, data=data)
    assert report.files == [tmp_path / "out.onnx"]
    assert report.samples == SAMPLES
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.99
    assert not report.verification.unexpected
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    report = run(tiny.conv_bn_relu(), tmp_path)
    assert report.target == "CPU"
    assert report.bytes_before == (tmp_path / "model.onnx").stat().st_size
    assert report.bytes_after == (tmp_path / "out.onnx").stat().st_size
    assert list(report.seconds) == STAGES
    assert set(report.ranges) == set(report.plan.watched())
    assert report.verification is not None
    assert report.verification.executed["QLinearConv"] == 2
    assert report.passed


def test_the_result_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tiny.conv_bn_relu(), tmp_path / name)
        contents.append((tmp_path / name / "out.onnx").read_bytes())
    assert contents[0] == contents[1]


def test_the_file_says_what_made_it(tmp_path: Path) -> None:
    run(tiny.conv_bn_relu(), tmp_path)
    proto = onnx.load(tmp_path / "out.onnx")
    found = {one.key: one.value for one in proto.metadata_props}
    assert proto.producer_name == "ptq"
    assert found["ptq.job"] == "FULL_QUANT"
    assert found["ptq.target"] == "CPU"
    assert found["ptq.samples"] == str(SAMPLES)
    assert "ptq-calibrator-max-min==" in found["ptq.plugins"]
    assert str(tmp_path) not in str(found)


def test_the_default_output_is_beside_the_model(tmp_path: Path) -> None:
    path = tiny.save(tiny.gemm(), tmp_path)
    report = quantize(path, data=data_for(tiny.gemm()), target="CPU")
    assert report.files == [tmp_path / "model_int8.onnx"]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("rows", [1, 4])
def test_models_with_a_fixed_batch(batch: int, rows: int, tmp_path: Path) -> None:
    made = tiny.conv_bn_relu()
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    data = [one["x"] for one in (tiny.feeds(tiny.conv_bn_relu(), s, rows) for s in range(6))]
    report = run(made, tmp_path, data=data)
    assert report.samples == 6
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.99


def test_a_skipped_layer_stays_float(tmp_path: Path) -> None:
    report = run(tiny.conv_bn_relu(), tmp_path, skip=["bn2", "type:Gemm"])
    decisions = {one.name: one.decision for one in report.plan.nodes}
    assert decisions["conv2"] == "guarded"
    assert decisions["classifier"] == "float"
    assert report.verification is not None
    assert report.verification.executed["QLinearConv"] == 1


def test_large_models_get_external_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "EXTERNAL_DATA_THRESHOLD", 1000)
    made = tiny.conv_bn_relu()
    report = run(made, tmp_path)
    assert report.files == [tmp_path / "out.onnx", tmp_path / "out.onnx.data"]
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.99


def test_the_fallback_runner_does_the_whole_job(tmp_path: Path) -> None:
    """Without onnxruntime: slow, but the same ranges and a verified result."""
    made = tiny.conv_bn_relu()
    sections = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "CPU"},
        "runner": {"name": "reference"},
    }
    data = data_for(made)
    report = quantize(tiny.save(made, tmp_path), tmp_path / "out.onnx", config=sections, data=data)
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.99
    other = run(made, tmp_path, data=data)
    for name, found in report.ranges.items():
        assert found.low == pytest.approx(other.ranges[name].low, rel=1e-4, abs=1e-6)
        assert found.high == pytest.approx(other.ranges[name].high, rel=1e-4, abs=1e-6)


def test_progress_is_told_stage_by_stage(tmp_path: Path) -> None:
    events: list[Event] = []
    run(tiny.gemm(), tmp_path, progress=events.append)
    started = list(dict.fromkeys(one.stage for one in events))
    assert started == STAGES


# ------------------------------------------------------------------------------------------ gates


def test_a_missed_gate_keeps_the_output_and_names_suspects(tmp_path: Path) -> None:
    report = run(tiny.conv_bn_relu(), tmp_path, settings=Settings(min_cosine=0.9999999))
    assert not report.passed
    assert (tmp_path / "out.onnx").exists()
    assert report.suspects
    names = {one.name for one in report.plan.nodes}
    assert all(one.name in names for one in report.suspects)


def test_a_met_gate(tmp_path: Path) -> None:
    assert run(tiny.conv_bn_relu(), tmp_path, settings=Settings(min_cosine=0.9)).passed


# ------------------------------------------------------------------------- nothing is written


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[Path]:
    """A folder in which an earlier output has to survive."""
    (tmp_path / "out.onnx").write_bytes(b"earlier")
    yield tmp_path
    assert (tmp_path / "out.onnx").read_bytes() == b"earlier"
    assert {one.name for one in tmp_path.iterdir()} <= {"out.onnx", "model.onnx"}


def test_no_data(untouched: Path) -> None:
    with pytest.raises(DataError, match="no sample"):
        run(tiny.gemm(), untouched, data=[])


def test_bad_data(untouched: Path) -> None:
    with pytest.raises(DataError, match="sample 1"):
        run(tiny.gemm(), untouched, data=[np.zeros(6), np.zeros(7)])


def test_a_model_that_is_quantized_already(untouched: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    run(tiny.gemm(), other)
    with pytest.raises(ModelError, match="already quantized"):
        quantize(other / "out.onnx", untouched / "out.onnx", data=[np.zeros(6)], target="CPU")


def test_a_skip_pattern_that_matches_nothing(untouched: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        run(tiny.gemm(), untouched, skip=["hiden"])


def test_the_model_itself_as_output(tmp_path: Path) -> None:
    path = tiny.save(tiny.gemm(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="the output is the model itself"):
        quantize(path, path, data=[np.zeros(6)], target="CPU")
    assert path.read_bytes() == before


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    def explode() -> Iterator[np.ndarray]:
        raise AssertionError("data was touched")
        yield

    with pytest.raises(InputError, match="does not exist"):
        quantize(
            tiny.save(tiny.gemm(), tmp_path),
            tmp_path / "none" / "out.onnx",
            data=explode(),
            target="CPU",
        )


def test_a_failing_data_source(untouched: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros(6)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(tiny.gemm(), untouched, data=broken())


# -------------------------------------------------------------------------------- the example


@pytest.fixture(scope="module")
def digits(tmp_path_factory: Any) -> tuple[Report, Path]:
    output = tmp_path_factory.mktemp("digits") / "digits_int8.onnx"
    return quantize(EXAMPLE / "digits.onnx", output, config=EXAMPLE / "full_quant.cfg"), output


def test_the_example_is_smaller_and_all_integer(digits: tuple[Report, Path]) -> None:
    report, _ = digits
    # its weights are a quarter; what Q and DQ nodes take is a good part of so small a file
    assert report.bytes_before / report.bytes_after > 2.5
    assert report.verification is not None
    assert not report.verification.unexpected
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.995
    executed = report.verification.executed
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(executed)
    assert executed["QLinearConv"] >= 1


def test_the_example_keeps_its_accuracy(digits: tuple[Report, Path]) -> None:
    pytest.importorskip("cv2")
    sys.path.insert(0, str(EXAMPLE))
    try:
        import evaluate
    finally:
        sys.path.remove(str(EXAMPLE))
    pictures, truth = evaluate.load_eval()
    right = [
        float((evaluate.predict(evaluate.open_model(path), pictures) == truth).mean())
        for path in (EXAMPLE / "digits.onnx", digits[1])
    ]
    assert right[0] > 0.95
    assert right[1] > right[0] - 0.01


def test_the_two_syntaxes_of_the_example_are_the_same(
    digits: tuple[Report, Path], tmp_path: Path
) -> None:
    _, output = digits
    quantize(EXAMPLE / "digits.onnx", tmp_path / "out.onnx", config=EXAMPLE / "full_quant.toml")
    first, second = onnx.load(output), onnx.load(tmp_path / "out.onnx")
    assert first.graph.SerializeToString() == second.graph.SerializeToString()


def test_the_working_directory_does_not_matter(
    digits: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = os.path.relpath(EXAMPLE / "full_quant.cfg", tmp_path)
    quantize(EXAMPLE / "digits.onnx", "out.onnx", config=config)
    first, second = onnx.load(digits[1]), onnx.load(tmp_path / "out.onnx")
    assert first.graph.SerializeToString() == second.graph.SerializeToString()
