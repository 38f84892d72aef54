"""What users may tell a device, and what it tells them: options, shapes, jobs that it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from ptq_core import check, quantize
from ptq_core.errors import ConfigError, InputError
from ptq_core.jobs import Settings
from ptq_core.target_text import new_target
from tests import tiny_models as tiny
from tests.command_line import Ptq
from tests.tiny_models import node, normal

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = DIGITS / "digits.onnx"
PICTURES = ("--data", DIGITS / "calib", "--calibrate-size", 20, "--mean", 127.5, "--std", 127.5,
            "--resize", "32x32")  # fmt: skip
ONE = ("--input-shape", "image:1,3,32,32")


def kinds(path: Path) -> set[str]:
    """Types of the codes of activations."""
    proto = onnx.load(path)
    constants = {one.name: one for one in proto.graph.initializer}
    return {
        onnx.helper.tensor_dtype_to_np_dtype(constants[one.input[2]].data_type).name
        for one in proto.graph.node
        if one.op_type == "QuantizeLinear"
    }


# ------------------------------------------------------------------------------------- options


def test_an_option_of_the_device_on_the_command_line(ptq: Ptq, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    given = ("--target", "DSP", *ONE, "--target-option", "activation_bits=16")
    done = ptq("quantize", MODEL, *PICTURES, *given, "-o", out)
    assert done.code == 0, done.err
    assert kinds(out) == {"uint16"}
    assert "activation_bits=16" in done.out, "the config to keep has it, too"


def test_integers_as_inputs_and_outputs(ptq: Ptq, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    given = ("--target", "DSP", *ONE, "--target-option", "integer_inputs_outputs=true")
    done = ptq("quantize", MODEL, *PICTURES, *given, "-o", out, "--json")
    assert done.code == 0, done.err
    graph = onnx.load(out).graph
    ends = [*graph.input, *graph.output]
    assert {one.type.tensor_type.elem_type for one in ends} == {onnx.TensorProto.UINT8}
    notes = [text for text in json.loads(done.out)["notes"] if "uint8: real = " in text]
    assert [text.split("'")[1] for text in notes] == [one.name for one in ends]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("activation_bits", "--target-option activation_bits: expected KEY=VALUE"),
        ("bits=16", "unknown key 'bits' for target DSP"),
        ("activation_bits=12", "activation_bits = 12: expected 8 or 16"),
    ],
)
def test_a_wrong_option_is_told(ptq: Ptq, tmp_path: Path, given: str, message: str) -> None:
    done = ptq(
        "quantize", MODEL, *PICTURES, "--target", "DSP", *ONE, "--target-option", given,
        "-o", tmp_path / "out.onnx",
    )  # fmt: skip
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out.onnx").exists()


def test_an_option_that_is_given_twice_is_told(ptq: Ptq, tmp_path: Path) -> None:
    twice = ("--target-option", "activation_bits=8", "--target-option", "activation_bits=16")
    done = ptq("plan", MODEL, "--target", "DSP", *ONE, *twice)
    assert done.code == 2
    assert "the option is given twice" in done.err


def test_a_file_has_no_options(ptq: Ptq, tmp_path: Path) -> None:
    path = tmp_path / "npu.toml"
    path.write_text(new_target("NPU"))
    done = ptq("plan", MODEL, "--target", path, "--target-option", "bits=8")
    assert done.code == 2
    assert "is a file, which has no options" in done.err


def test_an_option_that_the_config_gives_too_may_say_the_same(ptq: Ptq, tmp_path: Path) -> None:
    config = tmp_path / "c.cfg"
    text = (DIGITS / "full_quant.cfg").read_text().replace("target_device=CPU", "target_device=DSP")
    config.write_text(text + "\n[target.DSP]\nactivation_bits=16\n")
    given = ("plan", MODEL, "-c", config, *ONE, "--target-option")
    assert ptq(*given, "activation_bits=16").code == 0
    assert "activation_bits is 16, too" in ptq(*given, "activation_bits=8").err


def test_options_of_another_device_are_a_warning(tmp_path: Path) -> None:
    made = tiny.gemm()
    report = quantize(
        tiny.save(made, tmp_path),
        tmp_path / "out.onnx",
        config={
            "common_quant_param": {"quant_type": "FULL_QUANT"},
            "full_quant_param": {},
            "target.DSP": {"activation_bits": 16},
        },
        data=[tiny.feeds(made, seed) for seed in range(8)],
    )
    assert any("[target.dsp] has no effect" in text for text in report.warnings)


def test_optimize_names_the_chip(ptq: Ptq, tmp_path: Path) -> None:
    config = tmp_path / "c.cfg"
    text = (DIGITS / "full_quant.cfg").read_text().replace("target_device=CPU", "")
    config.write_text(text.replace("image:calib", f"image:{DIGITS / 'calib'}"))
    out = tmp_path / "digits_int8"
    done = ptq(
        "converter_lite", "--fmk=ONNX", f"--modelFile={MODEL}", f"--outputFile={out}",
        f"--configFile={config}", "--optimize=ascend_oriented:310P3",
    )  # fmt: skip
    assert done.code == 0, done.err
    script = (tmp_path / "digits_int8_atc.sh").read_text()
    assert "SOC_VERSION=${SOC_VERSION:-Ascend310P3}" in script


# -------------------------------------------------------------------------------------- shapes


def test_open_shapes_are_refused_where_the_device_takes_none(ptq: Ptq, tmp_path: Path) -> None:
    done = ptq("quantize", MODEL, *PICTURES, "--target", "DSP", "-o", tmp_path / "out.onnx")
    assert done.code == 2
    text = "input 'image' is [batch, 3, 32, 32], and DSP takes static shapes only"
    assert text in done.err
    assert "give --input-shape 'image:" in done.err
    plan = ptq("plan", MODEL, "--target", "DSP")
    assert plan.code == 2
    assert text in plan.err
    assert ptq("plan", MODEL, "--target", "DSP", *ONE).code == 0


def test_the_file_has_the_shapes_that_were_given(tmp_path: Path) -> None:
    data = [np.zeros((1, 3, 32, 32), np.float32) + index for index in range(8)]
    settings = Settings(input_shapes={"image": (1, 3, 32, 32)})
    quantize(MODEL, tmp_path / "out.onnx", data=data, target="DSP", settings=settings)
    graph = onnx.load(tmp_path / "out.onnx").graph
    shapes = [
        [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in (*graph.input, *graph.output)
    ]
    assert shapes == [[1, 3, 32, 32], [1, 10]]


# ------------------------------------------------------------------------------- jobs and options


@pytest.mark.parametrize("target", ["NVGPU", "DSP", "ASCEND"])
def test_devices_without_dynamic_quantization_say_so(target: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{target} has no dynamic quantization"):
        quantize(MODEL, tmp_path / "out.onnx", dynamic="ALWC", target=target)


def test_on_the_fly_where_the_device_has_none(tmp_path: Path) -> None:
    config = {
        "common_quant_param": {"quant_type": "WEIGHT_QUANT", "bit_num": 8},
        "weight_quant_param": {"dequant_strategy": "ON_THE_FLY"},
    }
    with pytest.raises(ConfigError, match="DSP computes nothing on weights while a model runs"):
        quantize(
            MODEL, tmp_path / "out.onnx", config=config, target="DSP",
            settings=Settings(input_shapes={"image": (1, 3, 32, 32)}),
        )  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("target", ["NVGPU", "DSP", "ASCEND"])
def test_smaller_weights_for_every_device(target: str, bits: int, tmp_path: Path) -> None:
    report = quantize(
        MODEL, tmp_path / "out.onnx", bits=bits, target=target,
        settings=Settings(input_shapes={"image": (1, 3, 32, 32)}),
    )  # fmt: skip
    assert report.accepted, report.findings
    assert report.bytes_after * 3 < report.bytes_before
    assert report.verification is not None
    assert (report.verification.cosine or 0) > {4: 0.98, 8: 0.999}[bits]


def test_one_weight_scale_where_the_device_takes_one_is_a_warning(tmp_path: Path) -> None:
    made = tiny.gemm()
    data = [tiny.feeds(made, seed) for seed in range(8)]
    report = quantize(tiny.save(made, tmp_path), tmp_path / "out.onnx", data=data, target="ASCEND")
    assert "per_channel: the target takes one weight scale for Gemm" in report.warnings


def test_a_file_of_the_device_is_not_written_over_the_float_model(tmp_path: Path) -> None:
    """ASCEND writes OUT_deploy.onnx beside OUT.onnx."""
    made = tiny.gemm()
    path = tiny.save(made, tmp_path, "net_deploy.onnx")
    before = path.read_bytes()
    data = [tiny.feeds(made, seed) for seed in range(8)]
    with pytest.raises(InputError, match="which is the float model"):
        quantize(path, tmp_path / "net.onnx", data=data, target="ASCEND")
    assert path.read_bytes() == before
    assert not (tmp_path / "net.onnx").exists()


def test_a_result_that_breaks_a_rule_is_exit_code_1(ptq: Ptq, tmp_path: Path) -> None:
    """The file is kept, as with a missed gate."""
    made = tiny.model(
        [node("Conv", "x w", "c", "conv"), node("Relu", "c", "r", "relu"),
         node("Conv", "r v", "d", "conv2"), node("Sign", "d", "y", "sign")],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 2, 4, 4]},
        {"w": normal(4, 3, 1, 1), "v": normal(2, 4, 1, 1)},
    )  # fmt: skip
    (tmp_path / "data").mkdir()
    for seed in range(8):
        np.save(tmp_path / "data" / f"{seed}.npy", tiny.feeds(made, seed)["x"])
    target = tmp_path / "npu.toml"
    target.write_text(
        'name = "NPU"\nsummary = "a device"\nactivation = { dtype = "int8" }\n'
        'weight = { dtype = "int8", symmetric = true }\n'
        '[operators.Conv]\nquantize = "always"\n'
        '[accepts]\nforbidden = { Sign = "it has no Sign" }\n'
        '[checks.X-OP-FORBIDDEN]\nseverity = "error"\nbecause = "The compiler stops."\n'
    )
    out = tmp_path / "out.onnx"
    done = ptq(
        "quantize", tiny.save(made, tmp_path), "--data", tmp_path / "data", "--target", target,
        "-o", out,
    )  # fmt: skip
    assert done.code == 1, done.err
    assert out.exists()
    assert "error X-OP-FORBIDDEN" in done.out
    assert "node 'sign'" in done.out
    assert "rules of NPU: 1 error, 0 warnings; the file was kept" in done.out


def test_check_from_python(tmp_path: Path) -> None:
    made = tiny.gemm()
    data = [tiny.feeds(made, seed) for seed in range(8)]
    out = tmp_path / "out.onnx"
    quantize(tiny.save(made, tmp_path), out, data=data)
    assert check(out) == ()
    found = check(str(out), "NVGPU")
    assert {one.code for one in found} >= {"A-DTYPE", "B-INT32-BIAS-DQ"}
    with pytest.raises(InputError, match="no target named 'NVPGU'"):
        check(out, "NVPGU")
