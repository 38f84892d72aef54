"""The command itself: help, versions, unknown words, commands of plugins, crashes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ptq_core import __version__
from ptq_core.cli import failures, main

resource = pytest.importorskip("resource", reason="needs the clock of child processes")

COMMAND = """
from ptq_core.api import CommandEntry, hookimpl

def run(arguments):
    print(list(arguments))
    return len(arguments)

@hookimpl
def ptq_commands():
    yield CommandEntry(name="flash", summary="copy it to the board", factory=lambda: run)
"""


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("quantize", "plan", "config", "plugins", "converter_lite", "130 interrupted"):
        assert name in out


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 0
    assert "quantize" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    ["quantize", "plan", "converter_lite", "config new", "config check", "plugins list"],
)
def test_every_command_has_help(capsys, command):
    assert main([*command.split(), "--help"]) == 0
    assert f"ptq {command}" in capsys.readouterr().out


def test_help_is_there_at_once():
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "ptq_core", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # of the processor, and the fastest: the machine may have other work too
    assert min(seconds() for _ in range(5)) < 0.3


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from ptq_core.cli import main; main(['--help']); "
        "print(sorted({'numpy', 'onnx', 'onnx_ir', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ptq {__version__}\n"


def test_unknown_command_gets_a_suggestion(capsys):
    assert main(["quantise"]) == 2
    err = capsys.readouterr().err
    assert "no command named 'quantise'" in err
    assert "did you mean 'quantize'?" in err


def test_unknown_option_is_told_as_json_too(capsys):
    assert main(["plan", "m.onnx", "--no-such", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 2
    assert "--no-such" in found["error"]["problems"][0]["message"]
    assert "ptq plan --help" in found["error"]["problems"][0]["hint"]


def test_unknown_plugin_to_leave_out(capsys):
    assert main(["--no-plugin", "ptq-target-cpuu", "plugins", "list"]) == 2
    assert "did you mean 'ptq-target-cpu'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-plugin", "ptq-target-cpu", "plugins", "list", "--json"],
        ["plugins", "list", "--json", "--no-plugin", "ptq-target-cpu"],
    ],
)
def test_plugin_is_left_out_wherever_the_option_stands(capsys, arguments):
    assert main(arguments) == 0
    states = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["plugins"]}
    assert states["ptq-target-cpu"] == "disabled"
    assert states["ptq-runner-onnxruntime"] == "active"


def test_no_plugins(capsys):
    assert main(["--no-plugins", "plugins", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["plugins"]
    assert {one["name"] for one in found if one["state"] == "active"} == {"ptq-core"}


# ------------------------------------------------------------------------- commands of plugins


def test_command_of_a_plugin_gets_all_its_words(site, capsys):
    site.install("ptq-flash", COMMAND)
    assert main(["flash", "--help", "-v", "--", "x=1"]) == 4  # it returns their number
    assert capsys.readouterr().out == "['--help', '-v', '--', 'x=1']\n"


def test_command_of_a_plugin_is_in_the_help(site, capsys):
    site.install("ptq-flash", COMMAND)
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "copy it to the board (ptq-flash)" in out[out.index("Commands of plugins:") :]


def test_stdout_belongs_to_the_command_of_a_plugin(site, capsys):
    site.install("ptq-flash", COMMAND)
    assert main(["flash", "--json"]) == 1
    assert capsys.readouterr().out == "['--json']\n"


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return 0", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('no board')", 1, "no board"),
        ("raise RuntimeError('no cable')", 3, "plugin 'ptq-flash' 1.0 failed"),
        ("return 'fine'", 3, "returned 'fine', expected its exit code"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
    ],
)
def test_exit_codes_of_commands_of_plugins(site, capsys, body, code, said):
    lines = COMMAND.replace("    print(list(arguments))\n    return len(arguments)", f"    {body}")
    site.install("ptq-flash", lines)
    assert main(["flash"]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


# ----------------------------------------------------------------------------------- crashes


def test_crash_is_a_short_message(capsys, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("by [bold]nothing")

    monkeypatch.setattr(failures, "_invoke", broken)

    assert main(["plan", "m.onnx"]) == 4
    err = capsys.readouterr().err
    assert err.startswith("internal error: ZeroDivisionError: by [bold]nothing (")
    assert "failures.py:" in err.splitlines()[0]
    assert "report" in err
    assert "Traceback" not in err


def test_crash_suggests_to_leave_plugins_out_and_shows_the_traceback_on_request(
    capsys, monkeypatch
):
    def broken(arguments, state):
        state.host  # noqa: B018 - loads the plugins
        state.verbose = 1
        raise ZeroDivisionError

    monkeypatch.setattr(failures, "_invoke", broken)

    assert main(["plan", "m.onnx"]) == 4
    err = capsys.readouterr().err
    assert "--no-plugins" in err
    assert "Traceback" in err


def test_system_errors_are_not_our_defect(capsys, tmp_path):
    (tmp_path / "there").mkdir()
    assert main(["config", "check", str(tmp_path / "there")]) == 2
    assert "internal error" not in capsys.readouterr().err
