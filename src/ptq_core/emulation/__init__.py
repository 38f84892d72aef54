"""Predict what a device computes: a quantized model executed with the device's own arithmetic."""

from __future__ import annotations

from ptq_core.emulation.checked import CheckedArithmetic
from ptq_core.emulation.closeness import Closeness
from ptq_core.emulation.emulator import Emulator
from ptq_core.emulation.nodes import FloatNodes
from ptq_core.emulation.pair import REALS, Likeness, Pair, TensorComparison, input_codes
from ptq_core.emulation.program import make_program, simplified
from ptq_core.emulation.steps import Program, Watched

__all__ = [
    "REALS",
    "CheckedArithmetic",
    "Closeness",
    "Emulator",
    "FloatNodes",
    "Likeness",
    "Pair",
    "Program",
    "TensorComparison",
    "Watched",
    "input_codes",
    "make_program",
    "simplified",
]
