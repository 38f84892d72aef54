"""Targets whose functions raise, or give what nobody expects: blamed by name, exit code 3."""

from __future__ import annotations

import pytest

from ptq_core.cli import main
from ptq_core.target_text import new_target

BOARD = """
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ptq_core.api import ExtraFile, Finding, hookimpl, target_from_toml


@dataclass(frozen=True)
class Options:
    bias: str = "int32"


def fail(*arguments):
    raise RuntimeError("boom")


def fail_late(*arguments):
    yield from ()
    raise RuntimeError("boom")


def file(**changed):
    return ExtraFile(**{{"name": "x", "content": b"", "summary": "s", **changed}})


def finding(**changed):
    texts = {{"code": "B-1", "severity": "error", "message": "m", "because": "b", "fix": "f"}}
    return Finding(**{{**texts, **changed}})


class Board:
    def quantize(self, values, *rest):
        return [1]


class Words:
    def quantize(self, values, scale, zero_point, low, high):
        return np.clip(np.rint(values / scale) + zero_point, low, high).astype(np.int32)

    def requantize(self, sums, *rest):
        return np.zeros(sums.shape, np.int32)

    def dequantize(self, sums, *rest):
        return np.full(sums.shape, "x")


@hookimpl
def ptq_targets():
    data = target_from_toml(Path(__file__).with_name("board.toml"))
    spec = data.spec
    yield replace(data, {change})
"""

FUNCTIONS = {
    "keep_float=fail": "failed while asking BOARD about a Conv: RuntimeError: boom",
    "keep_float=lambda facts: True": "keep_float gave True for a Conv, expected a reason as text",
    "keep_float=lambda facts: ''": "keep_float gave '' for a Conv, expected a reason",
    "lower=fail_late": "failed while making the files for BOARD: RuntimeError: boom",
    "lower=lambda *a: None": "failed while making the files for BOARD: TypeError",
    "lower=lambda *a: ['x']": "lower gave 'x', expected an ExtraFile",
    "lower=lambda *a: [file(name=None)]": "lower gave a file called None, expected a name",
    "lower=lambda *a: [file(name='../x')]": "lower gave a file called '../x'",
    "lower=lambda *a: [file(name='..')]": "lower gave a file called '..'",
    "lower=lambda *a: [file(name='')]": "lower gave a file called ''",
    "lower=lambda *a: [file(), file()]": "lower gave two files called 'x'",
    "lower=lambda *a: [file(content='x')]": "content and summary of str and str",
    "lower=lambda *a: [file(summary=None)]": "content and summary of bytes and NoneType",
    "lower=lambda m, d: [file(name=f'{d.name}.onnx')]": "which is the model's own",
    "lower=lambda m, d: [file(name=f'{d.name}.onnx.data')]": "which is the model's own",
    "check=fail_late": "failed while checking the model for BOARD: RuntimeError: boom",
    "check=lambda model: ['x']": "check gave 'x', expected a Finding",
    "check=lambda model: [finding(severity='fatal')]": "severity is 'fatal', expected error or",
    "check=lambda model: [finding(because=3)]": "a Finding whose because is 3, expected text",
    "options=Options, configure=fail": "failed while configuring BOARD: RuntimeError: boom",
    "options=Options, configure=lambda s, o: None": "found None, expected a TargetSpec",
    "options=Options, configure=lambda s, o: replace(s, bias='x')": "bias: found 'x', expected",
    "options=Options, configure=lambda s, o: replace(s, operators={'Conv': 1})": (
        "operators.Conv: found 1, expected a OperatorRule"
    ),
    "arithmetic=fail": "failed while making the arithmetic of BOARD: RuntimeError: boom",
    "arithmetic=lambda: None": "failed while quantizing: AttributeError",
    "arithmetic=Board": "its arithmetic gave the shape (1,), expected (4096,)",
    "arithmetic=Words": "its arithmetic gave the type <U1, expected floats",
}


def install(site, change: str) -> None:
    module = site.install("ptq-target-board", BOARD.format(change=change))
    (site.folder / f"{module}.py").with_name("board.toml").write_text(new_target("BOARD"))


@pytest.mark.parametrize("change", FUNCTIONS)
def test_targets_check_blames_the_plugin(site, capsys, change: str) -> None:
    install(site, change)
    code = main(["targets", "check", "BOARD"])
    err = capsys.readouterr().err
    assert code == 3, err
    assert "plugin 'ptq-target-board' 1.0" in err
    assert FUNCTIONS[change] in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("spec=None", "spec is a NoneType, expected a TargetSpec"),
        ("spec=replace(spec, activation='int8')", "activation: found 'int8', expected a QScheme"),
        ("spec=replace(spec, checks={'A-DTYPE': 1})", "checks.A-DTYPE: found 1, expected a Check"),
        ("spec=replace(spec, maximum_opset='21')", "maximum_opset: found '21', expected a whole"),
    ],
)  # fmt: skip
def test_a_spec_of_other_types_is_not_admitted(site, capsys, change: str, reason: str) -> None:
    install(site, change)
    assert main(["targets", "check", "BOARD"]) == 2
    err = capsys.readouterr().err
    assert "plugin 'ptq-target-board' 1.0 failed to load" in err
    assert reason in err
    assert main(["targets", "list"]) == 0, "others are not concerned"


def test_a_refusal_of_lower_is_bad_input(site, capsys, tmp_path) -> None:
    """A ValueError tells what the user cannot have; it is no defect of the plugin."""
    install(site, "lower=lambda model, deployment: [int('no number')]")
    assert main(["targets", "check", "BOARD"]) == 2
    assert "no files for BOARD: invalid literal" in capsys.readouterr().err
