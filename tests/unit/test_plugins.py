from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pluggy
import pytest

from ptq_core import hookspecs
from ptq_core.api import (
    CalibratorEntry,
    CommandEntry,
    EncodingEntry,
    Event,
    PreprocessorEntry,
    QScheme,
    RunnerEntry,
    TargetEntry,
    TargetSpec,
    hookimpl,
)
from ptq_core.errors import DataError, ExitCode, InputError, PluginError
from ptq_core.plugins import KINDS, PluginHost, State, blame, make_host

SPEC = TargetSpec(activation=QScheme(), weight=QScheme(dtype="int8"), operators={})
START = Event(stage="calibrate", kind="start", total=8)
END = Event(stage="calibrate", kind="end", done=8, total=8)


def calibrator(name: str, *aliases: str) -> CalibratorEntry:
    return CalibratorEntry(
        name=name, summary=f"about {name}", factory=lambda tensor, options: None, aliases=aliases
    )


class Calibrators:
    """A plugin that offers calibrators."""

    def __init__(self, *entries: CalibratorEntry, version: str = "1.0") -> None:
        self.entries = entries
        self.__version__ = version

    @hookimpl
    def ptq_calibrators(self) -> Iterable[CalibratorEntry]:
        return self.entries


# ------------------------------------------------------------------------------- each hook


def test_hook_ptq_calibrators():
    entry = calibrator("KL")
    found = make_host({"ptq-kl": Calibrators(entry)}).calibrator("KL")
    assert found.entry is entry
    assert found.qualified == "ptq-kl:KL"


def test_hook_ptq_preprocessors():
    entry = PreprocessorEntry(
        name="WAV", summary="sounds", factory=lambda model_input, options: None, suffixes=(".wav",)
    )

    class Plugin:
        @hookimpl
        def ptq_preprocessors(self):
            yield entry

    assert make_host({"ptq-wav": Plugin()}).preprocessor("WAV").entry is entry


def test_hook_ptq_targets():
    entry = TargetEntry(name="NPU", summary="a device", spec=SPEC)

    class Plugin:
        @hookimpl
        def ptq_targets(self):
            return (entry,)

    assert make_host({"ptq-npu": Plugin()}).target("NPU").entry is entry


def test_hook_ptq_runners():
    entry = RunnerEntry(name="rt", summary="a runtime", factory=lambda model, options: None)

    class Plugin:
        @hookimpl
        def ptq_runners(self):
            return [entry]

    assert make_host({"ptq-rt": Plugin()}).runner("rt").entry is entry


def test_hook_ptq_encodings():
    entry = EncodingEntry(name="PACKED", summary="side by side", factory=lambda options: None)

    class Plugin:
        @hookimpl
        def ptq_encodings(self):
            return {entry.name: entry}.values()

    assert make_host({"ptq-packed": Plugin()}).encoding("PACKED").entry is entry


def test_hook_ptq_commands():
    entry = CommandEntry(name="deploy", summary="to the board", factory=lambda: lambda words: 0)

    class Plugin:
        @hookimpl
        def ptq_commands(self):
            yield entry

    assert make_host({"ptq-deploy": Plugin()}).command("deploy").entry is entry


def test_hook_ptq_event():
    seen = []

    class Plugin:
        @hookimpl
        def ptq_event(self, event):
            seen.append(event)

    host = make_host({"ptq-watch": Plugin()})
    host.emit(START)
    host.emit(END)

    assert seen == [START, END]
    assert host.warnings == []


def test_every_hook_has_a_test_of_its_name():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    hooks = {name for name in vars(manager.hook) if name.startswith("ptq_")}
    defined = {
        node.name
        for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert {f"test_hook_{name}" for name in hooks} <= defined
    # A hook that the host does not know would be accepted from plugins and never called.
    assert hooks == {hook for hook, _ in KINDS.values()} | {"ptq_event"}


def test_one_plugin_may_use_several_hooks_and_one_hook_several_times():
    class Plugin:
        @hookimpl(specname="ptq_calibrators")
        def first(self):
            yield calibrator("A")

        @hookimpl(specname="ptq_calibrators")
        def second(self):
            yield calibrator("B")

        @hookimpl
        def ptq_targets(self):
            yield TargetEntry(name="A", summary="a device", spec=SPEC)

    host = make_host({"ptq-both": Plugin()})

    assert [one.entry.name for one in host.entries("calibrator")] == ["A", "B"]
    assert host.target("a").entry.summary == "a device"
    assert set(host.records[0].entries) == {"calibrator", "target"}


def test_a_plugin_may_offer_nothing():
    host = make_host({"ptq-empty": Calibrators()})
    assert (host.records[0].state, host.records[0].entries) == (State.ACTIVE, {})


# ---------------------------------------------------------------------------------- look-up


@pytest.fixture
def host() -> PluginHost:
    return make_host(
        {
            "ptq-outlier": Calibrators(calibrator("RemovalOutlier", "REMOVAL_OUTLIER")),
            "ptq-one": Calibrators(calibrator("Same"), calibrator("first"), version="1.2"),
            "ptq_two": Calibrators(calibrator("SAME"), version="3.4"),
        }
    )


@pytest.mark.parametrize(
    "name",
    [
        "RemovalOutlier",
        "removaloutlier",
        "REMOVAL_OUTLIER",
        "Removal_Outlier",
        " RemovalOutlier ",
        "ptq-outlier:RemovalOutlier",
        "PTQ_Outlier:removal_outlier",
    ],
)
def test_names_aliases_and_qualified_names_ignore_case(host, name):
    assert host.calibrator(name).qualified == "ptq-outlier:RemovalOutlier"


def test_entries_are_sorted_by_name_then_plugin(host):
    assert [one.qualified for one in host.entries("calibrator")] == [
        "ptq-one:first",
        "ptq-outlier:RemovalOutlier",
        "ptq-one:Same",
        "ptq_two:SAME",
    ]
    assert host.entries("runner") == ()


def test_ambiguous_name_names_plugins_versions_and_the_way_out(host):
    with pytest.raises(InputError) as caught:
        host.calibrator("same")
    (problem,) = caught.value.problems
    assert problem.message == (
        "calibrator 'same' is offered by 2 plugins: 'ptq-one' 1.2 and 'ptq_two' 3.4"
    )
    assert problem.hint == "write 'ptq-one:Same' or 'ptq_two:SAME'"
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    for qualified in ("ptq-one:Same", "ptq_two:SAME"):
        assert host.calibrator(qualified).qualified == qualified


def test_alias_of_one_and_name_of_another_are_ambiguous():
    host = make_host(
        {"ptq-a": Calibrators(calibrator("KL")), "ptq-b": Calibrators(calibrator("Other", "kl"))}
    )
    with pytest.raises(InputError, match=r"is offered by 2 plugins: 'ptq-a' 1\.0 and 'ptq-b' 1\.0"):
        host.calibrator("KL")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "RemovalOutlir",
            "did you mean 'RemovalOutlier'?; "
            "there are: first, RemovalOutlier, ptq-one:Same, ptq_two:SAME",
        ),
        ("XYZ", "there are: first, RemovalOutlier, ptq-one:Same, ptq_two:SAME"),
        (
            "ptq-one:SAMME",
            "did you mean 'ptq-one:Same'?; there are: ptq-one:first, "
            "ptq-outlier:RemovalOutlier, ptq-one:Same, ptq_two:SAME",
        ),
        (
            "KL",
            "there are: first, RemovalOutlier, ptq-one:Same, ptq_two:SAME; "
            "pip install ptq-calibrator-kl (or ptq-core[all])",
        ),
    ],
)
def test_unknown_name_is_told_what_there_is(host, name, hint):
    with pytest.raises(InputError) as caught:
        host.calibrator(name)
    (problem,) = caught.value.problems
    assert problem.message == f"no calibrator named '{name}'"
    assert problem.hint == hint


@pytest.mark.parametrize(
    ("kind", "name", "distribution"),
    [
        ("calibrator", "KL", "ptq-calibrator-kl"),
        ("calibrator", "MAX_MIN", "ptq-calibrator-max-min"),
        ("calibrator", "mse", "ptq-calibrator-mse"),
        ("calibrator", "Percentile", "ptq-calibrator-percentile"),
        ("calibrator", "RemovalOutlier", "ptq-calibrator-removal-outlier"),
        ("calibrator", "REMOVAL_OUTLIER", "ptq-calibrator-removal-outlier"),
        ("preprocessor", "IMAGE", "ptq-preprocess-image"),
        ("runner", "onnxruntime", "ptq-runner-onnxruntime"),
        ("target", "CPU", "ptq-target-cpu"),
        ("target", "DSP", "ptq-target-dsp"),
        ("target", "NVGPU", "ptq-target-nvgpu"),
    ],
)
def test_known_names_say_what_to_install(kind, name, distribution):
    with pytest.raises(InputError) as caught:
        make_host({}).find(kind, name)
    assert str(caught.value) == (
        f"no {kind} named '{name}'\n"
        f"  hint: no {kind} is installed; pip install {distribution} (or ptq-core[all])"
    )


def test_missing_name_of_a_known_plugin_blames_that_plugin_alone():
    host = make_host({"ptq-calibrator-kl": Broken(), "ptq-stranger": Broken()})
    with pytest.raises(InputError) as caught:
        host.calibrator("KL")
    (problem,) = caught.value.problems
    assert problem.message == (
        "no calibrator named 'KL'; plugin 'ptq-calibrator-kl' 0 failed to load and may provide it: "
        "ModuleNotFoundError: No module named 'numba'"
    )
    assert "pip install" not in problem.hint
    with pytest.raises(InputError, match=r"'ptq-calibrator-kl' 0 failed.*'ptq-stranger' 0 failed"):
        host.calibrator("ELSE")


class Broken:
    @hookimpl
    def ptq_calibrators(self):
        raise ModuleNotFoundError("No module named 'numba'")


def test_hosts_are_values_that_know_nothing_of_each_other():
    one, other = make_host({"ptq-a": Calibrators(calibrator("A"))}), make_host({})
    assert one.calibrator("A")
    assert other.records == ()
    with pytest.raises(InputError):
        other.calibrator("A")


# ----------------------------------------------------------------------------------- events


class Watcher:
    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[Event] = []
        self.error = error

    @hookimpl
    def ptq_event(self, event: Event) -> None:
        self.seen.append(event)
        if self.error:
            raise self.error


@pytest.mark.parametrize("error", [ValueError("no board"), SystemExit(3), GeneratorExit()])
def test_observer_that_raises_gets_no_further_events(error):
    bad, good, late = Watcher(error), Watcher(), Watcher()
    host = make_host({"ptq-a": good, "ptq-b": bad, "ptq-c": late})

    host.emit(START)
    host.emit(END)

    assert (bad.seen, good.seen, late.seen) == ([START], [START, END], [START, END])
    assert {record.name: raised for record, raised in host.event_failures.items()} == {
        "ptq-b": error
    }
    (warning,) = host.warnings
    shown = {ValueError: "ValueError: no board", SystemExit: "SystemExit: 3"}
    assert warning == (
        "plugin 'ptq-b' 0 failed while observing the job and gets no further events: "
        + shown.get(type(error), "GeneratorExit")
    )


def test_interrupt_while_observing_reaches_the_user():
    host = make_host({"ptq-a": Watcher(KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        host.emit(START)


def test_only_active_plugins_observe():
    class Plugin(Watcher):
        ptq_api_version = (2, 0)

    plugin = Plugin()
    host = make_host({"ptq-a": plugin})
    host.emit(START)
    assert (host.records[0].state, plugin.seen) == (State.INCOMPATIBLE, [])


# ------------------------------------------------------------------------------------ blame


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), SystemExit("by zero")])
def test_blame_names_plugin_version_task_and_cause(error):
    record = make_host({"ptq-kl": Calibrators(version="0.7")}).records[0]
    with pytest.raises(PluginError) as caught, blame(record, "observing tensor 'x'"):
        raise error
    assert str(caught.value) == (
        f"plugin 'ptq-kl' 0.7 failed while observing tensor 'x': {type(error).__name__}: by zero\n"
        "  hint: use --no-plugin ptq-kl to leave it out"
    )
    assert caught.value.__cause__ is error
    assert caught.value.exit_code is ExitCode.PLUGIN_FAILED


@pytest.mark.parametrize("error", [DataError("bad picture"), KeyboardInterrupt()])
def test_blame_lets_through_what_is_no_crash(error):
    record = make_host({"ptq-kl": Calibrators()}).records[0]
    with pytest.raises(type(error)) as caught, blame(record):
        raise error
    assert caught.value is error


def test_blame_inside_a_generator_that_is_closed_early():
    record = make_host({"ptq-kl": Calibrators()}).records[0]

    def samples():
        with blame(record):
            yield from range(3)

    running = samples()
    assert next(running) == 0
    running.close()  # GeneratorExit is how Python closes it, not the plugin's failure
