"""The plan of dynamic quantization: what becomes of every node, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq_core.errors import ModelError
from ptq_core.graph.prepare import prepare
from ptq_core.planning import Plan, make_dynamic_plan
from ptq_core.target_types import TargetSpec
from ptq_core.types import QScheme
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

WEIGHT = QScheme(dtype="int8", symmetric=True, narrow_range=True)
EVERYTHING = ("MatMul", "Gemm", "Gather", "LSTM", "Conv")


def plan_of(made: onnx.ModelProto, strategy: Any = "ALWC", *known: str, **given: Any) -> Plan:
    target = TargetSpec(
        activation=QScheme(), weight=WEIGHT, operators={}, dynamic_operators=known or EVERYTHING
    )
    prepared = prepare(ir.from_proto(made), 13, integers=False)
    return make_dynamic_plan(prepared, target, strategy, **given)


def layers(*nodes: Any, **constants: Any) -> onnx.ModelProto:
    """Nodes that read ``x``, beside a layer that is quantized in any case."""
    outputs = {one.output[0]: ["a", "b"] for one in nodes}
    return tiny.model(
        [node("MatMul", "x w", "sure", "sure"), *nodes],
        {"x": [8, 8], "z": [8, 8]},
        {"sure": [8, 24], **outputs},
        {"w": normal(8, 24), **constants},
    )


@pytest.mark.parametrize(
    ("strategy", "axis", "text"),
    [
        ("ALWC", 1, "activations one scale, while running; weights a scale for each channel"),
        ("ACWC", 1, "activations a scale for each token, while running; "
                    "weights a scale for each channel"),
        ("ACWL", None, "activations a scale for each token, while running; weights one scale"),
    ],
)  # fmt: skip
def test_strategies(strategy: str, axis: int | None, text: str) -> None:
    plan = plan_of(layers(), strategy)
    (weight,) = plan.weights
    assert (weight.node, weight.position, weight.tensor, weight.axis) == ("sure", 1, "w", axis)
    assert weight.scheme == WEIGHT
    (one,) = plan.nodes
    assert (one.decision, one.reason) == ("dynamic", text)


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (node("Gemm", "x v", "y", "odd"), (8, 5), 1),
        (node("Gemm", "x v", "y", "odd", transB=1), (5, 8), 0),
        (node("Gemm", "x v", "y", "odd", transA=1), (8, 5), 1),
        (node("MatMul", "x v", "y", "odd"), (8, 5), 1),
    ],
)
def test_channels_are_those_of_the_constant(layer: Any, shape: tuple[int, ...], axis: int) -> None:
    plan = plan_of(layers(layer, v=normal(*shape)))
    assert {one.tensor: one.axis for one in plan.weights} == {"w": 1, "v": axis}


@pytest.mark.parametrize(
    ("layer", "constant", "reason"),
    [
        (node("MatMul", "x v", "y", "odd"), normal(8), "its weights have rank 1"),
        (node("MatMul", "v x", "y", "odd"), normal(5, 8), "the constant is its first operand"),
        (node("MatMul", "x z", "y", "odd"), normal(1), "multiplies two activations"),
        (node("Gemm", "x z", "y", "odd"), normal(1), "its weights are not constant"),
        (node("MatMul", "x v", "y", "odd"), normal(8, 0), "its weights are empty"),
    ],
)
def test_what_stays_float(layer: Any, constant: Any, reason: str) -> None:
    if constant.size == 0:
        made = layers(layer, v=constant)
        made.graph.output[-1].CopyFrom(tiny.info("y", [8, 0]))
    else:
        made = layers(layer, v=constant)
    (odd,) = (one for one in plan_of(made).nodes if one.name == "odd")
    assert odd.decision == "float"
    assert odd.reason.startswith(reason)


def test_an_output_that_is_a_weight() -> None:
    made = layers(node("MatMul", "x v", "y", "odd"), v=normal(8, 5))
    made.graph.output.append(tiny.info("v", [8, 5]))
    (odd,) = (one for one in plan_of(made).nodes if one.name == "odd")
    assert odd.reason == "its weights are an output of the model"


def test_what_the_target_does_not_know() -> None:
    made = layers(node("Gemm", "x v", "y", "odd"), v=normal(8, 5))
    (odd,) = (one for one in plan_of(made, "ALWC", "MatMul").nodes if one.name == "odd")
    assert odd.decision == "float"
    assert odd.reason == "the target has no Gemm with activations quantized while running"


def test_operators_of_other_domains_are_not_taken_for_layers() -> None:
    """A MatMul of somebody's own is no MatMul."""
    made = layers(node("MatMul", "x w", "y", "odd"))
    prepared = prepare(ir.from_proto(made), 13, integers=False)
    (own,) = (one for one in prepared.model.graph if one.name == "odd")
    own.domain = "tiny"
    target = TargetSpec(
        activation=QScheme(), weight=WEIGHT, operators={}, dynamic_operators=EVERYTHING
    )
    plan = make_dynamic_plan(prepared, target, "ALWC")
    assert {one.name: one.decision for one in plan.nodes} == {"sure": "dynamic", "odd": "untouched"}


def test_nothing_to_quantize_tells_why() -> None:
    made = tiny.model(
        [node("Conv", "x w", "y", "conv")], {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]},
        {"w": normal(4, 3, 1, 1)},
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"Conv: .*convolution = true"):
        plan_of(made)
    assert {one.axis for one in plan_of(made, convolution=True).weights} == {0}
    with pytest.raises(ModelError, match="it has no layer with weights"):
        plan_of(tiny.model([node("Relu", "x", "y", "r")], {"x": [3]}, {"y": [3]}))


def test_recurrent_layers_have_two_weights() -> None:
    made = tiny.model(
        [node("LSTM", "x w r", "y", "layer", hidden_size=6)],
        {"x": [5, 2, 8]}, {"y": [5, 1, 2, 6]},
        {"w": normal(1, 24, 8), "r": normal(1, 24, 6)},
    )  # fmt: skip
    found = {one.tensor: (one.position, one.axis) for one in plan_of(made).weights}
    assert found == {"w": (1, 1), "r": (2, 1)}
    found = {one.tensor: (one.position, one.axis) for one in plan_of(made, "ACWL").weights}
    assert found == {"w": (1, None), "r": (2, None)}


def test_convolutional_networks_are_warned_of() -> None:
    (warning,) = plan_of(tiny.conv_bn_relu()).warnings
    assert "weights belong to convolutions" in warning
    assert plan_of(tiny.gemm()).warnings == ()
    assert np.all([one.decision != "float" for one in plan_of(tiny.gemm()).nodes])
