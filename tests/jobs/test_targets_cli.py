"""``ptq targets``: what there is, a new one, and whether one is sound."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli

from ptq_core.jobs import arithmetic_problems, data_problems
from ptq_core.plugins import discover
from ptq_core.target_text import new_target, target_to_toml
from ptq_core.target_types import FixedOutput, OperatorRule, TargetEntry, TargetSpec
from ptq_core.targets import target_from_toml
from ptq_core.types import QScheme
from tests.command_line import Ptq

OURS = ("ASCEND", "CPU", "DSP", "NVGPU")


def ours(name: str) -> TargetEntry:
    return discover().target(name).entry


# ------------------------------------------------------------------------------------- as data


@pytest.mark.parametrize("name", OURS)
def test_a_device_written_as_toml_is_the_same_data(name: str, tmp_path: Path) -> None:
    entry = ours(name)
    path = tmp_path / "device.toml"
    path.write_text(target_to_toml(entry), encoding="utf-8")
    found = target_from_toml(path)
    assert found.spec == entry.spec
    assert (found.name, found.summary, found.aliases) == (entry.name, entry.summary, entry.aliases)


def test_text_with_quotes_and_backslashes_survives(tmp_path: Path) -> None:
    entry = ours("CPU")
    entry = replace(entry, name="X", aliases=(), summary='a "device" \\ with\ttabs and µ')
    path = tmp_path / "device.toml"
    path.write_text(target_to_toml(entry), encoding="utf-8")
    assert target_from_toml(path).summary == entry.summary


# ----------------------------------------------------------------------------------- list and show


def test_list_tells_every_device(ptq: Ptq) -> None:
    done = ptq("targets", "list", "--json")
    found = json.loads(done.out)["targets"]
    assert [one["name"] for one in found] == list(OURS)
    assert {one["plugin"] for one in found} >= {"ptq-target-cpu", "ptq-target-nvgpu"}
    table = ptq("targets", "list").out
    assert all(name in table for name in OURS)


@pytest.mark.parametrize("name", OURS)
def test_show_tells_every_operator_and_rule(ptq: Ptq, name: str) -> None:
    entry = ours(name)
    done = ptq("targets", "show", name.lower())
    assert done.code == 0
    for word in (*entry.spec.operators, *entry.spec.checks):
        assert word in done.out
    found = json.loads(ptq("targets", "show", name, "--json").out)
    assert found["spec"]["activation"]["dtype"] == entry.spec.activation.dtype
    assert set(found["spec"]["operators"]) == set(entry.spec.operators)


def test_show_of_an_unknown_device_suggests(ptq: Ptq) -> None:
    done = ptq("targets", "show", "NVGPUS")
    assert done.code == 2
    assert "did you mean 'NVGPU'?" in done.err


# --------------------------------------------------------------------------------------------- new


def test_a_new_device_is_sound_as_it_is(ptq: Ptq, tmp_path: Path) -> None:
    path = tmp_path / "my_npu.toml"
    assert ptq("targets", "new", "MY_NPU", "-o", path).code == 0
    done = ptq("targets", "check", path)
    assert done.code == 0, done.err
    assert "MY_NPU: no problems found" in done.out


def test_a_device_made_from_another_has_its_data(ptq: Ptq, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert ptq("targets", "new", "MINE", "--from", "NVGPU", "-o", path).code == 0
    assert target_from_toml(path).spec == ours("NVGPU").spec
    assert target_from_toml(path).name == "MINE"


def test_what_only_code_can_say_is_not_taken_over(ptq: Ptq, tmp_path: Path) -> None:
    done = ptq("targets", "new", "MINE", "--from", "NVGPU", "-o", tmp_path / "mine.toml")
    assert "note: only data is taken over. NVGPU also keeps nodes in float" in done.out
    done = ptq("targets", "new", "MINE", "-o", tmp_path / "new.toml")
    assert "note:" not in done.out


def test_a_package_offers_the_device(ptq: Ptq, site, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    done = ptq("targets", "new", "MY-Npu_2", "--package", "-o", folder)
    assert done.code == 0, done.err
    assert f"next: pip install -e {folder}, then ptq targets check MY-Npu_2" in done.out
    project = tomli.loads((folder / "pyproject.toml").read_text())
    ((point, module),) = project["project"]["entry-points"]["ptq"].items()
    (packaged,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (folder / packaged / "__init__.py").exists()
    site.install(project["project"]["name"], "", points=f"{point} = {module}")
    shutil.copytree(folder / packaged, site.folder / module)
    done = ptq("targets", "check", "my-npu_2")
    assert done.code == 0, done.err
    assert "MY-Npu_2: no problems found" in done.out


def test_files_that_are_there_stay(ptq: Ptq, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    done = ptq("targets", "new", "MINE", "-o", path)
    assert done.code == 2
    assert "there is such a file" in done.err
    assert path.read_text() == "mine"
    assert ptq("targets", "new", "MINE", "-o", path, "--force").code == 0
    assert target_from_toml(path).name == "MINE"


@pytest.mark.parametrize("name", ["a b", "1X", "x:y", "../x", "", "X-", "X_"])
def test_a_name_has_to_be_a_word(ptq: Ptq, name: str) -> None:
    done = ptq("targets", "new", name)
    assert done.code == 2
    assert "is no name for a device" in done.err


# ------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize("name", OURS)
def test_ours_are_sound(ptq: Ptq, name: str) -> None:
    done = ptq("targets", "check", name, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["target"] == name


def checked(**changed: object) -> list[str]:
    spec = TargetSpec(
        activation=QScheme(dtype="int8"),
        weight=QScheme(dtype="int8", symmetric=True),
        operators={"Conv": OperatorRule(quantize="always")},
    )
    entry = TargetEntry(name="X", summary="x", spec=replace(spec, **changed))  # type: ignore[arg-type]
    return [str(one) for one in data_problems(entry)]


def rule(**given: object) -> OperatorRule:
    return OperatorRule(**{"quantize": "always", **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operators", "text"),
    [
        ({"Convv": rule()}, "Convv: is no operator of ONNX\n  hint: did you mean 'Conv'?"),
        ({"Conv": rule(attributes={"padz": (0,)})}, "operators.Conv: attributes: it has no 'padz'"),
        ({"Conv": rule(fuse=("Tanh",))}, "'Tanh' is not merged\n  hint: there are: Clip, Relu"),
        ({"Conv": rule(two_activations=True)}, "two_activations has no effect: it is for MatMul"),
        ({"Conv": rule(quantize="residual")}, 'quantize = "residual" has no effect: it is for Add'),
        ({"Relu": rule(per_channel=True)}, "per_channel has no effect: it has no weights"),
        (
            {"Relu": rule(same_parameters=True, fixed_output=FixedOutput(scale=1, zero_point=0))},
            "same_parameters and fixed_output contradict each other",
        ),
        (
            {"Sigmoid": rule(fixed_output=FixedOutput(scale=0.01, zero_point=200))},
            "scale 0.01, zero point 200; expected a positive scale and -128 to 127",
        ),
    ],
)  # fmt: skip
def test_a_rule_without_sense_is_told(operators: dict[str, OperatorRule], text: str) -> None:
    found = checked(operators={"Gemm": OperatorRule(quantize="always"), **operators})
    assert len(found) == 1
    assert text in found[0]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"operators": {}}, "no layer with weights (Conv, ConvTranspose, Gemm, MatMul) has"),
        ({"maximum_opset": 11}, "minimum_opset is 13, maximum_opset 11: no model fits"),
        (
            {"merge": ("Gelu",), "maximum_opset": 19},
            "merge: Gelu is an operator of opset 20, and maximum_opset is 19",
        ),
        ({"activation": QScheme(dtype="uint16")}, "uint16 needs opset 21, and minimum_opset is 13"),
    ],
)  # fmt: skip
def test_data_without_sense_is_told(changed: dict[str, object], text: str) -> None:
    found = checked(**changed)
    assert len(found) == 1
    assert text in found[0]


def test_check_tells_all_problems_at_once(ptq: Ptq, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    text = new_target("X").replace("[operators.Conv]", "[operators.Convv]")
    path.write_text(text.replace("[operators.Gemm]", "[operators.Gemn]"))
    done = ptq("targets", "check", path)
    assert done.code == 2
    assert "operators.Convv" in done.err
    assert "operators.Gemn" in done.err
    assert str(path) in done.err


def test_a_result_far_from_the_float_one_is_told(ptq: Ptq, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    wrong = 'quantize = "after"\nfixed_output = { scale = 1000.0, zero_point = 0 }\n'
    text = new_target("X").replace('quantize = "after"\n', wrong)
    assert text != new_target("X")
    path.write_text(text)
    done = ptq("targets", "check", path)
    assert done.code == 2
    assert "the trial's result is far from its float form" in done.err


class Off:
    """Rounds down, and multiplies twice."""

    def quantize(self, values, scale, zero_point, low, high, /):
        codes = np.clip(np.floor(values / scale) + zero_point - 3, low, high)
        return codes.astype(np.int32)

    def requantize(self, sums, input_scale, weight_scale, scale, zero_point, low, high, /):
        return np.zeros(sums.shape, np.int32)

    def dequantize(self, sums, input_scale, weight_scale, /):
        return sums * input_scale * weight_scale * 2


def test_arithmetic_off_its_definition_is_told() -> None:
    record = discover().target("CPU").record
    found = [one.message for one in arithmetic_problems(Off(), record)]
    assert [text.split(":")[0] for text in found] == [
        "arithmetic.quantize", "arithmetic.requantize", "arithmetic.dequantize",
    ]  # fmt: skip


# ------------------------------------------------------------------- a fifth one, as strangers ship


FIFTH = """
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ptq_core.api import ExtraFile, Finding, hookimpl, target_from_toml


@dataclass(frozen=True)
class Options:
    bias: Literal["int32", "float"] = "int32"  # how the board takes biases


def keep_float(facts):
    return "the board starts with floats" if facts.reads_graph_input else None


def lower(model, deployment):
    return [ExtraFile(name=f"{deployment.name}.board", content=b"%d" % len(model), summary="size")]


def check(model):
    yield Finding(code="BOARD-1", severity="warning", message="a board", because="so", fix="")


@hookimpl
def ptq_targets():
    data = target_from_toml(Path(__file__).with_name("board.toml"))
    yield replace(data, options=Options, configure=lambda spec, o: replace(spec, bias=o.bias),
                  keep_float=keep_float, lower=lower, check=check)
"""


def test_a_fifth_device_needs_nothing_of_core(site, tmp_path: Path) -> None:
    module = site.install("ptq-target-board", FIFTH)
    (site.folder / f"{module}.py").with_name("board.toml").write_text(new_target("BOARD"))
    digits = Path(__file__).parents[2] / "examples" / "digits"
    config = tmp_path / "job.toml"
    config.write_text(
        f"""
[common_quant_param]
quant_type = "FULL_QUANT"
[full_quant_param]
target_device = "board"
bias_correction = false
[target.BOARD]
bias = "float"
[data_preprocess_param]
calibrate_path = "image:{digits / "calib"}"
calibrate_size = 20
input_type = "IMAGE"
image_to_format = "RGB"
normalize_mean = [127.5, 127.5, 127.5]
normalize_std = [127.5, 127.5, 127.5]
resize_width = 32
resize_height = 32
resize_method = "LINEAR"
""",
        encoding="utf-8",
    )
    out = tmp_path / "out.onnx"
    done = site.run(
        "-m", "ptq_core", "quantize", str(digits / "digits.onnx"), "-c", str(config),
        "-o", str(out), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["extras"] == {str(tmp_path / "out.board"): "size"}
    assert int((tmp_path / "out.board").read_bytes()) > 10_000
    assert [one["code"] for one in report["findings"]] == ["BOARD-1"]
    reasons = {one["name"]: one["reason"] for one in report["float_operators"]}
    assert reasons["stem/conv"] == "the board starts with floats"
    biases = [name for name in _quantized_names(out) if "bias_quantized" in name]
    assert biases == []  # the option's doing: they are float


def _quantized_names(path: Path) -> list[str]:
    import onnx

    return [one.name for one in onnx.load(path).graph.initializer]
