"""Bias correction: the layers' channel means and gains in integers as they are in float."""

from ptq_core.correction.bias import BiasCorrection, correct_bias

__all__ = ["BiasCorrection", "correct_bias"]
