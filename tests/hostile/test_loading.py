"""What a plugin does while it is loaded stays its own affair: output, exits, names of others."""

from __future__ import annotations

import sys

import pytest

from ptq_core.api import API_VERSION
from ptq_core.errors import InputError
from ptq_core.plugins import PluginHost, State, discover

MAJOR, MINOR = API_VERSION
API = """
from dataclasses import dataclass
from ptq_core.api import *

def entry(name="BAD", **more):
    more.setdefault("factory", print)
    return CalibratorEntry(name=name, summary="does no good", **more)
"""


def assert_good_is_unharmed(site, host: PluginHost) -> None:
    assert site.record(host, "ptq-good").state is State.ACTIVE
    assert host.calibrator("good").qualified == "ptq-good:GOOD"


@pytest.mark.parametrize("point", ["main = {module}:plugin", "main = ptq_no_such_module"])
def test_entry_point_that_names_nothing(site, point):
    site.install("ptq-bad", "x = 1", points=point)

    host = discover()

    bad = site.record(host, "ptq-bad")
    assert bad.state is State.BROKEN
    assert bad.error in {
        "AttributeError: module 'ptq_bad' has no attribute 'plugin'",
        "ModuleNotFoundError: No module named 'ptq_no_such_module'",
    }
    assert_good_is_unharmed(site, host)


def test_exception_is_kept_with_its_traceback(site):
    site.install("ptq-bad", "\n\n1 / 0")

    bad = site.record(discover(), "ptq-bad")

    assert isinstance(bad.exception, ZeroDivisionError)
    innermost = bad.exception.__traceback__
    while innermost.tb_next:
        innermost = innermost.tb_next
    assert (innermost.tb_frame.f_globals["__name__"], innermost.tb_lineno) == ("ptq_bad", 3)


@pytest.mark.parametrize(
    "source",
    ["raise KeyboardInterrupt", API + "@hookimpl\ndef ptq_calibrators(): raise KeyboardInterrupt"],
)
def test_the_users_interrupt_is_not_swallowed(site, source):
    site.install("ptq-bad", source)

    with pytest.raises(KeyboardInterrupt):
        discover()


def test_version_is_read_from_the_module_behind_an_object(site):
    source = f"ptq_api_version = ({MAJOR + 1}, 0)\nclass Plugin: pass\nplugin = Plugin()"
    site.install("ptq-bad", source, points="main = {module}:plugin")

    bad = site.record(discover(), "ptq-bad")

    assert (bad.state, bad.api_version) == (State.INCOMPATIBLE, (MAJOR + 1, 0))


def test_hook_that_only_a_newer_host_has_may_be_marked_optional(site):
    site.install(
        "ptq-modern",
        API
        + "@hookimpl(optionalhook=True)\ndef ptq_from_the_future(): raise AssertionError\n"
        + "@hookimpl\ndef ptq_calibrators(): return [entry('MODERN')]",
    )

    host = discover()

    assert site.record(host, "ptq-modern").state is State.ACTIVE
    assert host.calibrator("modern").record.name == "ptq-modern"


def test_printing_does_not_reach_stdout(site, capsys):
    site.install(
        "ptq-chatty",
        "print('hello from import')\n"
        + API
        + "@hookimpl\ndef ptq_calibrators():\n    print('hello from hook')\n    yield entry()",
    )
    stdout = sys.stdout

    host = discover()

    assert site.record(host, "ptq-chatty").state is State.ACTIVE
    assert sys.stdout is stdout
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello from import\nhello from hook\n"


def test_second_entry_point_of_a_distribution_may_not_repeat_a_name(site):
    source = API + "@hookimpl\ndef ptq_calibrators(): return [entry('TWICE')]"
    site.install("ptq-pair", source, points="a = {module}\nb = {module}")

    host = discover()

    first, second = (one for one in host.records if one.name == "ptq-pair")
    assert (first.entry_point, first.state) == ("a", State.ACTIVE)
    assert (second.entry_point, second.state) == ("b", State.BROKEN)
    assert second.error == "ptq_calibrators() offers 'twice' twice"
    assert host.calibrator("ptq-pair:twice").record is first


def test_two_plugins_of_one_name_matter_only_to_who_uses_the_bare_name(site):
    source = API + "@hookimpl\ndef ptq_calibrators(): return [entry('SAME')]"
    site.install("ptq-b", source, version="2.0")
    site.install("ptq-a", source)

    host = discover()

    assert_good_is_unharmed(site, host)
    assert {site.record(host, name).state for name in ("ptq-a", "ptq-b")} == {State.ACTIVE}
    with pytest.raises(InputError) as caught:
        host.calibrator("same")
    assert str(caught.value) == (
        "calibrator 'same' is offered by 2 plugins: 'ptq-a' 1.0 and 'ptq-b' 2.0\n"
        "  hint: write 'ptq-a:SAME' or 'ptq-b:SAME'"
    )
    assert host.calibrator("ptq-b:SAME").record.version == "2.0"


def test_a_plugin_cannot_take_the_place_of_a_built_in(site):
    site.install(
        "ptq-shadow",
        API
        + "@hookimpl\ndef ptq_preprocessors():\n    yield PreprocessorEntry("
        + "name='NPY', summary='mine', factory=print, suffixes=('.npy',))",
    )

    host = discover()

    with pytest.raises(InputError, match=r"offered by 2 plugins: 'ptq-core' .* 'ptq-shadow' 1.0"):
        host.preprocessor("NPY")
    assert host.preprocessor("ptq-core:NPY").record.built_in
    assert not host.preprocessor("ptq-shadow:NPY").record.built_in
    assert discover(disabled=["ptq-shadow"]).preprocessor("NPY").record.built_in
