from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from ptq_core.errors import ConfigError, ModelError
from ptq_core.graph.prepare import prepare
from ptq_core.planning import ConstantPlan, Plan, Thresholds, make_weight_plan
from ptq_core.planning.constants import weight_values
from tests import tiny_models as tiny
from tests.tiny_models import node, normal


def plan_of(made: onnx.ModelProto, *, skip: tuple[str, ...] = (), **thresholds: Any) -> Plan:
    prepared = prepare(ir.from_proto(made), 13, integers=False)
    return make_weight_plan(prepared, Thresholds(**{"channels": 0, **thresholds}), skip=skip)


def reason(plan: Plan, name: str) -> str:
    return next(one.reason for one in plan.nodes if one.name == name)


def decision(plan: Plan, name: str) -> str:
    return next(one.decision for one in plan.nodes if one.name == name)


def only(made: onnx.ModelProto, **thresholds: Any) -> ConstantPlan:
    (one,) = plan_of(made, **thresholds).constants
    return one


def layers(**shapes: tuple[int, ...]) -> onnx.ModelProto:
    """Convolutions of the same input, each with weights of its own shape."""
    return tiny.model(
        [node("Conv", f"x {name}", f"{name}_y", f"{name}_conv") for name in shapes],
        {"x": ["N", next(iter(shapes.values()))[1], 9, 9]},
        {f"{name}_y": [None] * 4 for name in shapes},
        {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())},
    )


def one_layer(
    op: str, *shape: int, position: int = 1, rank: int = 2, **attributes: Any
) -> onnx.ModelProto:
    ends = ["x", "w"] if position else ["w", "x"]
    return tiny.model(
        [node(op, " ".join(ends), "y", "layer", **attributes)],
        {"x": [None] * rank},
        {"y": [None] * rank},
        {"w": normal(*shape)},
    )


def recurrent(op: str = "LSTM", hidden: int = 24) -> onnx.ModelProto:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * hidden
    return tiny.model(
        [node(op, "x w r", "y", "layer", hidden_size=hidden)],
        {"x": [5, 2, 20]},
        {"y": [5, 1, 2, hidden]},
        {"w": normal(1, rows, 20), "r": normal(1, rows, hidden, seed=1)},
    )


def table(*shape: int, axis: int = 0) -> onnx.ModelProto:
    return tiny.model(
        [node("Gather", "w ids", "y", "layer", axis=axis)],
        [tiny.info("ids", [3], TensorProto.INT64)],
        {"y": [None] * len(shape)},
        {"w": normal(*shape)},
    )


# ----------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(
    ("made", "axes"),
    [
        (one_layer("Conv", 24, 16, 3, 3, rank=4), (0,)),
        (one_layer("Conv", 64, 1, 3, 3, rank=4, group=64), (0,)),
        (one_layer("ConvTranspose", 16, 24, 3, 3, rank=4), (1,)),
        (one_layer("ConvTranspose", 32, 1, 5, 5, rank=4, group=32), (0,)),
        (one_layer("ConvTranspose", 16, 12, 3, 3, rank=4, group=2), (1,)),
        (one_layer("Gemm", 32, 24), (1,)),
        (one_layer("Gemm", 24, 32, transB=1), (0,)),
        (one_layer("Gemm", 24, 32, position=0), (0,)),
        (one_layer("Gemm", 24, 32, position=0, transA=1), (1,)),
        (one_layer("MatMul", 32, 24), (1,)),
        (one_layer("MatMul", 4, 32, 24, rank=3), (2,)),
        (one_layer("MatMul", 24, 32, position=0), (0,)),
        (one_layer("MatMul", 4, 24, 32, position=0, rank=3), (1,)),
        (table(40, 24), (0,)),
        (table(40, 24, axis=1), (1,)),
        (table(40, 24, axis=-1), (1,)),
    ],
)
def test_which_axes_keep_a_scale(made: onnx.ModelProto, axes: tuple[int, ...]) -> None:
    assert only(made).axes == axes
    assert only(made, per_channel=False).axes == ()


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_weights_have_a_scale_for_each_row_of_each_gate(op: str) -> None:
    plan = plan_of(recurrent(op), bits=2)
    assert [(one.tensor, one.axes) for one in plan.constants] == [("w", (0, 1)), ("r", (0, 1))]


# ------------------------------------------------------------------------------------ thresholds


def test_thresholds_are_exclusive() -> None:
    made = layers(w=(17, 16, 3, 3), v=(16, 16, 3, 3))
    plan = plan_of(made, channels=16)
    assert [one.tensor for one in plan.constants] == ["w"]
    assert reason(plan, "v_conv") == "it has 16 channels, min_quant_weight_channel is 16"
    plan = plan_of(made, size=16 * 16 * 9)
    assert [one.tensor for one in plan.constants] == ["w"]
    assert reason(plan, "v_conv") == "it has 2304 weights, min_quant_weight_size is 2304"
    assert [one.tensor for one in plan_of(made, size=16 * 16 * 9 - 1).constants] == ["w", "v"]


def test_tables_and_recurrent_weights_have_no_threshold_on_channels() -> None:
    assert only(table(4, 300), channels=1000).tensor == "w"
    assert len(plan_of(recurrent(), channels=1000).constants) == 2
    with pytest.raises(ModelError, match="min_quant_weight_channel is 1000"):
        plan_of(layers(w=(17, 16, 3, 3)), channels=1000)
    with pytest.raises(ModelError, match="min_quant_weight_size is 1200"):
        plan_of(table(4, 300), size=1200)


def test_what_saves_no_bytes_stays_float() -> None:
    made = layers(w=(40, 16, 3, 3), tiny=(40, 16, 1, 1), small=(4, 16, 1, 1))
    plan = plan_of(made, bits=16)
    # 16 weights of 2 bytes and parameters of 8 for each channel: less than 64 bytes
    assert [one.tensor for one in plan.constants] == ["w", "tiny"]
    assert reason(plan, "small_conv") == (
        "quantizing would save no bytes: 256 as float32, about 360 as 16-bit codes with 4 scales"
    )
    # nine weights of a depthwise channel, by themselves, do save some; one does not
    depthwise = one_layer("Conv", 64, 1, 3, 3, rank=4, group=64)
    assert only(depthwise, bits=8)
    with pytest.raises(ModelError, match="quantizing would save no bytes"):
        plan_of(one_layer("Conv", 64, 1, 1, 1, rank=4, group=64), bits=8)


# ---------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("made", "asked", "used"),
    [
        (one_layer("MatMul", 96, 24), 32, 32),
        (one_layer("MatMul", 96, 24), 40, 32),
        (one_layer("MatMul", 96, 24), 90, 48),
        (one_layer("MatMul", 96, 24), 96, 0),  # that is the channel
        (one_layer("MatMul", 97, 24), 32, 0),  # a prime
        (one_layer("Gemm", 24, 96, transB=1), 32, 32),
        (one_layer("Conv", 24, 16, 3, 3, rank=4), 36, 36),
        (one_layer("ConvTranspose", 16, 24, 3, 3, rank=4), 36, 4),  # inputs, of 9 weights each
        (one_layer("ConvTranspose", 16, 24, 3, 3, rank=4), 8, 0),
        (one_layer("ConvTranspose", 32, 1, 5, 5, rank=4, group=32), 5, 5),
        (one_layer("MatMul", 4, 24, 32, position=0, rank=3), 64, 2),  # matrices, 32 weights each
        (table(40, 24), 8, 0),
        (recurrent(), 4, 0),
    ],
)
def test_group_sizes_divide(made: onnx.ModelProto, asked: int, used: int) -> None:
    plan = plan_of(made, group_size=asked)
    assert {one.group_size for one in plan.constants} == {used}
    assert plan_of(made, group_size=asked, per_channel=False).constants[0].group_size == 0


def test_groups_are_the_default_of_long_channels_only() -> None:
    assert only(one_layer("MatMul", 384, 24), group_size=None, bits=8).group_size > 0
    assert only(one_layer("MatMul", 384, 24), group_size=None, bits=9).group_size == 0
    assert only(one_layer("MatMul", 48, 24), group_size=None, bits=8).group_size == 0
    assert only(one_layer("Conv", 24, 384, 1, 1, rank=4), group_size=None).group_size == 0


def test_the_reason_tells_how_many_weights_share_a_scale() -> None:
    made = one_layer("ConvTranspose", 16, 24, 3, 3, rank=4)
    plan = plan_of(made, group_size=36, bits=4)
    assert reason(plan, "layer") == "weights 16x24x3x3 in 4 bits, a scale for every 36"
    assert reason(plan_of(made, bits=4), "layer").endswith("4 bits, a scale for each channel")
    assert reason(plan_of(made, per_channel=False), "layer").endswith("8 bits, one scale")
    assert reason(plan_of(made, bits=0), "layer").endswith("mixed bits, one step for all")
    assert reason(plan_of(recurrent(), bits=4), "layer").startswith(
        "weights 1x96x20 and 1x96x24 in 4 bits"
    )


def test_what_is_balanced() -> None:
    for made, expected in (
        (one_layer("MatMul", 96, 24), True),
        (one_layer("Gemm", 96, 24), True),
        (table(40, 24), True),
        (one_layer("Conv", 24, 96, 1, 1, rank=4), False),
    ):
        assert only(made, balanced=True).balanced == expected
        assert not only(made, balanced=True, per_channel=False).balanced
        assert not only(made).balanced


# ------------------------------------------------------------------------------------------ skip


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (("w_conv",), ["v"]),
        (("[uw]_*",), ["v"]),
        (("type:conv",), None),
        (("w_conv", "v_conv"), None),
    ],
)
def test_skipped_nodes_keep_their_weights(skip: tuple[str, ...], left: list[str] | None) -> None:
    made = layers(w=(24, 16, 3, 3), v=(24, 16, 3, 3))
    if left is None:
        with pytest.raises(ModelError, match="is named in skip_quant_node"):
            plan_of(made, skip=skip)
        return
    plan = plan_of(made, skip=skip)
    assert [one.tensor for one in plan.constants] == left
    assert reason(plan, "w_conv") == "'w_conv' is named in skip_quant_node"


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(ConfigError, match="did you mean 'w_conv'"):
        plan_of(layers(w=(24, 16, 3, 3)), skip=("w_con",))


def test_skipping_one_reader_keeps_a_shared_weight_whole() -> None:
    made = tiny.model(
        [node("MatMul", "x w", "a", "first"), node("MatMul", "a w", "y", "second")],
        {"x": [3, 40]},
        {"y": [3, 40]},
        {"w": normal(40, 40)},
    )
    assert only(made).readers == ("first", "second")
    with pytest.raises(ModelError, match="'second' is named in skip_quant_node as a reader of 'w'"):
        plan_of(made, skip=("second",))


# ---------------------------------------------------------------------------------------- others


def test_tables_are_looked_up_by_rows_only() -> None:
    assert only(table(40, 24)).table
    assert only(table(40, 24), per_channel=False).table
    assert not only(table(40, 24, axis=1)).table
    tied = tiny.model(
        [
            node("Gather", "w ids", "e", "look"),
            node("MatMul", "e w", "y", "head"),
        ],
        [tiny.info("ids", [3], TensorProto.INT64)],
        {"y": [3, 24]},
        {"w": normal(24, 24)},
    )
    assert not only(tied).table


def test_operators_that_a_target_cannot_dequantize() -> None:
    made = tiny.model(
        [node("Conv", "x w", "c", "conv"), node("MatMul", "c v", "y", "matmul")],
        {"x": ["N", 16, 4, 24]},
        {"y": [None] * 4},
        {"w": normal(24, 16, 1, 1), "v": normal(24, 24, seed=1)},
    )
    plan = plan_of(made, operators=("MatMul", "Gather"))
    assert [one.tensor for one in plan.constants] == ["v"]
    assert "only weights of MatMul, Gather" in reason(plan, "conv")


def test_nodes_without_constant_weights() -> None:
    plan = plan_of(tiny.transformer(), bits=2)
    assert decision(plan, "scores") == "untouched"
    assert reason(plan, "scores") == "its weights are not constant"
    assert reason(plan, "transpose") == "has no weights"
    assert decision(plan, "q") == "float"
    assert decision(plan, "up") == "weights"


def test_every_node_has_a_decision_and_a_reason() -> None:
    for name, make in tiny.MODELS.items():
        try:
            plan = plan_of(make(), bits=1)
        except ModelError as error:
            assert "there is nothing to quantize" in str(error), name  # noqa: PT017
            continue
        assert all(one.reason for one in plan.nodes), name
        assert {one.decision for one in plan.nodes} <= {"weights", "float", "untouched"}
        named = {label for one in plan.constants for label in one.readers}
        assert named == {one.name for one in plan.nodes if one.decision == "weights"}, name


def test_values_of_a_plan_are_those_of_its_constants() -> None:
    prepared = prepare(ir.from_proto(layers(w=(24, 16, 3, 3), v=(24, 16, 3, 3))), 13)
    plan = make_weight_plan(prepared, Thresholds(channels=0), skip=("v_conv",))
    found = weight_values(prepared.model, plan)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"].const_value.numpy(), normal(24, 16, 3, 3))


def test_nothing_to_quantize_says_why() -> None:
    made = tiny.model([node("Relu", "x", "y", "relu")], {"x": [3]}, {"y": [3]})
    with pytest.raises(ModelError, match=r"none of Conv, .*Gather.* has constant weights"):
        plan_of(made)
    made = layers(w=(4, 16, 1, 1), v=(4, 16, 1, 1))
    with pytest.raises(ModelError, match="2 x Conv: it has 4 channels"):
        plan_of(made, channels=16)
