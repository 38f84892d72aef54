"""What strangers ship: a calibrator of thirty lines and a device in TOML, installed and used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

# Thirty lines, docstrings and blank lines included.
CALIBRATOR = '''"""MEAN_MAX: the range ends at the mean over samples of each sample's extremes."""

from dataclasses import dataclass

from ptq_core.api import CalibratorEntry, Range, hookimpl

@dataclass(frozen=True)
class Options:
    margin: float = 1.0  # factor on the averaged extremes

class MeanMax:
    def __init__(self, margin):
        self.margin, self.count, self.low, self.high = margin, 0, 0.0, 0.0
    def observe(self, values, /):
        self.count += 1
        self.low += float(values.min())
        self.high += float(values.max())
    def end_pass(self):
        return False
    def merge(self, other, /):
        self.count += other.count
        self.low, self.high = self.low + other.low, self.high + other.high
    def result(self):
        factor = self.margin / self.count
        return Range(low=min(self.low * factor, 0.0), high=max(self.high * factor, 0.0))

@hookimpl
def ptq_calibrators():
    yield CalibratorEntry(name="MEAN_MAX", summary="mean of the samples' extremes",
                          factory=lambda tensor, o: MeanMax(o.margin), options=Options)
'''

TARGET = """
from pathlib import Path
from ptq_core.api import hookimpl, target_from_toml

@hookimpl
def ptq_targets():
    yield target_from_toml(Path(__file__).with_name("my_npu.toml"))
"""

MY_NPU = """
name = "MY_NPU"
summary = "an accelerator that takes symmetric int8 convolutions, and adds in float"
activation = { dtype = "int8", symmetric = true, narrow_range = true }
weight = { dtype = "int8", symmetric = true, narrow_range = true }
bias = "float"

[operators.Conv]
quantize = "always"
per_channel = true
output = "as_needed"
fuse = ["Relu", "Clip"]

[operators.Gemm]
quantize = "never"
reason = "MY_NPU leaves classifiers to the host"
"""


def _config(folder: Path, full: str, more: str = "") -> Path:
    path = folder / "job.cfg"
    path.write_text(
        f"""
[common_quant_param]
quant_type = FULL_QUANT
[data_preprocess_param]
calibrate_path = image:{DIGITS / "calib"}
calibrate_size = 20
input_type = IMAGE
image_to_format = RGB
normalize_mean = [127.5, 127.5, 127.5]
normalize_std = [127.5, 127.5, 127.5]
resize_width = 32
resize_height = 32
resize_method = LINEAR
[full_quant_param]
bias_correction = false
{full}
{more}
""",
        encoding="utf-8",
    )
    return path


def _quantize(site: Any, config: Path, output: Path) -> dict[str, Any]:
    done = site.run(
        "-m", "ptq_core", "quantize", str(DIGITS / "digits.onnx"),
        "-c", str(config), "-o", str(output), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_calibrator_is_thirty_lines() -> None:
    assert len(CALIBRATOR.splitlines()) <= 30


def test_installed_calibrator_is_selected_by_name(site: Any, tmp_path: Path) -> None:
    site.install("ptq-mean-max", CALIBRATOR)
    output = tmp_path / "out.onnx"
    report = _quantize(
        site,
        _config(tmp_path, "activation_quant_method = mean_max"),
        output,
    )
    assert report["passed"]
    assert report["verification"]["outputs"][0]["cosine"] > 0.99
    made_by = {prop.key: prop.value for prop in onnx.load(output).metadata_props}
    assert "ptq-mean-max==1.0" in made_by["ptq.plugins"]


def test_its_options_change_the_result(site: Any, tmp_path: Path) -> None:
    site.install("ptq-mean-max", CALIBRATOR)
    scales = []
    for margin in (1.0, 2.0):
        output = tmp_path / f"{margin}.onnx"
        config = _config(
            tmp_path,
            "activation_quant_method = MEAN_MAX",
            f"[calibrator.MEAN_MAX]\nmargin = {margin}",
        )
        _quantize(site, config, output)
        scales.append(_scale(output, "block1/project/"))
    assert scales[1] == pytest.approx(2 * scales[0], rel=1e-5)


def test_a_qualified_name_is_one_plugin_s_even_for_max_min(site: Any, tmp_path: Path) -> None:
    """Graph inputs and outputs take MAX_MIN, too: from the plugin that the user named."""
    site.install("ptq-rival", CALIBRATOR.replace("MEAN_MAX", "MAX_MIN"))
    for plugin in ("ptq-rival", "ptq-calibrator-max-min"):
        output = tmp_path / f"{plugin}.onnx"
        _quantize(site, _config(tmp_path, f"activation_quant_method = {plugin}:MAX_MIN"), output)
        made_by = {prop.key: prop.value for prop in onnx.load(output).metadata_props}
        used = [name for name in ("rival", "max-min") if name in made_by["ptq.plugins"]]
        assert used == [plugin.removeprefix("ptq-").removeprefix("calibrator-")]


def _scale(path: Path, near: str) -> float:
    """The scale of the first activation whose name begins so."""
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name.startswith(near) and tensor.name.endswith("_scale") and not tensor.dims:
            return float(onnx.numpy_helper.to_array(tensor))
    raise AssertionError(f"no activation of {near}")


def test_wrong_options_are_located(site: Any, tmp_path: Path) -> None:
    site.install("ptq-mean-max", CALIBRATOR)
    config = _config(
        tmp_path, "activation_quant_method = MEAN_MAX", "[calibrator.MEAN_MAX]\nmargn = 2"
    )
    done = site.run(
        "-m", "ptq_core", "quantize", str(DIGITS / "digits.onnx"),
        "-c", str(config), "-o", str(tmp_path / "out.onnx"),
    )  # fmt: skip
    line = config.read_text(encoding="utf-8").splitlines().index("margn = 2") + 1
    assert done.returncode == 2
    assert f"job.cfg:{line}" in done.stderr
    assert "did you mean 'margin'?" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def _check_my_npu(report: dict[str, Any], path: Path) -> None:
    assert report["target"] == "MY_NPU"
    graph = onnx.load(path).graph
    made: dict[str, onnx.NodeProto] = {out: node for node in graph.node for out in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 10
    for node in convolutions:
        assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert node.input[2] not in made  # the bias is a float constant
    (gemm,) = [node for node in graph.node if node.op_type == "Gemm"]
    assert not any(name in made and made[name].op_type == "DequantizeLinear" for name in gemm.input)
    assert "MY_NPU leaves classifiers to the host" in json.dumps(report)


def _installed(site: Any) -> str:
    module = site.install("ptq-target-my-npu", TARGET)
    (site.folder / f"{module}.py").with_name("my_npu.toml").write_text(MY_NPU, encoding="utf-8")
    return "MY_NPU"


def _beside_the_config(site: Any) -> str:
    (site.folder.parent / "my_npu.toml").write_text(MY_NPU, encoding="utf-8")
    return "./my_npu.toml"


@pytest.mark.parametrize("provide", [_installed, _beside_the_config])
def test_target_in_toml(site: Any, tmp_path: Path, provide: Callable[[Any], str]) -> None:
    device = provide(site)
    output = tmp_path / "out.onnx"
    report = _quantize(site, _config(tmp_path, f"target_device = {device}"), output)
    _check_my_npu(report, output)
