"""Decide, before any data is touched, what becomes of every node and every tensor.

``make_plan`` is pure: it reads the prepared graph, the target's rules and the user's wishes, and
returns data that can be printed. Emission does what the plan says and decides nothing.
"""

from __future__ import annotations

from ptq_core.planning.constants import Thresholds, make_weight_plan, weight_values
from ptq_core.planning.dynamic import layer_weight, make_dynamic_plan
from ptq_core.planning.make import make_plan
from ptq_core.planning.nodes import KeepFloat, guard_channels
from ptq_core.planning.plan import (
    MAX_MIN,
    ConstantPlan,
    Decision,
    NodePlan,
    Plan,
    TensorPlan,
    WeightPlan,
)
from ptq_core.planning.skip import match_nodes
from ptq_core.planning.softmax import lifted, narrowed

__all__ = [
    "MAX_MIN",
    "ConstantPlan",
    "Decision",
    "KeepFloat",
    "NodePlan",
    "Plan",
    "TensorPlan",
    "Thresholds",
    "WeightPlan",
    "guard_channels",
    "layer_weight",
    "lifted",
    "make_dynamic_plan",
    "make_plan",
    "make_weight_plan",
    "match_nodes",
    "narrowed",
    "weight_values",
]
