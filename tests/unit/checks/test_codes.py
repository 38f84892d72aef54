"""Every code is found in a model that breaks its rule, alone, and not in the mended model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from ptq_core.checks import CODES, check_model, rule_code
from ptq_core.plugins import discover
from ptq_core.target_types import TargetEntry
from ptq_core.targets import target_from_toml
from tests.unit.checks.broken_models import CASES, Case

TARGETS = ("CPU", "NVGPU", "DSP", "ASCEND")

LISTED = """
name = "LISTED"
summary = "takes few operators"
activation = { dtype = "uint8" }
weight = { dtype = "int8", symmetric = true }
[operators]
[accepts]
operators = ["QuantizeLinear", "DequantizeLinear", "Relu"]
[checks."X-OP-UNSUPPORTED"]
severity = "error"
because = "it refuses the file"
"""


@cache
def target(name: str) -> TargetEntry:
    return discover().target(name).entry


@pytest.fixture
def listed(tmp_path: Path) -> TargetEntry:
    path = tmp_path / "listed.toml"
    path.write_text(LISTED, encoding="utf-8")
    return target_from_toml(path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.make.__name__}")
def test_finds_this_and_nothing_else(case: Case, listed: TargetEntry) -> None:
    entry = listed if case.target == "LISTED" else target(case.target)
    broken, mended = case.make(True), case.make(False)
    before = broken.SerializeToString()
    found = check_model(before, entry)
    assert {one.code for one in found} == {case.found or case.code}, found
    assert check_model(mended.SerializeToString(), entry) == ()
    rule = entry.spec.checks[case.code]
    for one in found:
        assert (one.severity, one.because) == (rule.severity, rule.because)
        assert one.message
        assert one.fix == CODES[case.code].fix


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} == set(CODES)


@pytest.mark.parametrize("name", TARGETS)
def test_every_rule_of_our_targets_has_a_case(name: str) -> None:
    shown = {case.code for case in CASES if case.target == name}
    assert shown == set(target(name).spec.checks)


def test_family_is_one_rule() -> None:
    assert rule_code("O-Q-BEFORE-HARDSWISH") == "O-Q-BEFORE-ACT"
    assert rule_code("O-NO-Q") == "O-NO-Q"
