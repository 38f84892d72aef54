"""``ptq check``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from ptq_core.checks import CODES
from ptq_core.cli import main
from tests import tiny_models as tiny
from tests.conftest import Site
from tests.unit.checks import broken_models as broken
from tests.unit.checks.broken_models import Net


def save(made: onnx.ModelProto, folder: Path) -> str:
    return str(tiny.save(made, folder))


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    code = main(["check", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


def test_findings_are_grouped_errors_first(tmp_path: Path, capsys: Any) -> None:
    net = Net()
    for index in range(7):
        net.add("Relu", net.pair("x", f"x{index}", **broken.S8), f"relu{index}")
    net.add("Relu", net.pair("x", "wrong", 0.0, 0), "last")
    path = save(net.model("last_out"), tmp_path)
    code, out, _ = run(capsys, path, "--target", "NVGPU")
    assert code == 1
    lines = out.splitlines()
    headings = [line for line in lines if line.startswith(("error ", "warning "))]
    assert headings == [
        f"error A-DTYPE: {CODES['A-DTYPE'].title}",
        f"error Q-SCALE-NONPOS: {CODES['Q-SCALE-NONPOS'].title} (2 times)",
        f"error Q-ZP-NONZERO: {CODES['Q-ZP-NONZERO'].title}",
    ]
    assert "  node 'wrong_q', tensor 'wrong_q_out': the codes are uint8, expected" in out
    assert lines[-1] == "4 errors, 0 warnings for NVGPU: 8 quantized operators checked"


def test_only_the_first_places_are_shown(tmp_path: Path, capsys: Any) -> None:
    net = Net()
    for index in range(7):
        net.pair("x", f"x{index}", 0.02, 3, "int8")
    path = save(net.model("x0_dq_out"), tmp_path)
    _, out, _ = run(capsys, path, "--target", "NVGPU")
    assert out.count("the zero point is 3, expected 0 for int8") == 5
    assert "  and 2 more (-v shows all)" in out
    _, out, _ = run(capsys, path, "--target", "NVGPU", "-v")
    assert out.count("the zero point is 3, expected 0 for int8") == 7
    _, out, _ = run(capsys, path, "--target", "NVGPU", "--json")
    report = json.loads(out)
    assert len(report["findings"]) == 7
    assert report["counts"] == {"error": 7, "warning": 0}
    assert report["exit_code"] == 1
    first = report["findings"][0]
    assert set(first) == {"code", "severity", "node", "tensor", "message", "because", "fix"}


def test_warnings_count_where_asked(tmp_path: Path, capsys: Any) -> None:
    path = save(broken.range_beyond_relu(True), tmp_path)
    code, out, _ = run(capsys, path)
    assert code == 0
    assert out.splitlines()[-1] == "0 errors, 1 warning for CPU: 1 quantized operator checked"
    assert run(capsys, path, "--strict")[0] == 1
    assert json.loads(run(capsys, path, "--strict", "--json")[1])["exit_code"] == 1


def test_clean(tmp_path: Path, capsys: Any) -> None:
    path = save(broken.range_beyond_relu(False), tmp_path)
    before = Path(path).read_bytes()
    code, out, err = run(capsys, path, "--target", "cpu", "--strict")
    assert (code, out, err) == (0, "clean for CPU: 1 quantized operator checked\n", "")
    assert Path(path).read_bytes() == before


def test_a_float_model_is_told(tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, save(tiny.gemm(), tmp_path))
    assert code == 0
    assert out.splitlines() == [
        "clean for CPU: 0 quantized operators checked",
        "nothing computes with integers: only weights are quantized, or nothing is",
    ]


def test_target_from_a_file(tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "npu.toml"
    target.write_text(
        """
name = "NPU"
summary = "ours"
activation = { dtype = "uint8" }
weight = { dtype = "int8", symmetric = true }
[operators]
[accepts.forbidden]
Relu = "it has none"
[checks."X-OP-FORBIDDEN"]
severity = "warning"
because = "it is left out"
""",
        encoding="utf-8",
    )
    path = save(tiny.gemm(), tmp_path)
    code, out, _ = run(capsys, path, "--target", str(target))
    assert code == 0
    assert "  node 'relu': found Relu: it has none\n  because: it is left out\n" in out
    target.write_text(target.read_text(encoding="utf-8").replace("X-OP-F", "X-OP-G"))
    code, _, err = run(capsys, path, "--target", str(target))
    assert code == 2
    assert "no code 'X-OP-GORBIDDEN'" in err
    assert "did you mean 'X-OP-FORBIDDEN'?" in err


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code: str, capsys: Any) -> None:
    status, out, _ = run(capsys, "--explain", code.lower())
    assert status == 0
    assert out.startswith(f"{code}: {CODES[code].title}\n{CODES[code].explanation}\n")
    assert out.endswith(f"fix: {CODES[code].fix}\n")


def test_explanations_name_targets(capsys: Any) -> None:
    _, out, _ = run(capsys, "--explain", "O-Q-BEFORE-RELU", "--json")
    told = json.loads(out)
    assert told["code"] == "O-Q-BEFORE-ACT"
    assert {"CPU", "NVGPU"} <= {one["target"] for one in told["targets"]}
    _, out, _ = run(capsys, "--explain", "W-ASYM-PER-CHANNEL")
    assert "\nerror on DSP: " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a MODEL or --explain CODE"),
        (["model.onnx", "--explain", "W-ASYM"], "expected either a MODEL or --explain CODE"),
        (["--explain", "W-ASYMM"], "did you mean 'W-ASYM'"),
        (["--explain", "nothing"], "there are: X-OPSET, X-DOMAIN"),
        (["nowhere.onnx"], "there is no such file"),
        (["nowhere.onnx", "--target", "TPU"], "no target named 'TPU'"),
        (["nowhere.onnx", "--target", "nowhere.toml"], "cannot be read"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: Any) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_target_that_fails_is_blamed(site: Site, tmp_path: Path, capsys: Any) -> None:
    site.install(
        "ptq-broken-check",
        """
        from ptq_core.api import QScheme, TargetEntry, TargetSpec, hookimpl

        def check(model):
            raise RuntimeError("out of luck")

        @hookimpl
        def ptq_targets():
            spec = TargetSpec(activation=QScheme(), weight=QScheme(), operators={})
            yield TargetEntry(name="UNLUCKY", summary="fails", spec=spec, check=check)
        """,
    )
    code, _, err = run(capsys, save(tiny.gemm(), tmp_path), "--target", "UNLUCKY")
    assert code == 3
    assert "ptq-broken-check" in err
    assert "checking the model" in err
    assert "out of luck" in err
