"""Look at a quantized model with all the rules that hold for a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from ptq_core.checks.borders import check_borders
from ptq_core.checks.codes import CODES, rule_code
from ptq_core.checks.constants import check_biases, check_skipped, check_weights
from ptq_core.checks.operators import check_operators
from ptq_core.checks.parameters import check_pairs, check_parameters
from ptq_core.checks.results import check_order, check_results
from ptq_core.checks.subject import Subject
from ptq_core.checks.suspicion import Suspicion
from ptq_core.errors import ConfigError, Location, ModelError, Problem, did_you_mean
from ptq_core.graph import operators as ops
from ptq_core.graph.model import copy_of, read_model, runnable
from ptq_core.target_types import Finding, TargetEntry, TargetSpec

_RULES = (
    check_operators,
    check_parameters,
    check_pairs,
    check_weights,
    check_biases,
    check_skipped,
    check_results,
    check_order,
    check_borders,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What was looked at, and what was found.

    Attributes:
        operators: how many compute with integers, or could.
        findings: in the order of the graph, the whole model's first; of one node by their codes.
    """

    operators: int
    findings: tuple[Finding, ...]


def check_model(model: ir.Model | Path | bytes, entry: TargetEntry) -> tuple[Finding, ...]:
    """What the device will not take, or not take well, in a quantized model; see inspect_model."""
    return inspect_model(model, entry).findings


def inspect_model(model: ir.Model | Path | bytes, entry: TargetEntry) -> Checked:
    """What the device will not take, or not take well, and how much there was to look at.

    Any ONNX model will do: with QuantizeLinear and DequantizeLinear or with QLinear operators, ours
    or another tool's, or float. It is not changed.

    Raises:
        ModelError: it cannot be read, or is so far from valid ONNX that no rule can look at it.
        ConfigError: the target has a rule that does not exist.
    """
    _refuse_unknown(entry)
    opened = _opened(model)
    try:
        return _inspected(model, opened, entry)
    except Exception:
        _refuse_invalid(opened, str(model) if isinstance(model, Path) else None)
        raise


def _inspected(model: ir.Model | Path | bytes, opened: ir.Model, entry: TargetEntry) -> Checked:
    subject = Subject(opened, entry.spec)
    order = {node: position for position, node in enumerate(subject.nodes)}
    placed = [
        (-1 if one.node is None else order.get(one.node, len(order)), _finding(one, entry.spec))
        for rule in _RULES
        for one in rule(subject)
        if rule_code(one.code) in entry.spec.checks
    ]
    labels = {ops.label(node): order[node] for node in reversed(subject.nodes)}
    own = _own_findings(model, entry)
    placed += [(labels.get(one.node, -1 if not one.node else len(order)), one) for one in own]
    placed.sort(key=lambda pair: (pair[0], pair[1].code, pair[1].tensor))
    return Checked(operators=subject.count(), findings=tuple(finding for _, finding in placed))


def _refuse_unknown(entry: TargetEntry) -> None:
    problems = [
        Problem(message=f"{entry.name}: checks: no code '{code}'", hint=did_you_mean(code, CODES))
        for code in entry.spec.checks
        if code not in CODES
    ]
    if problems:
        raise ConfigError(problems=problems)


def _opened(model: ir.Model | Path | bytes) -> ir.Model:
    """The model to look at, with initializers in the place of Constant nodes."""
    if isinstance(model, Path):
        opened = read_model(model)
    elif isinstance(model, bytes):
        try:
            opened = ir.from_proto(onnx.load_from_string(model))
        except (DecodeError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"is not an ONNX model: {error}") from error
    else:
        opened = copy_of(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(opened)
    return opened


def _refuse_invalid(model: ir.Model, file: str | None) -> None:
    """Say what is wrong with a model by ONNX's own rules; those of a device take them for kept."""
    with runnable(model) as form:
        try:
            onnx.checker.check_model(str(form) if isinstance(form, Path) else form, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(
                f"is not valid ONNX: {str(error).strip()}",
                location=Location(file=file),
                hint="export or quantize it again; `onnx.checker.check_model` says the same of it",
            ) from error


def _finding(found: Suspicion, spec: TargetSpec) -> Finding:
    rule, code = spec.checks[rule_code(found.code)], CODES[rule_code(found.code)]
    return Finding(
        code=found.code,
        severity=rule.severity,
        node="" if found.node is None else ops.label(found.node),
        tensor=found.tensor,
        message=found.message,
        because=rule.because,
        fix=code.fix,
    )


def _own_findings(model: ir.Model | Path | bytes, entry: TargetEntry) -> Iterator[Finding]:
    """What the target's own code says."""
    if entry.check is None:
        return
    if isinstance(model, ir.Model):
        with runnable(model) as form:
            yield from entry.check(form)
    else:
        yield from entry.check(model)
