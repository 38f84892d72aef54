"""Which layers stay float: the rules of NVIDIA's Model Optimizer, written twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptq_core.api import NodeFacts
from ptq_core.errors import ModelError
from ptq_core.graph.prepare import prepare
from ptq_core.planning import Plan, make_plan
from ptq_target_nvgpu import ptq_targets
from ptq_target_nvgpu.channels import keep_float
from tests import tiny_models as tiny

(ENTRY,) = ptq_targets()


def facts(op_type: str, weight: Sequence[int] | None, **given: Any) -> NodeFacts:
    defaults: dict[str, Any] = {
        "attributes": {}, "input_shape": None, "output_shape": None, "reads_graph_input": False,
    }  # fmt: skip
    return NodeFacts(
        op_type=op_type,
        weight_shape=None if weight is None else tuple(weight),
        **{**defaults, **given},
    )


def conv(weight: Sequence[int], group: int = 1, *, first: bool = False) -> str | None:
    return keep_float(facts("Conv", weight, attributes={"group": group}, reads_graph_input=first))


@pytest.mark.parametrize(
    ("weight", "group", "first", "integer"),
    [
        ((16, 16, 3, 3), 1, False, True),
        ((17, 19, 3, 3), 1, False, True),  # enough of both: no multiple is asked for
        ((116, 58, 1, 1), 1, False, True),
        ((32, 3, 3, 3), 1, True, True),  # the first layer of nearly all networks
        ((8, 3, 3, 3), 1, True, True),
        ((8, 3, 3, 3), 1, False, False),
        ((12, 3, 3, 3), 1, True, False),
        ((8, 64, 1, 1), 1, False, True),
        ((12, 8, 3, 3), 1, False, False),
        ((16, 12, 3, 3), 1, False, True),
        ((16, 12, 1, 3), 1, False, False),  # not square
        ((4, 20, 3, 3), 1, False, False),  # no multiple of 8
        ((64, 1, 3, 3), 64, False, True),  # depthwise
        ((64, 1, 5, 5), 64, False, True),
        ((64, 1, 1, 1), 64, False, False),
        ((64, 1, 3, 1), 64, False, False),
        ((58, 1, 3, 3), 58, False, False),
        ((64, 16, 1, 1), 4, False, True),  # grouped, enough channels in each group
        ((16, 8, 3), 1, False, True),  # one dimension
    ],
)
def test_convolutions(weight: Sequence[int], group: int, first: bool, integer: bool) -> None:
    assert (conv(weight, group, first=first) is None) == integer


def excluded_by_model_optimizer(weight: Sequence[int], group: int, first: bool) -> bool:
    """``find_nodes_from_convs_to_exclude`` for int8, condition by condition."""
    output_channel, input_channel, *kernel_shape = weight
    if not (output_channel < 16 or input_channel < 16):
        return False
    plain = (
        group == 1
        and (output_channel % 8 == 0 or input_channel % 8 == 0)
        and (first or (output_channel >= 16 or input_channel >= 16))
        and len(set(kernel_shape)) == 1
    )
    grouped = group > 1 and output_channel % 8 == 0 and all(k >= 3 for k in kernel_shape)
    return not plain and not grouped


channels = st.integers(1, 40)


@given(
    shape=st.tuples(channels, channels, st.integers(1, 5), st.integers(1, 5)),
    group=st.sampled_from([1, 2, 4]),
    first=st.booleans(),
)
@example(shape=(16, 15, 3, 3), group=1, first=False)
@example(shape=(8, 15, 3, 3), group=2, first=False)
def test_convolutions_as_the_model_optimizer_has_them(
    shape: Sequence[int], group: int, first: bool
) -> None:
    reason = conv(shape, group, first=first)
    assert (reason is not None) == excluded_by_model_optimizer(shape, group, first)


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
@pytest.mark.parametrize(
    ("output", "integer"),
    [
        ((1, 10), False),
        ((10, 1), False),
        ((4, 10), True),
        ((None, 10), True),  # an open batch
        ((1, 1, 10), True),  # batches and rows are one
        (None, True),
    ],
)
def test_products(op_type: str, output: tuple[int | None, ...] | None, integer: bool) -> None:
    assert (keep_float(facts(op_type, (10, 10), output_shape=output)) is None) == integer


def test_others_have_no_say() -> None:
    assert keep_float(facts("ConvTranspose", (3, 3, 3, 3))) is None
    assert keep_float(facts("Add", None)) is None


def planned(made: onnx.ModelProto) -> Plan:
    prepared = prepare(ir.from_proto(made), ENTRY.spec.minimum_opset)
    return make_plan(prepared, ENTRY.spec, keep_float=ENTRY.keep_float)


def test_the_plan_tells_the_reason() -> None:
    made = tiny.model(
        [
            tiny.node("Conv", "x w0", "c0", "few"),
            tiny.node("Conv", "c0 w1", "y", "enough"),
        ],
        {"x": [1, 4, 6, 6]},
        {"y": [1, 16, 6, 6]},
        {"w0": tiny.normal(20, 4, 1, 1), "w1": tiny.normal(16, 20, 1, 1)},
    )
    plan = planned(made)
    few, enough = plan.nodes
    assert (few.decision, enough.decision) == ("float", "integer")
    assert few.reason == (
        "4 input and 20 output channels, kernel 1x1: faster in float; tensor cores want 16 of "
        "both, or 16 of one and a multiple of 8 of one with a square kernel"
    )
    assert set(plan.tensors) == {"c0"}


def test_a_network_of_few_channels_is_an_error_that_says_why() -> None:
    with pytest.raises(ModelError, match="4 input and 4 output channels, kernel 3x3"):
        planned(tiny.residual())
