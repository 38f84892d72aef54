"""Smoothing: move outliers of activations into the weights that read them.

In transformers a few channels of an activation are many times larger than the others, and one
scale for all leaves those few codes. Dividing each channel by a number of its own, and multiplying
the weights by it, changes nothing in float and makes both easier to round.
"""

from __future__ import annotations

from ptq_core.smoothing.groups import Group, Layer, find_fold, find_groups
from ptq_core.smoothing.model import smooth
from ptq_core.smoothing.search import Rounding, Smoothing, find_smoothing
from ptq_core.smoothing.statistics import Activation

__all__ = [
    "Activation",
    "Group",
    "Layer",
    "Rounding",
    "Smoothing",
    "find_fold",
    "find_groups",
    "find_smoothing",
    "smooth",
]
