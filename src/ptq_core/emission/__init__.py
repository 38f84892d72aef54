"""Write the integer model."""

from __future__ import annotations

from ptq_core.emission.biases import correct_biases, correctable, corrected_weight
from ptq_core.emission.dynamic import emit_dynamic, share_codes
from ptq_core.emission.ends import integer_ends
from ptq_core.emission.qdq import emit
from ptq_core.emission.weights import WeightWriter

__all__ = [
    "WeightWriter",
    "correct_biases",
    "correctable",
    "corrected_weight",
    "emit",
    "emit_dynamic",
    "integer_ends",
    "share_codes",
]
