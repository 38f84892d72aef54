"""The job of dynamic quantization: its report, its files, its checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ptq_core import quantize
from ptq_core.config import config_from_values
from ptq_core.errors import ConfigError, InputError, PluginError
from ptq_core.graph import model as model_module
from ptq_core.jobs import Settings
from ptq_core.jobs.choices import find_runner
from ptq_core.jobs.start import prepare_dynamic_job
from ptq_core.plugins import discover
from ptq_core.types import Event
from ptq_core.verification import verify
from tests import decoders
from tests import tiny_models as tiny
from tests.dynamic_checks import (
    STRATEGIES,
    before_and_after,
    close,
    decisions,
    dynamic,
    product,
    sections,
    stored_operators,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, reasons, run, weights

K, N = 32, 48


def dense(**given: object) -> onnx.ModelProto:
    return tiny.model(
        [
            node("MatMul", "x w", "a", "up"),
            node("Relu", "a", "r", "relu"),
            node("MatMul", "r v", "y", "down"),
        ],
        {"x": ["n", "s", K]}, {"y": ["n", "s", K]},
        {"w": normal(K, N), "v": normal(N, K, seed=1)},
        **given,
    )  # fmt: skip


def samples(count: int = 3) -> list[np.ndarray]:
    return [normal(1, 4, K, seed=10 + index, scale=1.0) for index in range(count)]


# ----------------------------------------------------------------------------------------- report


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_report_has_every_weight(strategy: str, tmp_path: Path) -> None:
    report = dynamic(dense(), tmp_path, strategy)
    found = weights(report)
    assert set(found) == {"w", "v"}
    one = found["w"]
    assert (one.readers, one.shape, one.bits) == (("up",), (K, N), 8)
    assert one.scale.shape == ((1, 1) if strategy == "ACWL" else (1, N))
    assert one.bytes_after == K * N + 4 * one.scale.size
    assert (one.offset == 0).all()
    largest = np.abs(normal(K, N)).max(axis=None if strategy == "ACWL" else 0)
    np.testing.assert_allclose(one.scale.ravel(), largest.ravel() / 127, rtol=1e-6)
    assert one.sqnr > 35
    assert report.bytes_before == (tmp_path / "model.onnx").stat().st_size
    assert report.bytes_after == (tmp_path / "out.onnx").stat().st_size
    assert report.files == [tmp_path / "out.onnx"]


def test_data_is_compared_on(tmp_path: Path) -> None:
    report = dynamic(dense(), tmp_path, data=samples())
    assert not report.generated
    assert report.verification is not None
    assert report.verification.samples == 3
    wanted, found = (
        [run(tmp_path / name, {"x": one})[0] for one in samples()]
        for name in ("model.onnx", "out.onnx")
    )
    (output,) = report.verification.outputs
    assert output.cosine == pytest.approx(np.mean(list(map(cosine, wanted, found))), abs=1e-9)


def test_no_data_is_said(tmp_path: Path) -> None:
    report = dynamic(dense(), tmp_path)
    assert report.generated
    assert any("there was no data" in one for one in report.notes)


def test_the_gate(tmp_path: Path) -> None:
    assert dynamic(dense(), tmp_path, settings=Settings(min_cosine=0.99)).passed
    report = dynamic(dense(), tmp_path, settings=Settings(min_cosine=0.9999999))
    assert not report.passed
    assert (tmp_path / "out.onnx").exists()


def test_progress_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    path = tiny.save(dense(), tmp_path)
    quantize(path, tmp_path / "out.onnx", dynamic="ALWC", progress=events.append)
    stages = list(dict.fromkeys(one.stage for one in events))
    assert stages == ["prepare", "plan", "weights", "verify", "check", "save"]
    assert [one.done for one in events if one.kind == "advance" and one.stage == "weights"] == [
        1,
        2,
    ]


def test_debug_reports_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    given = sections("ALWC")
    given["common_quant_param"]["debug_info_save_path"] = str(tmp_path / "debug")
    report = quantize(tiny.save(dense(), tmp_path), tmp_path / "out.onnx", config=given)
    assert any("debug_info_save_path" in one for one in report.warnings)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_runs_give_the_same_bytes(strategy: str, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        dynamic(decoders.decoder(), tmp_path, strategy, name=name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# --------------------------------------------------------------------------- is it really integer


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_that_run_in_float_are_reported(strategy: str, tmp_path: Path) -> None:
    """Verification is shown the float model in the place of the quantized one."""
    path, host = tiny.save(dense(), tmp_path), discover()
    config = config_from_values(sections(strategy), has_data=False)
    job = prepare_dynamic_job(path, config, host, Settings(), None)
    runner, options = find_runner(job)
    found = verify(path, path.read_bytes(), job.report.plan, (), runner, options)
    assert found.unexpected == ("up", "down")


# ------------------------------------------------------------------------------------------ files


def test_external_data(tmp_path: Path) -> None:
    made = dense()
    dynamic(made, tmp_path)
    content = (tmp_path / "out.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.unlink()
    onnx.save_model(made, path, save_as_external_data=True, location="model.data", size_threshold=0)
    report = dynamic(path, tmp_path)
    assert (tmp_path / "out.onnx").read_bytes() == content
    assert report.bytes_before == sum(
        (tmp_path / name).stat().st_size for name in ("model.onnx", "model.data")
    )


def test_a_large_result_has_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "EXTERNAL_DATA_THRESHOLD", 1000)
    report = dynamic(dense(), tmp_path)
    assert report.files == [tmp_path / "out.onnx", tmp_path / "out.onnx.data"]
    for wanted, found in before_and_after(tmp_path, {"x": samples()[0]}):
        assert cosine(wanted, found) > 0.999


def test_functions_of_the_model(tmp_path: Path) -> None:
    """A call stays a call; a weight that it takes stays float."""
    own = helper.make_function(
        "tiny", "Twice", ["a", "w"], ["b"],
        [node("MatMul", "a w", "s"), node("Add", "s s", "b")],
        [helper.make_opsetid("", tiny.OPSET)],
    )  # fmt: skip
    call = node("Twice", "h v", "y", "call")
    call.domain = "tiny"
    made = tiny.model(
        [node("MatMul", "x w", "h", "layer"), call],
        {"x": [3, K]}, {"y": [3, 40]},
        {"w": normal(K, N), "v": normal(N, 40, seed=1)},
        functions=[own], opsets=[helper.make_opsetid("tiny", 1)],
    )  # fmt: skip
    report = dynamic(made, tmp_path)
    assert decisions(report)["layer"] == "dynamic"
    assert set(weights(report)) == {"w"}
    for wanted, found in before_and_after(tmp_path, {"x": normal(3, K, seed=5)}):
        assert cosine(wanted, found) > 0.999


def test_constants_that_are_nodes_or_inputs(tmp_path: Path) -> None:
    """Weights of Constant nodes count; an initializer that callers may replace does not."""
    tensor = onnx.numpy_helper.from_array(normal(K, N), "t")
    made = tiny.model(
        [
            node("Constant", "", "w", "constant", value=tensor),
            node("MatMul", "x w", "a", "up"),
            node("MatMul", "a u", "b", "open"),
            node("MatMul", "b v", "y", "down"),
        ],
        {"x": ["n", K], "u": [N, N]}, {"y": ["n", K]},
        {"v": normal(N, K, seed=1), "u": normal(N, N, seed=2)},
    )  # fmt: skip
    report = dynamic(made, tmp_path)
    kinds = decisions(report)
    assert kinds["up"] == kinds["down"] == "dynamic"
    for wanted, found in before_and_after(tmp_path, {"x": normal(3, K, seed=5)}):
        assert cosine(wanted, found) > 0.999


def test_other_types_stay_as_they_are(tmp_path: Path) -> None:
    """float64 and int32 products beside a float32 layer."""
    made = tiny.model(
        [
            node("Cast", "x", "wide", "to_double", to=TensorProto.DOUBLE),
            node("MatMul", "wide d", "yd", "double"),
            node("Cast", "x", "whole", "to_int", to=TensorProto.INT32),
            node("MatMul", "whole i", "yi", "integer"),
            node("MatMul", "x w", "y", "layer"),
        ],
        {"x": ["n", K]},
        [tiny.info("y", ["n", N]), tiny.info("yd", ["n", N], TensorProto.DOUBLE),
         tiny.info("yi", ["n", N], TensorProto.INT32)],
        {"w": normal(K, N), "d": normal(K, N).astype(np.float64),
         "i": np.arange(K * N, dtype=np.int32).reshape(K, N)},
    )  # fmt: skip
    report = dynamic(made, tmp_path)
    assert decisions(report)["double"] == decisions(report)["integer"] == "float"
    assert reasons(report)["double"] == "its activations are not float32"
    x = normal(5, K, seed=5, scale=3.0)
    (y, yd, yi) = run(tmp_path / "out.onnx", {"x": x})
    wanted = run(tmp_path / "model.onnx", {"x": x})
    close(y, product(x, normal(K, N), "ALWC"))
    np.testing.assert_array_equal(yd, wanted[1])
    np.testing.assert_array_equal(yi, wanted[2])


def test_constants_that_layers_share_are_stored_once(tmp_path: Path) -> None:
    """The step of tokens, and the middle of their codes."""
    dynamic(dense(), tmp_path, "ACWC")
    graph = onnx.load(tmp_path / "out.onnx").graph
    scalars = [one for one in graph.initializer if not one.dims]
    assert len(scalars) == 3  # the step, the middle, the smallest magnitude
    assert stored_operators(tmp_path)["ReduceMax"] == 2


# -------------------------------------------------------------------------------------- refusals


def test_what_dynamic_quantization_does_not_take(tmp_path: Path) -> None:
    path, output = tiny.save(dense(), tmp_path), tmp_path / "out.onnx"
    with pytest.raises(ConfigError, match="does not support float16"):
        quantize(path, output, dynamic="ALWC", settings=Settings(fp16=True))
    with pytest.raises(InputError, match="two jobs"):
        quantize(path, output, dynamic="ALWC", bits=8)
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(InputError, match="a calibration table is for FULL_QUANT"):
        quantize(path, output, dynamic="ALWC", calibration=tmp_path / "table.json")
    with pytest.raises(ConfigError, match="ASCEND has no dynamic quantization"):
        quantize(path, output, dynamic="ALWC", target="ASCEND")
    with pytest.raises(ConfigError, match="ALWD"):
        quantize(path, output, dynamic="ALWD")
    with pytest.raises(InputError, match="the output is the model itself"):
        quantize(path, path, dynamic="ALWC")
    assert not output.exists()


def test_samples_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises((InputError, PluginError)):
        dynamic(dense(), tmp_path, data=[np.ones((1, 4, K + 1), np.float32)])
    assert not (tmp_path / "out.onnx").exists()
