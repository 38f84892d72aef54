"""``ptq config new`` and ``ptq config check``."""

from __future__ import annotations

import json
import tomllib

import pytest

from ptq_core.cli import main
from ptq_core.config import TEMPLATES

FULL = (
    "[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]\n[data_preprocess_param]\n"
    "calibrate_path=x:no/such\ncalibrate_size=200\ninput_type=NPY\n"
)


@pytest.fixture
def check(tmp_path, capsys):
    """Checks a config of this text and returns the exit code and both streams."""

    def run(text: str, *flags: str):
        path = tmp_path / "c.cfg"
        path.write_text(text)
        code = main(["config", "check", str(path), *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("suffix", [".cfg", ".toml"])
def test_templates_check_out(tmp_path, capsys, name, suffix):
    path = tmp_path / f"job{suffix}"
    assert main(["config", "new", name, "-o", str(path)]) == 0
    assert f"wrote {path}\n" == capsys.readouterr().out
    assert main(["config", "check", str(path)]) == 0, capsys.readouterr().err
    assert "no problems found" in capsys.readouterr().out


def test_template_on_stdout(capsys):
    assert main(["config", "new", "full_quant", "--format", "toml", "--target", "CPU"]) == 0
    found = tomllib.loads(capsys.readouterr().out)
    assert found["full_quant_param"]["target_device"] == "CPU"


def test_existing_file_is_kept_unless_forced(tmp_path, capsys):
    path = tmp_path / "job.cfg"
    path.write_text("mine")
    assert main(["config", "new", "full_quant", "-o", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert main(["config", "new", "full_quant", "-o", str(path), "--force"]) == 0
    assert "quant_type=FULL_QUANT" in path.read_text()


def test_format_has_to_go_with_the_suffix(tmp_path, capsys):
    path = tmp_path / "job.cfg"
    assert main(["config", "new", "full_quant", "-o", str(path), "--format", "toml"]) == 2
    assert "read as ini" in capsys.readouterr().err
    assert not path.exists()


def test_unknown_template(capsys):
    assert main(["config", "new", "full_quants"]) == 2
    assert "did you mean 'full_quant'?" in capsys.readouterr().err


def test_folder_for_a_template_is_missing(tmp_path, capsys):
    path = tmp_path / "no" / "job.cfg"
    assert main(["config", "new", "full_quant", "-o", str(path)]) == 2
    assert f"{path}: cannot be written" in capsys.readouterr().err


def test_good_config_with_a_folder_to_come(check):
    code, out, _ = check(FULL)
    assert code == 0
    assert "FULL_QUANT for CPU, no problems found" in out
    assert "the folder for 'x' is not there" in out


def test_problems_of_syntax_are_told_with_their_lines(check):
    code, _, err = check(FULL.replace("FULL_QUANT", "HALF_QUANT").replace("=200", "=0"))
    assert code == 2
    assert "c.cfg:2" in err
    assert "c.cfg:6" in err


def test_plugins_have_to_be_there(check):
    full = "[full_quant_param]\nactivation_quant_method=MAXMIN\ntarget_device=CPUU\n"
    text = FULL.replace("[full_quant_param]\n", full).replace("=NPY", "=NPYY")
    code, _, err = check(text + "[runner]\nname=onnxruntim\n")
    assert code == 2
    for line, name in ((4, "MAX_MIN"), (5, "CPU"), (9, "NPY"), (11, "onnxruntime")):
        assert f"c.cfg:{line}" in err
        assert f"did you mean '{name}'?" in err


def test_options_of_plugins_are_checked(check):
    code, _, err = check(FULL + "[runner]\nname=onnxruntime\n[runner.onnxruntime]\nthreds=2\n")
    assert code == 2
    assert "c.cfg:11" in err
    assert "did you mean 'threads'?" in err


def test_warnings_and_notes_in_json(check):
    text = FULL.replace("FULL_QUANT\n", "FULL_QUANT\nenable_encode=true\n", 1)
    code, out, _ = check(text + "[calibrator.KL]\nbins=3\n", "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 0
    assert any("enable_encode" in text for text in found["warnings"])
    assert any("[calibrator.kl] has no effect" in text.casefold() for text in found["warnings"])
    assert any("not there" in text for text in found["notes"])


def test_errors_in_json(check):
    code, out, _ = check(FULL.replace("=200", "=0"), "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 2
    (problem,) = found["error"]["problems"]
    assert problem["line"] == 6
