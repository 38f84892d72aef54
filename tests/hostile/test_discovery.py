"""What is found, in which order, what switches it off, and what it costs."""

from __future__ import annotations

import importlib
import sys
import time
import zipfile

import pytest

from ptq_core.errors import InputError, PluginError
from ptq_core.plugins import BUILT_IN, State, blame, discover

SOURCE = """
from ptq_core.api import CalibratorEntry, hookimpl

@hookimpl
def ptq_calibrators():
    yield CalibratorEntry(name="{name}", summary="s", factory=print)
"""
# Import, admission and look at the metadata of everything installed, on a slow shared machine.
SECONDS_FOR_EIGHT_PLUGINS = 0.05


def strangers(host):
    return {record.name for record in host.records if not record.built_in}


def test_records_come_by_distribution_then_entry_point_after_the_built_ins(site):
    site.install("ptq-zeta", SOURCE.format(name="Z"))
    site.install("PTQ_Alpha", "import no_such", points="b = {module}\na = {module}")

    records = discover().records

    built_in = [record.module for record in records if record.built_in]
    assert built_in == [record.module for record in records[: len(built_in)]] == list(BUILT_IN)
    mine = ("PTQ_Alpha", "ptq-good", "ptq-zeta")
    assert [(one.name, one.entry_point) for one in records if one.name in mine] == [
        ("PTQ_Alpha", "a"),
        ("PTQ_Alpha", "b"),
        ("ptq-good", "main"),
        ("ptq-zeta", "main"),
    ]


def test_record_says_where_the_plugin_comes_from(site):
    module = site.install("ptq-zeta", SOURCE.format(name="Z"), version="4.5.6")

    zeta = site.record(discover(), "ptq-zeta")

    assert (zeta.version, zeta.module, zeta.api_version) == ("4.5.6", module, (1, 0))
    assert zeta.location == str(site.folder / "ptq_zeta.py")
    assert not zeta.built_in
    assert str(zeta) == "plugin 'ptq-zeta' 4.5.6"


def test_every_built_in_is_active_and_named_after_core():
    built_in = [record for record in discover(autoload=False).records if record.built_in]
    assert {record.name for record in built_in} == {"ptq-core"}
    assert [(record.state, record.error) for record in built_in] == [(State.ACTIVE, "")] * len(
        BUILT_IN
    )


def test_of_two_copies_the_first_on_the_path_counts(site, tmp_path, monkeypatch):
    site.install("ptq-twin", SOURCE.format(name="FIRST"), version="1.0")
    other = type(site)(tmp_path / "other")
    other.folder.mkdir()
    other.install("ptq.twin", "raise AssertionError", version="2.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other.folder)])

    found = [one for one in discover().records if one.name in ("ptq-twin", "ptq.twin")]

    assert [(one.version, one.state) for one in found] == [("1.0", State.ACTIVE)]


# ------------------------------------------------------------------------------- off-switches

LOUD = "raise AssertionError('imported although switched off')"


@pytest.mark.parametrize("name", ["ptq-loud", "PTQ_LOUD", "ptq.Loud", "loud_point", "Loud-Point"])
def test_disabled_by_distribution_or_entry_point(site, name):
    site.install("ptq-loud", LOUD, points="loud_point = {module}")

    host = discover(disabled=[name])

    loud = site.record(host, "ptq-loud")
    assert (loud.state, loud.error) == (State.DISABLED, "switched off by --no-plugin")
    assert "ptq_loud" not in sys.modules
    assert host.calibrator("GOOD")


def test_disabling_what_is_not_installed_is_an_error(site):
    with pytest.raises(InputError) as caught:
        discover(disabled=["ptq-goood", "ptq-good", "mainn"])
    first, second = caught.value.problems
    assert first.message == "--no-plugin ptq-goood: no such plugin is installed"
    assert first.hint == "did you mean 'ptq-good'?"
    assert second.message == "--no-plugin mainn: no such plugin is installed"


def test_environment_switches_off_by_name(site, monkeypatch):
    site.install("ptq-loud", LOUD)
    monkeypatch.setenv("PTQ_DISABLE_PLUGINS", " PTQ_Loud , ,ptq-gone")

    host = discover()

    loud = site.record(host, "ptq-loud")
    assert (loud.state, loud.error) == (State.DISABLED, "switched off by PTQ_DISABLE_PLUGINS")
    assert site.record(host, "ptq-good").state is State.ACTIVE
    assert host.warnings == ["PTQ_DISABLE_PLUGINS names 'ptq-gone', which is not installed"]


@pytest.mark.parametrize("switch", ["environment", "argument"])
def test_all_strangers_off(site, monkeypatch, switch):
    site.install("ptq-loud", LOUD)
    if switch == "environment":
        monkeypatch.setenv("PTQ_DISABLE_PLUGINS", "ALL")
        host = discover()
        reason = "switched off by PTQ_DISABLE_PLUGINS"
    else:
        host = discover(autoload=False)
        reason = "switched off by --no-plugins"

    assert {"ptq-loud", "ptq-good"} <= strangers(host)
    for record in host.records:
        if not record.built_in:
            assert (record.state, record.error) == (State.DISABLED, reason)
    assert host.preprocessor("NPY").record.built_in
    assert host.warnings == []
    with pytest.raises(InputError, match=f"plugins .*'ptq-loud'.* are {reason} and may provide it"):
        host.calibrator("GOOD")


def test_a_built_in_can_be_switched_off_alone(site):
    host = discover(disabled=["arrays"])
    states = {record.entry_point: record.state for record in host.records if record.built_in}
    assert states == {
        "arrays": State.DISABLED,
        "plain_encoding": State.ACTIVE,
        "reference_runner": State.ACTIVE,
    }
    with pytest.raises(InputError, match="plugin 'arrays' is switched off by --no-plugin and may"):
        host.preprocessor("NPY")


def test_blame_tells_the_switch_that_leaves_out_one_built_in():
    record = discover(autoload=False).preprocessor("NPY").record
    with pytest.raises(PluginError) as caught, blame(record):
        raise IndexError("3")
    (problem,) = caught.value.problems
    assert problem.message == f"plugin 'ptq-core (arrays)' {record.version} failed: IndexError: 3"
    assert problem.hint == "use --no-plugin arrays to leave it out"


def test_distribution_with_two_entry_points_is_named_once_among_the_switched_off(site):
    site.install("ptq-loud", LOUD, points="a = {module}\nb = {module}")
    with pytest.raises(InputError) as caught:
        discover(disabled=["ptq-loud"]).calibrator("X")
    assert "plugin 'ptq-loud' is switched off by --no-plugin and may" in str(caught.value)


# ---------------------------------------------------------------------------- broken metadata


def test_metadata_that_cannot_be_read(site):
    site.install("ptq-nameless", "raise AssertionError")
    (site.folder / "ptq_nameless-1.0.dist-info" / "METADATA").unlink()
    site.install("ptq-binary", "raise AssertionError")
    points = site.folder / "ptq_binary-1.0.dist-info" / "entry_points.txt"
    points.write_bytes(b"[ptq]\nmain = \xff\xfe\n")

    host = discover()

    assert host.calibrator("GOOD")
    for name in ("ptq_nameless", "ptq_binary"):
        broken = site.record(host, name)
        assert broken.state is State.BROKEN
        assert broken.error.startswith("its metadata cannot be read: ")


def test_a_stranger_to_ptq_with_unparsable_entry_points_is_no_concern(site):
    site.install("other-tool", "raise AssertionError")
    info = site.folder / "other_tool-1.0.dist-info"
    (info / "entry_points.txt").write_text("[console_scripts]\nno equals sign\n")

    host = discover()

    assert host.calibrator("GOOD")
    assert "other-tool" not in strangers(host)


# ------------------------------------------------------------------------ a wheel, the real road


def test_plugin_installed_by_pip(site, tmp_path):
    pytest.importorskip("pip", reason="an environment without pip cannot install a wheel")
    wheel = tmp_path / "ptq_wheel-2.1-py3-none-any.whl"
    info = "ptq_wheel-2.1.dist-info"
    files = {
        "ptq_wheel/__init__.py": SOURCE.format(name="WHEEL"),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: ptq-wheel\nVersion: 2.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[ptq]\nwheel = ptq_wheel\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    done = site.run(
        *("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"),
        *("--target", str(site.folder), str(wheel)),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    assert done.returncode == 0, done.stderr
    importlib.invalidate_caches()

    host = discover()

    assert host.calibrator("wheel").qualified == "ptq-wheel:WHEEL"
    assert site.record(host, "ptq-wheel").version == "2.1"


# ------------------------------------------------------------------------------- trace and cost


def test_trace_prints_each_hook_call(site, monkeypatch, capsys):
    monkeypatch.setenv("PTQ_TRACE_PLUGINS", "1")
    discover()
    captured = capsys.readouterr()
    assert "ptq: ptq-good 1.0: ptq_calibrators()\n" in captured.err
    assert "ptq-good 1.0: ptq_targets" not in captured.err
    assert captured.out == ""

    monkeypatch.setenv("PTQ_TRACE_PLUGINS", "0")
    discover()
    assert capsys.readouterr().err == ""


def test_importing_the_host_imports_nothing_heavy(site):
    heavy = {"numpy", "onnx", "onnx_ir", "pydantic", "rich", "typer", "numba", "onnxruntime"}
    done = site.run(
        "-c", f"import sys, ptq_core.plugins; print(sorted({heavy!r} & set(sys.modules)))"
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_discovery_of_eight_plugins_is_quick(site):
    others = strangers(discover()) - {"ptq-good"}
    for number in range(7):
        site.install(f"ptq-light-{number}", SOURCE.format(name=f"L{number}"))
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        site.forget()
        start = time.perf_counter()
        host = discover(disabled=others)
        seconds.append(time.perf_counter() - start)

    assert sum(one.record.name not in others for one in host.entries("calibrator")) == 8
    assert min(seconds) < SECONDS_FOR_EIGHT_PLUGINS
