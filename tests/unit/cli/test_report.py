"""The report in words: sizes, groups of float operators, numbers that JSON does not have."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from ptq_core.cli.progress import showing
from ptq_core.cli.report import print_missed, print_report, report_json, size
from ptq_core.cli.state import State, finite, make_console
from ptq_core.diagnosis import NodeError
from ptq_core.estimates import TensorEstimate
from ptq_core.jobs import Report
from ptq_core.planning import NodePlan, Plan
from ptq_core.types import Event, Range
from ptq_core.verification import OutputCheck, Verification


def node(name: str, op_type: str, decision: str, reason: str) -> NodePlan:
    return NodePlan(name=name, key=name, op_type=op_type, decision=decision, reason=reason)


def report(*nodes: NodePlan, **given) -> Report:
    return Report(model=Path("my model.onnx"), target="CPU", plan=Plan(nodes=nodes), **given)


def printed(show, *arguments) -> str:
    file = io.StringIO()
    show(make_console(file), *arguments)
    return file.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (586_342, "586 kB"),
     (1_250_000, "1.2 MB"), (7_890_000_000, "7.9 GB"), (5_000_000_000_000, "5000.0 GB")],
)  # fmt: skip
def test_sizes(count, text):
    assert size(count) == text


def test_float_operators_are_grouped_by_reason():
    nodes = [node(f"s{index}", "Softmax", "float", "kept") for index in range(5)]
    text = printed(print_report, report(*nodes, node("g", "Gemm", "guarded", "named")))
    assert "  float Softmax: kept (s0, s1, s2 and 2 more)\n" in text
    assert "  float Gemm: named (g)\n" in text
    assert "5 float, 1 float and guarded" in text


def test_long_lists_point_to_the_plan():
    nodes = [node(f"n{index}", f"Op{index}", "float", "why") for index in range(14)]
    text = printed(print_report, report(*nodes))
    assert text.count("  float Op") == 10
    assert "and 4 other kinds; `ptq plan 'my model.onnx'` lists every node" in text


def test_names_are_printed_as_they_are():
    name = "[bold]a/b[/bold]:smile:"
    text = printed(print_report, report(node(name, "Softmax", "float", "[red]why")))
    assert f"  float Softmax: [red]why ({name})\n" in text


def test_paths_are_never_wrapped():
    path = Path("/very" * 100)
    text = printed(print_report, report(files=[path], bytes_before=2000, bytes_after=1000))
    assert f"wrote {path}: 2 kB -> 1 kB, 2.00x smaller\n" in text


def test_warnings_are_said_once():
    assert printed(print_report, report(warnings=["w", "w"], notes=["n"])).count("warning: w") == 1


def test_gate_that_could_not_be_measured():
    text = printed(print_missed, report(gate=0.5, verification=Verification()), ["KL"])
    assert "the cosine similarity could not be measured, wanted at least 0.5" in text
    assert "activation_quant_method: KL" in text


def test_gate_names_the_worst_output_and_quotes_for_the_shell():
    outputs = (
        OutputCheck(name="good", cosine=1.0, worst_cosine=1.0, sqnr=math.inf),
        OutputCheck(name="bad", cosine=0.25, worst_cosine=0.1, sqnr=1.0),
    )
    suspect = NodeError(name="it's here", op_type="Conv", sqnr=3.0, lost=9.0)
    found = report(gate=0.5, verification=Verification(outputs=outputs), suspects=(suspect,))
    text = printed(print_missed, found, [])
    assert "of output 'bad' is 0.250000" in text
    assert """--skip 'it'"'"'s here'""" in text
    as_json = report_json(found)["verification"]["outputs"][0]
    assert finite(as_json) == {"name": "good", "cosine": 1.0, "worst_cosine": 1.0, "sqnr": None}


def test_numbers_that_json_does_not_have():
    assert finite({"a": [math.nan, (1.5, -math.inf)], "b": "inf"}) == {
        "a": [None, [1.5, None]],
        "b": "inf",
    }


# --------------------------------------------------------------------------------- progress


EVENTS = [
    Event(stage="calibrate", kind="start"),
    Event(stage="calibrate", kind="start", total=2),
    Event(stage="calibrate", kind="advance", done=1, total=2),
    Event(stage="calibrate", kind="end", done=2, total=2),
    Event(stage="calibrate", kind="start", total=2),
    Event(stage="calibrate", kind="end", done=2, total=2),
    Event(stage="calibrate", kind="end"),
    Event(stage="[own] stage", kind="start"),
]


def state_on(console: Console, **given) -> State:
    state = State(**given)
    state.__dict__["out"] = console
    return state


def test_one_line_per_stage_and_none_is_left_open():
    file = io.StringIO()
    with showing(state_on(make_console(file))) as listen:
        for event in EVENTS:
            listen(event)
    first, second = file.getvalue().splitlines()
    assert first.startswith("measuring activations ... 2 samples, ")
    assert second == "[own] stage ... "
    assert file.getvalue().endswith("\n")


def test_bars_show_how_far_it_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with showing(state_on(console)) as listen:
        for event in EVENTS:
            listen(event)
            console.file.flush()
    text = console.file.getvalue()
    assert "measuring activations" in text
    assert "[own] stage" in text


def test_log_lines_with_verbose(caplog):
    with caplog.at_level("DEBUG", "ptq"), showing(State(verbose=2)) as listen:
        for event in EVENTS:
            listen(event)
    assert "calibrate: 1 of 2" in caplog.text


def test_saved_result_is_remembered():
    state = state_on(make_console(io.StringIO()))
    with showing(state) as listen:
        listen(Event(stage="save", kind="start"))
        assert not state.saved
        listen(Event(stage="save", kind="end"))
    assert state.saved


def test_what_is_lost_of_the_activations_at_a_glance():
    estimates = {
        name: TensorEstimate(sqnr=sqnr, whole_sqnr=45.0, clipped=0.25, clipping=0.5)
        for name, sqnr in (("a", 40.0), ("b", 30.04), ("c", 41.0))
    }
    made = report(estimates=estimates, ranges={"b": Range(low=-1.0, high=2.0)})
    assert (
        "activations: 40.0 dB estimated SQNR in the middle, 30.0 dB in the worst, 'b'\n"
        in printed(print_report, made)
    )
    assert report_json(made)["tensors"] == [
        {"name": "b", "low": -1.0, "high": 2.0, "sqnr": 30.04, "whole_sqnr": 45.0,
         "clipped": 0.25, "clipping": 0.5}
    ]  # fmt: skip


def test_without_samples_nothing_was_compared():
    text = printed(print_report, report(verification=Verification()))
    assert "not compared with the float model: there were no samples\n" in text
    assert "activations:" not in text
