"""The command lines of converter_lite: what each flag means here."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ptq_core.cli import main
from ptq_core.cli.app import root
from ptq_core.cli.converter_flags import interpret
from ptq_core.cli.converter_lite import given_flags
from ptq_core.cli.state import State

# The command lines of the guide to post-training quantization, as printed there.
PATH = "/mindspore/lite/tools/converter/quantizer/config"
COMMON = "--fmk=ModelType --modelFile=ModelFilePath --outputFile=ConvertedModelPath"
GUIDE = [
    f"./converter_lite {COMMON} --configFile={PATH}/mixed_bit_weight_quant.cfg",
    f"./converter_lite {COMMON} --configFile={PATH}/fixed_bit_weight_quant.cfg",
    f"./converter_lite {COMMON} --configFile={PATH}/full_quant.cfg",
    f"./converter_lite {COMMON} --configFile={PATH}/full_quant.cfg --optimize=ascend_oriented",
    f"./converter_lite {COMMON} --configFile={PATH}/full_quant.cfg --optimize=ascend_oriented "
    '--inputShape="inTensorName_1:1,32,32,4"',
    f"./converter_lite {COMMON} --configFile={PATH}/dynamic_quant.cfg",
]
REQUIRED = {"fmk": "ONNX", "modelFile": "m.onnx", "outputFile": "o", "configFile": "c.cfg"}


def words(line: str) -> list[str]:
    """The words after ``ptq`` for one of these lines, with a real framework for the placeholder."""
    return shlex.split(line.replace("./", "").replace("ModelType", "ONNX"))


def parsed(arguments: list[str]) -> dict[str, object]:
    """What the parser makes of them."""
    command = root()
    context = command.make_context("ptq", list(arguments), obj=State())
    found = command.get_command(context, "converter_lite")
    return dict(found.make_context("converter_lite", arguments[1:], parent=context).params)


@pytest.mark.parametrize("line", GUIDE)
@pytest.mark.parametrize("joined", [True, False])
def test_lines_of_the_guide_parse(line, joined):
    arguments = words(line)
    if not joined:  # --flag value
        arguments = [part for word in arguments for part in word.split("=", 1)]

    found = parsed(arguments)

    asked = interpret(given_flags(found))
    assert asked.problems == []
    assert asked.model == Path("ModelFilePath")
    assert asked.output == Path("ConvertedModelPath.onnx")
    assert str(asked.config) in line
    assert asked.target == ("ASCEND" if "ascend_oriented" in line else None)
    shape = {"inTensorName_1": (1, 32, 32, 4)} if "inputShape" in line else {}
    assert asked.input_shapes == shape


@pytest.mark.parametrize("line", GUIDE)
def test_lines_of_the_guide_reach_the_config(capsys, line):
    """All that is wrong with them is what they are placeholders for."""
    assert main(words(line)) == 2
    err = capsys.readouterr().err
    assert err.count("error ") == 1
    assert "the config cannot be read" in err


def test_placeholder_framework_is_refused_with_the_rest(capsys):
    assert main(["converter_lite", "--fmk=ModelType", "--trainModel=true"]) == 2
    err = capsys.readouterr().err
    for text in (
        "--fmk=ModelType: ptq takes ONNX models",
        "--modelFile is missing",
        "--outputFile is missing",
        "--configFile is missing",
        "--trainModel=true",
    ):
        assert text in err


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("net", "net.onnx"),
        ("net.onnx", "net.onnx"),
        ("a.b/net", "a.b/net.onnx"),
        ("net.ms", "net.ms"),
    ],
)
def test_output_gets_a_suffix_where_none_is_given(given, written):
    assert interpret({**REQUIRED, "outputFile": given}).output == Path(written)


def test_output_folder_is_refused():
    (problem,) = interpret({**REQUIRED, "outputFile": "folder/"}).problems
    assert "is a folder" in problem.message


@pytest.mark.parametrize(
    ("flag", "value", "hint"),
    [
        ("fmk", "TFLITE", "tf2onnx"),
        ("fmk", "pytorch", "torch.onnx.export"),
        ("weightFile", "w.caffemodel", "leave it out"),
        ("trainModel", "true", "inference"),
        ("encryption", "true", "--encryption=false"),
        ("encryptKey", "30313233", "--encryption=false"),
        ("decryptKey", "30313233", "decrypt the model"),
        ("inputDataType", "INT8", "leave it out"),
        ("outputDataType", "FLOAT16", "leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(flag, value, hint):
    (problem,) = interpret({**REQUIRED, flag: value}).problems
    assert f"--{flag}" in problem.message or "encrypt" in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("optimize", "fast"),
        ("fp16", "true"),
        ("infer", "yes"),
        ("inputDataFormat", "NCWH"),
        ("inputDataType", "BF16"),
        ("trainModel", "1"),
        ("inputShape", "x:1,-1"),
    ],
)
def test_wrong_values_are_problems(flag, value):
    (problem,) = interpret({**REQUIRED, flag: value}).problems
    assert f"--{flag}" in problem.message


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("saveType", "MINDIR"),
        ("infer", "true"),
        ("encryption", "false"),
        ("decryptMode", "AES-GCM"),
        ("device", "Ascend"),
        ("optimizeTransformer", "true"),
        ("optimize", "gpu_oriented"),
    ],
)
def test_what_has_no_effect_is_noted(flag, value):
    asked = interpret({**REQUIRED, flag: value})
    assert not asked.problems
    (note,) = asked.notes
    assert f"--{flag}" in note


@pytest.mark.parametrize(("flag", "value"), [("optimize", "none"), ("outputDataFormat", "NCHW")])
def test_what_one_might_rely_on_is_warned_of(flag, value):
    asked = interpret({**REQUIRED, flag: value})
    assert not asked.problems
    (warning,) = asked.warnings
    assert f"--{flag}" in warning


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("optimize", "general"),
        ("fp16", "off"),
        ("trainModel", "false"),
        ("inputDataType", "FLOAT"),
        ("outputDataType", "DEFAULT"),
        ("optimizeTransformer", "false"),
    ],
)
def test_defaults_are_taken_in_silence(flag, value):
    asked = interpret({**REQUIRED, flag: value})
    assert [*asked.problems, *asked.warnings, *asked.notes] == []


def lite(tmp_path, config: str, *flags: str) -> int:
    path = tmp_path / "c.cfg"
    path.write_text(config)
    model = ["--fmk=ONNX", "--modelFile=m.onnx", f"--outputFile={tmp_path / 'o'}"]
    return main(["converter_lite", *model, f"--configFile={path}", *flags])


def test_float16_with_dynamic_quantization(tmp_path, capsys):
    assert lite(tmp_path, "[common_quant_param]\nquant_type=DYNAMIC_QUANT\n", "--fp16=on") == 2
    assert "dynamic quantization does not support float16" in capsys.readouterr().err


def test_layouts_that_contradict(tmp_path, capsys):
    config = (
        "[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]\n[data_preprocess_param]\n"
        "calibrate_path=x:y\ncalibrate_size=1\ninput_type=BIN\ninput_data_format=NHWC\n"
    )
    assert lite(tmp_path, config, "--inputDataFormat=NCHW") == 2
    assert "--inputDataFormat=NCHW, but the config says NHWC" in capsys.readouterr().err


def test_config_and_flags_are_complained_about_together(tmp_path, capsys):
    assert lite(tmp_path, "[common_quant_param]\nquant_type=HALF\n", "--infer=maybe") == 2
    err = capsys.readouterr().err
    assert err.startswith("2 problems:")
    assert "HALF" in err
    assert "--infer=maybe" in err


def test_other_device_than_the_config_says(tmp_path, capsys):
    config = (
        "[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]\ntarget_device=DSP\n"
        "[data_preprocess_param]\ncalibrate_path=x:y\ncalibrate_size=1\ninput_type=BIN\n"
    )
    assert lite(tmp_path, config, "--optimize=ascend_oriented") == 2
    assert "the command line says ASCEND" in capsys.readouterr().err
