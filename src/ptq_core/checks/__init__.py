"""The linter: what a device will not take, or not take well, in a quantized model of anybody's."""

from __future__ import annotations

from ptq_core.checks.codes import CODES, Code, explain, rule_code
from ptq_core.checks.run import Checked, check_model, inspect_model

__all__ = ["CODES", "Checked", "Code", "check_model", "explain", "inspect_model", "rule_code"]
