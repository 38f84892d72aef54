"""Dynamic quantization by config files, and by the converter's command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from ptq_core import quantize
from tests import tiny_models as tiny
from tests.command_line import Done, Ptq
from tests.dynamic_checks import IDS, config_file, executed_operators
from tests.weight_checks import cosine, network, operators, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(network(), tmp_path)


def quant_config(strategy: str, *lines: str, common: str = "") -> str:
    return "\n".join(
        ["[common_quant_param]", "quant_type=DYNAMIC_QUANT", common,
         "[dynamic_quant_param]", f"quant_strategy={strategy}", *lines, ""]
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["ALWC", "alwc", "Acwl", "ACWC"])
def test_the_converters_command_line(strategy: str, ptq: Ptq, model: Path) -> None:
    done = converter(ptq, model, quant_config(strategy))
    assert done.code == 0, done.err
    first, second = (run(model.with_name(n), IDS)[0] for n in ("model.onnx", "result.onnx"))
    assert cosine(first, second) > 0.999


def converter(ptq: Ptq, model: Path, text: str, *flags: str) -> Done:
    path = config_file(model.parent, text)
    return ptq(
        "converter_lite", "--fmk=ONNX", f"--modelFile={model}",
        f"--outputFile={model.parent / 'result'}", f"--configFile={path}", *flags,
    )  # fmt: skip


def test_the_converters_fp16_is_refused(ptq: Ptq, model: Path) -> None:
    done = converter(ptq, model, quant_config("ALWC"), "--fp16=on")
    assert done.code == 2
    assert "does not support float16" in " ".join(done.err.split())


def test_a_strategy_that_is_unknown(ptq: Ptq, model: Path) -> None:
    done = ptq("quantize", model, "-c", config_file(model.parent, quant_config("ALWD")))
    assert done.code == 2
    assert "ALWD" in done.err
    assert "ALWC" in done.err


def test_keys_of_the_section(ptq: Ptq, tmp_path: Path) -> None:
    path = tiny.save(tiny.transformer(), tmp_path)
    for lines, count in ((), 0), (("attention=true",), 2):
        text = config_file(tmp_path, quant_config("ALWC", *lines))
        done = ptq("quantize", path, "-c", text, "-o", tmp_path / "out.onnx")
        assert done.code == 0, done.err
        found = operators(onnx.load(tmp_path / "out.onnx").graph)
        assert found["MatMul"] == 2 - count
    assert executed_operators(tmp_path)["MatMul"] == 0


def test_the_template_works(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    done = ptq("config", "new", "dynamic_quant", "-o", tmp_path / "new.cfg")
    assert done.code == 0, done.err
    done = ptq("quantize", model, "-c", tmp_path / "new.cfg", "-o", tmp_path / "out.onnx")
    assert done.code == 0, done.err


def test_debug_reports_are_not_passed_over_in_silence(ptq: Ptq, model: Path) -> None:
    text = quant_config("ALWC", common=f"debug_info_save_path={model.parent / 'debug'}")
    done = ptq("quantize", model, "-c", config_file(model.parent, text))
    assert done.code == 0, done.err
    assert "debug_info_save_path" in done.out + done.err


def test_keys_of_other_jobs_are_warned_of(ptq: Ptq, model: Path) -> None:
    text = quant_config("ALWC", common="min_quant_weight_channel=5")
    done = ptq("quantize", model, "-c", config_file(model.parent, text))
    assert done.code == 0, done.err
    assert "min_quant_weight_channel" in done.out + done.err


def test_python_and_command_line_give_the_same(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{one}.onnx" for one in "abc"]
    assert ptq("quantize", model, "--dynamic", "ACWC", "-o", paths[0]).code == 0
    quantize(model, paths[1], dynamic="acwc")
    quantize(model, paths[2], dynamic="ACWC")
    assert len({path.read_bytes() for path in paths}) == 1


def test_without_smoothing_data_is_for_the_comparison(
    ptq: Ptq, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for index in range(4):
        np.save(folder / f"{index}.npy", np.arange(5)[None] + index)
    plain, compared = tmp_path / "a.onnx", tmp_path / "b.onnx"
    text = config_file(tmp_path, quant_config("ALWC", "smoothing=false"))
    assert ptq("quantize", model, "-c", text, "-o", plain).code == 0
    text.write_text(
        text.read_text() + "[data_preprocess_param]\ninput_type=NPY\ncalibrate_size=4\n"
        f"calibrate_path=ids:{folder}\n"
    )
    done = ptq("quantize", model, "-c", text, "-o", compared, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["generated"] is False
    first, second = (onnx.load(one).graph for one in (plain, compared))
    assert first.SerializeToString() == second.SerializeToString()
