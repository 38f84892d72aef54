"""Predict what a device computes: a quantized model executed with the device's own arithmetic.

In the order in which they are best read:

- ``steps``: what executing a model consists of; :class:`Program` is a list of such steps.
- ``program``: makes one of a model; ``parameters`` reads its constants, ``layers`` finds the
  operators that are computed in integers, and what is merged into them.
- ``emulator``: takes the steps. ``sums`` and ``products`` are the integer part of a layer, the
  target's :class:`~ptq_core.target_types.Arithmetic` (``checked``) is what makes codes of it, and
  ``nodes`` leaves all that is float to a runner.
- ``pair``: the float model, the file and the device side by side, and their ``closeness``.
"""

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
