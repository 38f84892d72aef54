"""``ptq plugins list`` and ``ptq plugins show``."""

from __future__ import annotations

import json

import pytest

from ptq_core.cli import main

CALIBRATOR = '''
from dataclasses import dataclass, field
from typing import Literal
from ptq_core.api import CalibratorEntry, hookimpl

@dataclass(frozen=True, kw_only=True)
class Options:
    """Keys.

    Attributes:
        bins: how many,
            as a whole number.
        mode: fast [or] slow.

    Raises:
        ValueError: never.
    """

    bins: int = 128
    mode: Literal["fast", "slow"] | None = None
    names: tuple[str, ...] = field(default_factory=tuple)
    bare: float

@hookimpl
def ptq_calibrators():
    yield CalibratorEntry(name="[bold]X", summary="a [red]name[/red] with :smile:",
                          factory=lambda t, o: None, options=Options, aliases=("EX",))
'''


def test_list_names_everything(capsys):
    assert main(["plugins", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (cpu,) = [line for line in lines if line.startswith("ptq-target-cpu ")]
    assert cpu.split() == ["ptq-target-cpu", "0.1.0", "active", "target", "CPU"]
    assert any(line.startswith("ptq-core (arrays)") for line in lines)


@pytest.mark.parametrize("name", ["ptq-x", "PTQ_X", "ex", "[bold]x"])
def test_show_finds_plugins_and_what_they_offer(site, capsys, name):
    site.install("ptq-x", CALIBRATOR)
    assert main(["plugins", "show", name]) == 0
    out = capsys.readouterr().out
    assert "calibrator [bold]X (also EX): a [red]name[/red] with :smile:" in out
    assert "bins: int = 128" in out
    assert "how many, as a whole number." in out
    assert "mode: fast | slow = not set" in out
    assert "fast [or] slow." in out


def test_show_in_json(site, capsys):
    site.install("ptq-x", CALIBRATOR)
    assert main(["plugins", "show", "ptq-x", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["plugins"]
    assert found["state"] == "active"
    assert found["api_version"] == [1, 0]
    (offer,) = found["offers"]
    assert offer["kind"] == "calibrator"
    options = {one["name"]: one for one in offer["options"]}
    assert options["bins"] == {
        "name": "bins",
        "type": "int",
        "default": "128",
        "doc": "how many, as a whole number.",
    }
    assert options["names"]["default"] == "()"
    assert options["bare"]["default"] == "required"


def test_show_says_why_a_plugin_is_broken(site, capsys):
    site.install("ptq-x", "raise RuntimeError('no [licence]')")
    assert main(["plugins", "show", "ptq-x"]) == 0
    out = capsys.readouterr().out
    assert "state     broken" in out
    assert "RuntimeError: no [licence]" in out


def test_show_unknown(capsys):
    assert main(["plugins", "show", "ptq-target-cpuu"]) == 2
    assert "did you mean 'ptq-target-cpu'?" in capsys.readouterr().err
