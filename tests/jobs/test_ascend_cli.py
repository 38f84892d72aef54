"""The guide's configs for Ascend with shapes that vary, through ``ptq converter_lite``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import tiny_models as tiny
from tests.command_line import Done, Ptq
from tests.tiny_models import node, normal

CHANNELS = 4
CONFIG = """
[common_quant_param]
quant_type=FULL_QUANT

[data_preprocess_param]
calibrate_path=input_1:{data}
calibrate_size=8
input_type=BIN

[full_quant_param]
# Activation quantized method supports MAX_MIN or KL or REMOVAL_OUTLIER
activation_quant_method=MAX_MIN
bias_correction=true
target_device=ASCEND
"""
GUIDE = "[ascend_context]\ninput_shape=input_1:[-1,32,32,4]\ndynamic_dims=[1~4],[8],[16]\n"
BATCH = GUIDE.replace("[-1,32,32,4]", "[-1,4,32,32]")
PICTURE = "[ascend_context]\ninput_shape=input_1:[1,4,-1,-1]\ndynamic_dims=[32,32],[64~65,48]\n"
NHWC = "--inputShape=input_1:1,32,32,4"
NCHW = "--inputShape=input_1:1,4,32,32"


def network(folder: Path, shape: list[int | str]) -> Path:
    """A convolution of pictures with four channels; of NHWC pictures behind a Transpose."""
    turned = shape[-1] == CHANNELS
    first = [node("Transpose", "input_1", "x", "turn", perm=[0, 3, 1, 2])] if turned else []
    model = tiny.model(
        [*first, node("Conv", ("x" if turned else "input_1") + " w", "c", "conv"),
         node("Relu", "c", "y", "relu")],
        {"input_1": shape},
        {"y": [None, 8, None, None]},
        {"w": normal(8, CHANNELS, 3, 3)},
    )  # fmt: skip
    data = folder / "data"
    data.mkdir()
    for seed in range(10):
        picture = np.random.default_rng(seed).normal(size=(1, 32, 32, CHANNELS))
        (picture * [1, 2, 4, 8]).astype("<f4").tofile(data / f"{seed}.bin")
    return tiny.save(model, folder, "net.onnx")


def convert(
    ptq: Ptq, folder: Path, shape: list[int | str], context: str, *flags: str
) -> tuple[Done, str]:
    """The run, and the words of the compiler's command."""
    model = network(folder, shape)
    config = folder / "full_quant.cfg"
    config.write_text(CONFIG.format(data=folder / "data") + context)
    done = ptq(
        "converter_lite", "--fmk=ONNX", f"--modelFile={model}", f"--outputFile={folder / 'out'}",
        f"--configFile={config}", "--optimize=ascend_oriented", *flags,
    )  # fmt: skip
    script = folder / "out_atc.sh"
    return done, script.read_text() if script.exists() else ""


@pytest.mark.parametrize(
    ("shape", "context", "flag", "words"),
    [
        (["n", 32, 32, 4], GUIDE, NHWC, ('"input_1:-1,32,32,4"', 'batch_size="1,2,3,4,8,16"')),
        (["n", 4, 32, 32], BATCH, NCHW, ('"input_1:-1,4,32,32"', 'batch_size="1,2,3,4,8,16"')),
        ([1, 4, "h", "w"], PICTURE, NCHW, ('"input_1:1,4,-1,-1"', 'size="32,32;64,48;65,48"')),
    ],
)
def test_shapes_that_vary_are_in_the_command(
    ptq: Ptq, tmp_path: Path, shape: list[int | str], context: str, flag: str, words: tuple[str]
) -> None:
    done, script = convert(ptq, tmp_path, shape, context, flag)
    assert done.code == 0, done.err
    for word in words:
        assert word in script
    for name in ("out.onnx", "out_deploy.onnx"):
        (value,) = onnx.load(tmp_path / name).graph.input
        dims = [one.dim_value or one.dim_param for one in value.type.tensor_type.shape.dim]
        assert dims == shape, "calibration fixes nothing"


def test_buffers_are_nhwc_although_four_channels_are_no_picture(ptq: Ptq, tmp_path: Path) -> None:
    """The guide's example has four channels; the convolution tells where the model has them."""
    done, _ = convert(ptq, tmp_path, ["n", 4, 32, 32], BATCH, NCHW)
    assert "the model takes NCHW, BIN buffers are read as NHWC" in done.out


@pytest.mark.parametrize(
    ("shape", "context", "message"),
    [
        (
            ["n", 4, 32, 32], GUIDE,
            "input_shape: input 'input_1' has shape [n, 4, 32, 32], found [-1, 32, 32, 4]\n"
            "  hint: dimensions in the model's own order: input_shape=input_1:[-1,4,32,32]",
        ),
        (
            [1, 4, 32, 32], BATCH,
            "input_shape: input 'input_1' has shape [1, 4, 32, 32], found [-1, 4, 32, 32]\n"
            "  hint: -1 stands where the model leaves a dimension open",
        ),
        (
            ["n", 4, 32, 32], BATCH.replace("input_1", "input1"),
            "input_shape: the model has no input 'input1'\n  hint: did you mean 'input_1'?",
        ),
    ],
)  # fmt: skip
def test_shapes_of_another_model_are_told(
    ptq: Ptq, tmp_path: Path, shape: list[int | str], context: str, message: str
) -> None:
    done, script = convert(ptq, tmp_path, shape, context, NCHW)
    assert done.code == 2
    assert message in done.err
    assert re.search(r"full_quant\.cfg:\d+, \[ascend_context\]", done.err)
    assert not script


@pytest.mark.parametrize(
    ("chip", "code", "message"),
    [
        ("310P3", 0, ""),
        ("910B4", 2, "--optimize, chip=910B4: the option is given twice, chip is 310P3, too"),
    ],
)
def test_a_chip_is_named_twice(
    ptq: Ptq, tmp_path: Path, chip: str, code: int, message: str
) -> None:
    section = "[target.ASCEND]\nchip=310P3\n"
    flag = f"--optimize=ascend_oriented:{chip}"
    done, _ = convert(ptq, tmp_path, ["n", 4, 32, 32], section, flag, NCHW)
    assert (done.code, message in done.err) == (code, True), done.err
