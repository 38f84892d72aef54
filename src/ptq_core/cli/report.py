"""A job's report, for people and as JSON."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from ptq_core.cli.check import counted, print_findings
from ptq_core.cli.weights import print_weights, weights_json

if TYPE_CHECKING:
    from rich.console import Console

    from ptq_core.estimates import TensorEstimate
    from ptq_core.jobs import CalibrationReport, Report
    from ptq_core.planning import NodePlan, Plan
    from ptq_core.types import Range
    from ptq_core.verification import Verification

DECISIONS = ("integer", "fused", "dynamic", "weights", "float", "guarded", "untouched")
_GROUPS = 10  # of float operators in the summary; `ptq plan` shows all
_NAMES = 3  # of nodes in a group
_SUSPECTS = 5

_log = logging.getLogger("ptq")


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON's types; numbers may still be infinite."""
    return {
        "model": str(report.model),
        "target": report.target,
        "files": [str(path) for path in report.files],
        "extras": {str(path): summary for path, summary in report.extras.items()},
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "samples": report.samples,
        "seconds": {**report.seconds, "total": sum(report.seconds.values())},
        "nodes": counts(report.plan),
        "float_operators": [node_json(node) for node in stay_float(report.plan)],
        "tensors": tensors_json(report.ranges, report.estimates),
        "weights": weights_json(report.weights),
        "generated": report.generated,
        "verification": None
        if report.verification is None
        else verification_json(report.verification),
        "rules": report.rules,
        "findings": [asdict(one) for one in report.findings],
        "gate": report.gate,
        "passed": report.passed,
        "suspects": [
            {"name": one.name, "op_type": one.op_type, "sqnr": one.sqnr, "lost": one.lost}
            for one in report.suspects
        ],
        "warnings": report.warnings,
        "notes": report.notes,
    }


def tensors_json(
    ranges: Mapping[str, Range], estimates: Mapping[str, TensorEstimate]
) -> list[dict[str, Any]]:
    """Calibrated tensors: their ranges, and what is lost of them where that was estimated."""
    found = []
    for name, one in ranges.items():
        loss = estimates.get(name)
        found.append(
            {
                "name": name,
                "low": one.low,
                "high": one.high,
                "sqnr": None if loss is None else loss.sqnr,
                "whole_sqnr": None if loss is None else loss.whole_sqnr,
                "clipped": None if loss is None else loss.clipped,
                "clipping": None if loss is None else loss.clipping,
            }
        )
    return found


def verification_json(found: Verification) -> dict[str, Any]:
    """How close the quantized model is."""
    return {
        "samples": found.samples,
        "held_out": found.held_out,
        "cosine": found.cosine,
        "outputs": [
            {
                "name": one.name,
                "cosine": one.cosine,
                "worst_cosine": one.worst_cosine,
                "sqnr": one.sqnr,
            }
            for one in found.outputs
        ],
        "executed": dict(found.executed),
        "unexpected": list(found.unexpected),
    }


def node_json(node: NodePlan) -> dict[str, str]:
    """One node of a plan."""
    return {
        "name": node.name,
        "op_type": node.op_type,
        "decision": node.decision,
        "reason": node.reason,
    }


def counts(plan: Plan) -> dict[str, int]:
    """How many nodes have each decision."""
    return {decision: plan.count(decision) for decision in DECISIONS}  # type: ignore[arg-type]


def stay_float(plan: Plan) -> list[NodePlan]:
    """The nodes that stay float, guarded ones too."""
    return [node for node in plan.nodes if node.decision in ("float", "guarded")]


# ------------------------------------------------------------------------------- for people


def print_report(console: Console, report: Report, *, every: bool = False) -> None:
    """What was written, how close it is, what stayed float, what to look at; ``every`` weight."""
    for path in report.files[:1]:
        before, after = report.bytes_before, report.bytes_after
        smaller = f", {before / after:.2f}x smaller" if before > after else ""
        console.print(f"wrote {path}: {size(before)} -> {size(after)}{smaller}", style="bold green")
    for path in report.files[1:]:
        console.print(f"  and {path}")
    for path, summary in report.extras.items():
        console.print(f"  and {path}: {summary}")
    if report.verification is not None:
        for line in closeness(report.verification, generated=report.generated):
            console.print(line)
    for line in _estimate_lines(report):
        console.print(line)
    if report.weights:
        print_weights(console, report, every=every)
    console.print(f"operators for {report.target}: {described_counts(report.plan)}")
    for line in _float_lines(report):
        console.print(f"  {line}")
    if report.rules:
        print_findings(console, report.findings, every=every)
        console.print(_verdict(report))
    console.print(seconds_line(report.seconds))
    print_remarks(console, report)


def _verdict(report: Report) -> str:
    """What the device's rules say."""
    if not report.findings:
        return f"rules of {report.target}: none of {report.rules} is broken"
    return f"rules of {report.target}: {counted(report.findings)}; the file was kept"


def seconds_line(seconds: Mapping[str, float]) -> str:
    """How long every stage took."""
    times = ", ".join(f"{stage} {count:.2f}" for stage, count in seconds.items())
    return f"seconds: {times}; {sum(seconds.values()):.2f} in all"


def print_remarks(console: Console, report: Report | CalibrationReport) -> None:
    """Warnings, then notes."""
    for text in dict.fromkeys(report.warnings):
        console.print(f"warning: {text}", style="yellow")
    for text in dict.fromkeys(report.notes):
        console.print(f"note: {text}", style="dim")


def print_missed(console: Console, report: Report, other_methods: Sequence[str]) -> None:
    """What a missed quality gate means and how to go on."""
    found = report.verification
    measured = "could not be measured" if found is None or found.cosine is None else ""
    if found is not None and found.cosine is not None:
        worst = min(found.outputs, key=lambda output: output.cosine)
        measured = f"of output '{worst.name}' is {found.cosine:.6f}"
    console.print(
        f"quality gate missed: the cosine similarity {measured}, wanted at least {report.gate:g}",
        style="bold red",
    )
    if report.suspects:
        console.print("most accuracy is lost in:")
        for one in report.suspects[:_SUSPECTS]:
            console.print(
                f"  {one.name} ({one.op_type}): {one.sqnr:.1f} dB left, {one.lost:.1f} dB lost"
            )
        name = shlex.quote(report.suspects[0].name)
        console.print(f"to go on: --skip {name} leaves the first of them in float (repeatable)")
    if other_methods:
        console.print(f"or another activation_quant_method: {', '.join(other_methods)}")
    if report.plan.count("dynamic"):
        console.print("to go on: --dynamic ACWC, or data (--data DIR) to smooth outliers with")
    elif report.weights:
        console.print("to go on: more bits, or data (--data DIR) to correct the layers with")
    for path in report.files[:1]:
        console.print(f"the file was kept: {path}")


def log_ranges(report: Report) -> None:
    """The range of every calibrated tensor, for -vv."""
    for name, found in report.ranges.items():
        _log.debug("range of %s: [%g, %g]", name, found.low, found.high)


def described_counts(plan: Plan) -> str:
    """Such as ``28 integer, 14 fused into them, 3 float``."""
    found = counts(plan)
    texts = {
        "integer": "{} integer",
        "fused": "{} fused into them",
        "dynamic": "{} integer, their activations quantized while running",
        "weights": "{} with integer weights",
        "float": "{} float",
        "guarded": "{} float and guarded against the runtime's own quantization",
        "untouched": "{} handle only shapes and indices",
    }
    if plan.constants:
        texts |= {"float": "{} with float weights", "untouched": "{} without weights"}
    if plan.count("dynamic"):
        texts |= {"float": "{} float", "untouched": "{} without weights"}
    return ", ".join(texts[name].format(number) for name, number in found.items() if number)


def size(count: int) -> str:
    """A number of bytes in units of 1000."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit in ("bytes", "kB") else f"{value:.1f} {unit}"


def closeness(found: Verification, *, generated: bool = False) -> Iterator[str]:
    """A line for each output that was compared."""
    which = "generated" if generated else "unseen" if found.held_out else "calibration"
    if not found.samples:
        yield "not compared with the float model: there were no samples"
    elif not found.outputs:
        yield "no float output to compare"
    for one in found.outputs:
        yield (
            f"output {one.name}: cosine {one.cosine:.6f} (worst {one.worst_cosine:.6f}), "
            f"SQNR {one.sqnr:.1f} dB on {found.samples} {which} samples"
        )


def _estimate_lines(report: Report) -> Iterator[str]:
    """What is lost of the activations, at a glance."""
    found = report.estimates
    if found:
        worst = min(found, key=lambda name: found[name].sqnr)
        yield (
            f"activations: {median(one.sqnr for one in found.values()):.1f} dB estimated SQNR in "
            f"the middle, {found[worst].sqnr:.1f} dB in the worst, '{worst}'"
        )


def _float_lines(report: Report) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for node in stay_float(report.plan):
        groups.setdefault((node.op_type, node.reason), []).append(node.name)
    for (op_type, reason), names in list(groups.items())[:_GROUPS]:
        shown = ", ".join(names[:_NAMES])
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        yield f"float {op_type}: {reason} ({shown}{more})"
    hidden = len(groups) - _GROUPS
    if hidden > 0:
        model = shlex.quote(str(report.model))
        yield f"and {hidden} other kinds; `ptq plan {model}` lists every node"
