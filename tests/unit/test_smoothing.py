"""Smoothing: what the float model computes stays, activations get easier to round."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq_core.errors import ModelError
from ptq_core.graph import operators as ops
from ptq_core.graph.model import copy_of, serialize
from ptq_core.graph.prepare import prepare
from ptq_core.smoothing import find_groups, smooth
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

CLOSE = 1e-5  # float32 rounding of factors, weights and sums, relative to the largest output
WIDTH, HEADS = 8, 2


def made(
    nodes: list[Any],
    constants: dict[str, NDArray[Any]],
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """From x[N, S, 8] to outputs of any width."""
    return tiny.model(
        nodes, {"x": ["N", "S", WIDTH]}, {one: ["N", "S", None] for one in outputs}, constants
    )


W = {name: normal(WIDTH, WIDTH, seed=i) for i, name in enumerate(("a_w", "b_w", "c_w", "d_w"))}
V = {name: normal(WIDTH, seed=i + 9) + 1.5 for i, name in enumerate(("g", "h", "i"))}
LAST = node("MatMul", "t d_w", "y", "last")
SPLIT = {"apart": np.array([0, 0, HEADS, WIDTH // HEADS]), "join": np.array([0, 0, WIDTH])}


def attention(v: str = "v", perm: tuple[int, ...] = (0, 2, 1, 3)) -> list[Any]:
    """The context of x's own probabilities and v, as ``t``."""
    return [
        node("Reshape", "x apart", "q4", "q4"),
        node("Transpose", "q4", "q", "q", perm=[0, 2, 1, 3]),
        node("Transpose", "q4", "k", "k", perm=[0, 2, 3, 1]),
        node("MatMul", "q k", "scores", "scores"),
        node("Softmax", "scores", "p", "softmax", axis=-1),
        node("MatMul", "x c_w", "v0", "value"),
        node("Add", "v0 g", "v", "value_bias"),
        node("Reshape", f"{v} apart", "v4", "v4"),
        node("Transpose", "v4", "vt", "vt", perm=[0, 2, 1, 3]),
        node("MatMul", "p vt", "mixed", "mixed"),
        node("Transpose", "mixed", "back", "back", perm=list(perm)),
        node("Reshape", "back join", "t", "joined"),
    ]


FOLDS: dict[str, tuple[list[Any], dict[str, NDArray[Any]], bool]] = {
    "layer norm": ([node("LayerNormalization", "x g h", "t", "norm"), LAST], {}, True),
    "layer norm without bias": ([node("LayerNormalization", "x g", "t", "norm"), LAST], {}, True),
    "mul by a vector": ([node("Mul", "x g", "t", "scale"), LAST], {}, True),
    "mul, constant first": ([node("Mul", "g x", "t", "scale"), LAST], {}, True),
    "matmul with bias": (
        [node("MatMul", "x a_w", "m", "up"), node("Add", "g m", "t", "bias"), LAST],
        {},
        True,
    ),
    "relu": ([node("MatMul", "x a_w", "m", "up"), node("Relu", "m", "t", "relu"), LAST], {}, True),
    "leaky relu and identity": (
        [
            node("MatMul", "x a_w", "m", "up"),
            node("LeakyRelu", "m", "r", "relu", alpha=0.2),
            node("Identity", "r", "t", "same"),
            LAST,
        ],
        {},
        True,
    ),
    "swiglu": (
        [
            node("MatMul", "x a_w", "gate", "gate"),
            node("Sigmoid", "gate", "s", "sigmoid"),
            node("Mul", "gate s", "silu", "silu"),
            node("MatMul", "x b_w", "up", "up"),
            node("Mul", "silu up", "t", "product"),
            LAST,
        ],
        {},
        True,
    ),
    "attention": ([*attention(), LAST], SPLIT, True),
    "add of a vector behind a mul": (
        [node("Mul", "x g", "m", "scale"), node("Add", "m h", "t", "shift"), LAST],
        {},
        True,
    ),
    "a number on the way": (
        [node("Mul", "x g", "m", "scale"), node("Mul", "m half", "t", "halve"), LAST],
        {"half": np.array(0.5, np.float32)},
        True,
    ),
    "two sums": (
        [
            node("MatMul", "x a_w", "m", "one"),
            node("MatMul", "x b_w", "n", "two"),
            node("Add", "m n", "t", "sum"),
            LAST,
        ],
        {},
        True,
    ),
    # below: the divisor takes a node
    "input": ([node("MatMul", "x d_w", "y", "last")], {}, False),
    "residual": (
        [
            node("LayerNormalization", "x g h", "t", "norm"),
            node("MatMul", "t d_w", "m", "last"),
            node("Add", "m t", "y", "sum"),
        ],
        {},
        False,
    ),
    "gelu": ([node("MatMul", "x a_w", "m", "up"), node("Sigmoid", "m", "t", "s"), LAST], {}, False),
    "square": (
        [node("MatMul", "x a_w", "m", "up"), node("Mul", "m m", "t", "square"), LAST],
        {},
        False,
    ),
    "double": (
        [node("MatMul", "x a_w", "m", "up"), node("Add", "m m", "t", "double"), LAST],
        {},
        False,
    ),
    "relu and shift": (
        [
            node("MatMul", "x a_w", "m", "up"),
            node("Add", "m one", "t", "shift"),
            LAST,
        ],
        {"one": np.array(1.0, np.float32)},
        False,
    ),
    "attention, heads not merged alike": (
        [*attention(perm=(0, 3, 1, 2)), LAST],
        {"apart": SPLIT["apart"], "join": np.array([0, -1, WIDTH])},
        False,
    ),
    "attention, values read twice": (
        [*attention(), node("MatMul", "t d_w", "m", "last"), node("Add", "m v", "y", "sum")],
        SPLIT,
        False,
    ),
}


def constants_of(nodes: list[Any], more: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    used = {name for one in nodes for name in one.input}
    return {name: array for name, array in {**W, **V, **more}.items() if name in used}


def outputs_of(model: ir.Model, fed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return list(tiny.run(serialize(model), fed).values())


def assert_same(before: list[NDArray[Any]], after: list[NDArray[Any]]) -> None:
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=CLOSE * np.abs(a).max())


@pytest.mark.parametrize("name", FOLDS)
def test_the_float_model_computes_the_same(name: str) -> None:
    nodes, more, folds = FOLDS[name]
    proto = made(nodes, constants_of(nodes, more))
    model = prepare(ir.from_proto(proto), 13).model
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    last = {ops.key(one) for one in model.graph if "d_w" in {v.name for v in one.inputs if v}}
    (group,) = find_groups(model.graph, last)
    assert (group.channels, group.folds) == (WIDTH, folds)
    nodes_before = len(model.graph)
    weight = np.array(ops.constant(model.graph.initializers["d_w"]))

    divisor = np.geomspace(0.05, 40, WIDTH)
    read = smooth(model, [group], {group.source: divisor})

    assert_same(before, outputs_of(model, fed))
    assert len(model.graph) == nodes_before + (not folds)
    assert (read == {group.source: group.source}) is folds
    found = np.array(ops.constant(model.graph.initializers["d_w"]))
    np.testing.assert_allclose(found, weight * divisor[:, None], rtol=1e-6)
    (reader,) = (one for one in model.graph if ops.key(one) in last)
    assert reader.inputs[0] is not None
    assert reader.inputs[0].name == read[group.source]


def test_a_group_folds_only_as_a_whole() -> None:
    """The other reader of the normalization stays as it is; a Mul is for the group alone."""
    nodes = [
        node("LayerNormalization", "x g h", "t", "norm"),
        node("MatMul", "t a_w", "y", "one"),
        node("MatMul", "t b_w", "z", "two"),
    ]
    proto = made(nodes, constants_of(nodes, {}), ("y", "z"))
    model = prepare(ir.from_proto(proto), 13).model
    keys = [ops.key(one) for one in model.graph if one.op_type == "MatMul"]
    (both,) = find_groups(model.graph, keys)
    assert both.folds
    assert len(both.layers) == 2
    (one,) = find_groups(model.graph, keys[:1])
    assert not one.folds
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    smooth(model, [one], {one.source: np.geomspace(0.1, 10, WIDTH)})
    assert_same(before, outputs_of(model, fed))


def test_constants_that_others_read_are_copied() -> None:
    """Two normalizations with one scale, two layers with one matrix; one group is smoothed."""
    nodes = [
        node("LayerNormalization", "x g h", "t", "norm"),
        node("MatMul", "t d_w", "m", "one"),
        node("LayerNormalization", "m g h", "u", "norm2"),
        node("MatMul", "u d_w", "y", "two"),
    ]
    proto = made(nodes, constants_of(nodes, {}))
    model = prepare(ir.from_proto(proto), 13).model
    keys = [ops.key(one) for one in model.graph if one.op_type == "MatMul"]
    first, second = find_groups(model.graph, keys)
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    copy = copy_of(model)
    divisors = {first.source: np.geomspace(0.1, 10, WIDTH)}
    smooth(model, [first, second], divisors)
    assert_same(before, outputs_of(model, fed))
    divisors[second.source] = np.geomspace(3, 0.3, WIDTH)
    smooth(copy, [first, second], divisors)
    assert_same(before, outputs_of(copy, fed))


def test_one_square_matrix_read_both_ways() -> None:
    nodes = [
        node("Gemm", "x d_w", "y", "plain"),
        node("Gemm", "x d_w", "z", "turned", transB=1),
        node("Gemm", "x d_w", "w", "plain2"),
    ]
    proto = tiny.model(
        nodes, {"x": ["N", WIDTH]}, {one: ["N", WIDTH] for one in "yzw"}, {"d_w": W["d_w"]}
    )
    model = prepare(ir.from_proto(proto), 13).model
    (group,) = find_groups(model.graph, {ops.key(one) for one in model.graph})
    assert {layer.axis for layer in group.layers} == {0, 1}
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    smooth(model, [group], {"x": np.geomspace(0.1, 10, WIDTH)})
    assert_same(before, outputs_of(model, fed))


@pytest.mark.parametrize("turned", [0, 1])
def test_gemm_with_bias_before_gemm(turned: int) -> None:
    proto = tiny.model(
        [node("Gemm", "x a b", "t", "up", transB=turned), node("Gemm", "t c", "y", "down")],
        {"x": ["N", 6]},
        {"y": ["N", 3]},
        {
            "a": normal(*((5, 6) if turned else (6, 5))),
            "b": normal(5, seed=1),
            "c": normal(5, 3, seed=2),
        },
    )
    model = prepare(ir.from_proto(proto), 13).model
    (group,) = find_groups(model.graph, {"y"} | {ops.key(one) for one in list(model.graph)[1:]})
    assert group.folds
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    smooth(model, [group], {group.source: np.geomspace(0.1, 10, 5)})
    assert_same(before, outputs_of(model, fed))


def test_a_vector_has_no_channels_to_divide() -> None:
    """x[N, 8, 8] times a vector: the result's last axis is not the vector's."""
    nodes = [node("MatMul", "x g", "t", "dot"), node("MatMul", "t d_w", "y", "last")]
    proto = tiny.model(
        nodes, {"x": ["N", WIDTH, WIDTH]}, {"y": ["N", WIDTH]}, {"g": V["g"], "d_w": W["d_w"]}
    )
    model = prepare(ir.from_proto(proto), 13).model
    (group,) = find_groups(model.graph, {ops.key(list(model.graph)[-1])})
    assert not group.folds


def test_a_result_of_the_model_keeps_its_values() -> None:
    nodes = [node("LayerNormalization", "x g h", "t", "norm"), LAST]
    proto = made(nodes, constants_of(nodes, {}), ("y", "t"))
    model = prepare(ir.from_proto(proto), 13).model
    (group,) = find_groups(model.graph, {ops.key(list(model.graph)[-1])})
    assert not group.folds
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    smooth(model, [group], {"t": np.geomspace(0.1, 10, WIDTH)})
    assert_same(before, outputs_of(model, fed))


def test_a_matrix_that_the_group_shares_is_multiplied_once() -> None:
    nodes = [
        node("LayerNormalization", "x g h", "t", "norm"),
        node("MatMul", "t d_w", "y", "one"),
        node("MatMul", "t d_w", "z", "two"),
    ]
    proto = made(nodes, constants_of(nodes, {}), ("y", "z"))
    model = prepare(ir.from_proto(proto), 13).model
    (group,) = find_groups(model.graph, {ops.key(one) for one in model.graph})
    constants = set(model.graph.initializers)
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    smooth(model, [group], {"t": np.geomspace(0.1, 10, WIDTH)})
    assert_same(before, outputs_of(model, fed))
    assert set(model.graph.initializers) == constants


@pytest.mark.parametrize(
    ("name", "divisor", "message"),
    [
        ("t", np.ones(WIDTH + 1), "'t' has 8 channels, stored are 9"),
        ("other", np.ones(WIDTH), "'other' has none channels, stored are 8"),
        ("t", np.r_[0.0, np.ones(WIDTH - 1)], "'t' .* positive"),
        ("t", np.r_[-1.0, np.ones(WIDTH - 1)], "'t' .* positive"),
    ],
)
def test_divisors_of_another_model_are_refused(
    name: str, divisor: NDArray[Any], message: str
) -> None:
    nodes, more, _ = FOLDS["layer norm"]
    model = prepare(ir.from_proto(made(nodes, constants_of(nodes, more))), 13).model
    groups = find_groups(model.graph, {ops.key(one) for one in model.graph})
    before = serialize(model)
    with pytest.raises(ModelError, match=message):
        smooth(model, groups, {name: divisor})
    assert serialize(model) == before


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([name for name, (*_, folds) in FOLDS.items() if folds]),
    exponents=st.lists(st.floats(-3, 3), min_size=WIDTH, max_size=WIDTH),
)
def test_any_divisor_folds(name: str, exponents: list[float]) -> None:
    nodes, more, _ = FOLDS[name]
    proto = made(nodes, constants_of(nodes, more))
    model = prepare(ir.from_proto(proto), 13).model
    fed = tiny.feeds(proto)
    before = outputs_of(model, fed)
    groups = find_groups(model.graph, {ops.key(list(model.graph)[-1])})
    smooth(model, groups, {groups[0].source: 10.0 ** np.array(exponents)})
    for a, b in zip(before, outputs_of(model, fed), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2 * CLOSE * np.abs(a).max())
