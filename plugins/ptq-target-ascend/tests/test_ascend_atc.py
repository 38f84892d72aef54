"""The script calls ATC with what the model and the user say; a shell runs it here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest

import ptq_core
from ptq_core.api import Deployment
from ptq_core.errors import ConfigError
from ptq_target_ascend.atc import command
from tests import tiny_models as tiny


def run(folder: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, with a program in ATC's place that tells its arguments, one a line."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "atc"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (folder / "script.sh").write_text(script)
    return subprocess.run(
        ["sh", str(folder / "script.sh"), "--log=info"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", **environment},
    )


CHIP = "Ascend310P3"


def arguments(folder: Path, deployment: Deployment, model: str = "m_deploy.onnx") -> list[str]:
    done = run(folder, command(model, deployment, CHIP))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_static_model(tmp_path: Path) -> None:
    given = Deployment(name="m", shapes={"x": (1, 3, 8, 8), "y": (1, 5)})
    assert arguments(tmp_path, given) == [
        "--framework=5",
        "--model=m_deploy.onnx",
        "--output=m",
        "--soc_version=Ascend310P3",
        "--input_shape=x:1,3,8,8;y:1,5",
        "--input_format=NCHW",
        "--log=info",
    ]


@pytest.mark.parametrize(
    ("shapes", "profiles", "expected"),
    [
        (
            {"x": (-1, 32, 32, 4)},
            [(1,), (2,), (3,), (4,), (8,), (16,)],
            [
                "--input_shape=x:-1,32,32,4",
                "--input_format=NCHW",
                "--dynamic_batch_size=1,2,3,4,8,16",
            ],
        ),
        (
            {"x": (1, 3, -1, -1)},
            [(64, 64), (64, 96), (64, 64)],
            [
                "--input_shape=x:1,3,-1,-1",
                "--input_format=NCHW",
                "--dynamic_image_size=64,64;64,96",
            ],
        ),
        (
            {"x": (1, -1, -1, 3), "y": (1, -1, -1, 1), "z": (1, 7)},
            [(64, 64), (64, 96)],
            [
                "--input_shape=x:1,-1,-1,3;y:1,-1,-1,1;z:1,7",
                "--input_format=ND",
                "--dynamic_dims=64,64,64,64;64,96,64,96",
            ],
        ),
        ({"x": (-1, 3, 8, 8)}, [(4,)], ["--input_shape=x:4,3,8,8", "--input_format=NCHW"]),
    ],
)  # fmt: skip
def test_sizes_that_vary(
    shapes: dict[str, tuple[int, ...]],
    profiles: list[tuple[int, ...]],
    expected: list[str],
    tmp_path: Path,
) -> None:
    given = Deployment(name="m", shapes=shapes, profiles=profiles)
    assert arguments(tmp_path, given)[4:-1] == expected


def test_one_size_is_said_to_be_no_dynamic_model() -> None:
    script = command("m", Deployment(name="m", shapes={"x": (-1, 3, 8, 8)}, profiles=[(4,)]))
    assert "one size only, (4,): the model is fixed to it" in script


def test_more_sizes_than_the_compiler_takes() -> None:
    sizes = [(size,) for size in range(1, 102)]
    with pytest.raises(ValueError, match="lists 101 sizes, ATC compiles at most 100"):
        command("m", Deployment(name="m", shapes={"x": (-1, 3, 8, 8)}, profiles=sizes))


@pytest.mark.parametrize(
    ("chip", "message"),
    [
        (None, "set it to the chip, such as Ascend310P3; npu-smi info names it"),
        ("910b", "Ascend910B is a series: set it to the chip, such as Ascend910B1"),
    ],
)
def test_a_chip_that_nobody_said(chip: str | None, message: str, tmp_path: Path) -> None:
    script = command("m", Deployment(name="m", shapes={"x": (1, 5)}), chip)
    done = run(tmp_path, script)
    assert done.returncode != 0
    assert message in done.stderr
    assert not done.stdout
    done = run(tmp_path, script, SOC_VERSION="Ascend910B3")
    assert "--soc_version=Ascend910B3" in done.stdout.splitlines()


def test_a_size_that_nobody_said(tmp_path: Path) -> None:
    shapes = {"x": (-1, 3, 8, 8), "ids": (-1, -1)}
    script = command("m", Deployment(name="m", shapes=shapes), CHIP)
    done = run(tmp_path, script)
    assert done.returncode != 0
    assert "SIZE_0_0: set it to the size of dimension 0 of the input x" in done.stderr
    done = run(tmp_path, script, SIZE_0_0="2", SIZE_1_0="2", SIZE_1_1="64")
    assert "--input_shape=x:2,3,8,8;ids:2,64" in done.stdout.splitlines()


def test_an_open_dimension_beside_a_batch_that_varies(tmp_path: Path) -> None:
    shapes = {"x": (-1, 3, 8, 8), "y": (1, -1)}
    profiles = [(1,), (2,)]
    given = Deployment(name="m", shapes=shapes, profiles=profiles)
    done = run(tmp_path, command("m", given, CHIP), SIZE_1_1="9")
    assert "--input_shape=x:-1,3,8,8;y:1,9" in done.stdout.splitlines()
    assert "--dynamic_batch_size=1,2" in done.stdout.splitlines()


def test_names_that_a_shell_would_read_as_its_own(tmp_path: Path) -> None:
    name = 'a $HOME `date` "b"\\'
    given = Deployment(name=name, shapes={name: (1, 5)})
    found = arguments(tmp_path, given, f"{name}.onnx")
    assert found[1:3] == [f"--model={name}.onnx", f"--output={name}"]
    assert found[4] == f"--input_shape={name}:1,5"


@pytest.mark.parametrize("chip", ["Ascend310P3", "310p3"])
def test_the_chip_is_an_option(chip: str, tmp_path: Path) -> None:
    source = tiny.save(tiny.transformer(), tmp_path, "m.onnx")
    config = {
        "common_quant_param": {
            "quant_type": "WEIGHT_QUANT",
            "bit_num": 8,
            "min_quant_weight_channel": 4,
        },
        "target.ASCEND": {"chip": chip},
    }
    ptq_core.quantize(source, tmp_path / "q.onnx", config=config, target="ASCEND")
    done = run(tmp_path, (tmp_path / "q_atc.sh").read_text(), SIZE_0_0="1", SIZE_0_1="1")
    assert "--soc_version=Ascend310P3" in done.stdout.splitlines()


def test_no_name_of_a_chip(tmp_path: Path) -> None:
    source = tiny.save(tiny.conv_bn_relu(), tmp_path, "m.onnx")
    config = {
        "common_quant_param": {"quant_type": "WEIGHT_QUANT", "bit_num": 8},
        "target.ASCEND": {"chip": "$(date)"},
    }
    with pytest.raises(ConfigError, match="expected a name such as Ascend310P3"):
        ptq_core.quantize(source, tmp_path / "q.onnx", config=config, target="ASCEND")
    assert not (tmp_path / "q.onnx").exists()


CONTEXTS: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "batch": (
        {"input_shape": "x:[-1,3,8,8]", "dynamic_dims": "[1~4],[8],[16]"},
        (1, 3, 8, 8),
        "--dynamic_batch_size=1,2,3,4,8,16",
    ),
    "picture": (
        {"input_shape": "x:[1,3,-1,-1]", "dynamic_dims": "[8,8],[16~17,16]"},
        (1, 3, 8, 8),
        "--dynamic_image_size=8,8;16,16;17,16",
    ),
}


@pytest.mark.parametrize("pattern", CONTEXTS)
def test_the_guides_dynamic_shapes(pattern: str, tmp_path: Path) -> None:
    context, shape, option = CONTEXTS[pattern]
    model = tiny.conv_bn_relu()
    if pattern == "picture":
        for axis in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    source = tiny.save(model, tmp_path, "m.onnx")
    ptq_core.quantize(
        source,
        tmp_path / "q.onnx",
        config={
            "common_quant_param": {"quant_type": "FULL_QUANT"},
            "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "ASCEND"},
            "ascend_context": context,
        },
        data=[tiny.rng(seed).standard_normal(shape).astype("float32") for seed in range(4)],
        settings=ptq_core.jobs.Settings(input_shapes={"x": shape}),
    )
    done = run(tmp_path, (tmp_path / "q_atc.sh").read_text(), SOC_VERSION="Ascend310P3")
    assert option in done.stdout.splitlines()
    # the model itself stays open: the compiler fixes it
    dims = onnx.load(tmp_path / "q_deploy.onnx").graph.input[0].type.tensor_type.shape.dim
    varying = [0] if pattern == "batch" else [2, 3]
    assert all(not dims[axis].dim_value for axis in varying)
