from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from ptq_core.errors import ModelError
from ptq_core.graph.model import serialize
from ptq_core.graph.operators import label
from ptq_core.graph.prepare import prepare
from ptq_core.graph.prepared import Prepared
from tests import tiny_models as tiny
from tests.tiny_models import Arrays, node, normal

# Folding rounds each weight once more; a few hundred products are added up.
CLOSE = 2e-5
HALF = 2e-3  # the original computes in float16, with 11 bits


def prepared_from(made: onnx.ModelProto, minimum_opset: int = 13) -> Prepared:
    return prepare(ir.from_proto(made), minimum_opset)


def types(prepared: Prepared) -> list[str]:
    return [one.op_type for one in prepared.model.graph]


def names_of(prepared: Prepared, name: str) -> tuple[str, ...]:
    """All names of the node that one of them addresses."""
    found = [one for one in prepared.model.graph if name in prepared.names(one)]
    assert len(found) == 1, f"{name} addresses {len(found)} nodes"
    return prepared.names(found[0])


def as_single(given: Arrays) -> Arrays:
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in given.items()
    }


def assert_same(made: onnx.ModelProto, minimum_opset: int = 13, close: float = CLOSE) -> Prepared:
    """The prepared model computes the same under the same names."""
    prepared = prepared_from(made, minimum_opset)
    content = serialize(prepared.model)
    onnx.checker.check_model(content, full_check=True)
    for seed in range(3):
        given = tiny.feeds(made, seed)
        before, after = tiny.run(made, given), tiny.run(content, as_single(given))
        assert list(before) == list(after)
        for name, wanted in before.items():
            largest = float(np.abs(wanted.astype(np.float32)).max())
            np.testing.assert_allclose(after[name], wanted, rtol=close, atol=close * largest)
    return prepared


# ------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_function_and_the_names_stay(name: str) -> None:
    made = tiny.MODELS[name]()
    initializers = {one.name for one in made.graph.initializer}
    inputs = [one.name for one in made.graph.input if one.name not in initializers]
    prepared = assert_same(made, close=HALF if name == "half" else CLOSE)
    assert [value.name for value in prepared.model.graph.inputs] == inputs
    assert [value.name for value in prepared.model.graph.outputs] == [
        one.name for one in made.graph.output
    ]
    for before, after in zip(made.graph.output, prepared.model.graph.outputs, strict=True):
        shape = [dim.dim_value or dim.dim_param for dim in before.type.tensor_type.shape.dim]
        assert after.shape is not None
        assert [dim if isinstance(dim, int) else dim.value for dim in after.shape] == shape


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_node_can_be_addressed_or_is_listed_as_removed(name: str) -> None:
    made = tiny.MODELS[name]()
    before = {one.name or one.output[0] for one in made.graph.node if one.op_type != "Constant"}
    prepared = prepared_from(made)
    known = {alias for one in prepared.model.graph for alias in prepared.names(one)}
    lost = before - known - set(prepared.removed)
    assert not lost
    assert all(prepared.removed.values())


@pytest.mark.parametrize("name", ["conv_bn_relu", "opset_9", "pad_channel_shortcut", "half"])
def test_the_same_model_gives_the_same_bytes(name: str) -> None:
    made = tiny.MODELS[name]()
    first, second = (serialize(prepared_from(made).model) for _ in range(2))
    assert first == second


# ------------------------------------------------------------------------------------ folding


def test_batch_normalization_is_folded_and_its_name_reaches_the_convolution() -> None:
    prepared = assert_same(tiny.conv_bn_relu())
    assert "BatchNormalization" not in types(prepared)
    assert {"conv1", "bn1", "n1"} <= set(names_of(prepared, "bn1"))
    assert {"conv2", "bn2"} <= set(names_of(prepared, "conv2"))


def test_unnamed_nodes_are_addressed_by_their_output() -> None:
    prepared = assert_same(tiny.unnamed())
    assert {"c1", "n1"} <= set(names_of(prepared, "n1"))
    assert names_of(prepared, "r1")[0] == "r1"


def test_shared_weights_are_folded_for_the_right_consumer_only() -> None:
    made = tiny.shared_weights()
    prepared = assert_same(made)
    second = next(one for one in prepared.model.graph if label(one) == "second")
    weight = second.inputs[1]
    assert weight is not None
    assert weight.name == "w"
    assert weight.const_value is not None
    np.testing.assert_array_equal(
        weight.const_value.numpy(), onnx.numpy_helper.to_array(made.graph.initializer[0])
    )


def conv_then(
    nodes: list[Any],
    constants: Arrays,
    outputs: dict[str, list[int | str]] | None = None,
    **conv: Any,
) -> onnx.ModelProto:
    """A convolution x -> c of 4 channels with a bias, and what follows up to y."""
    return tiny.model(
        [node("Conv", "x w b", "c", "conv", **conv), *nodes],
        {"x": ["N", 3, 5, 5]},
        outputs or {"y": ["N", 4, 5, 5]},
        {"w": normal(4, 3, 1, 1), "b": normal(4, seed=1), **constants},
    )


PER_CHANNEL = normal(1, 4, 1, 1, seed=5, scale=1.0)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("inputs", ["c k", "k c"])
@pytest.mark.parametrize(
    "constant",
    [PER_CHANNEL, PER_CHANNEL[0], np.array(1.7, np.float32), np.full((1, 1, 1, 1), 3, np.float32)],
    ids=lambda array: str(array.shape),
)
def test_a_constant_for_each_channel_is_folded(
    op_type: str, inputs: str, constant: np.ndarray
) -> None:
    prepared = assert_same(conv_then([node(op_type, inputs, "y", "scale")], {"k": constant}))
    if (op_type, inputs) == ("Div", "k c"):  # not affine
        assert types(prepared) == ["Conv", "Div"]
    else:
        assert types(prepared) == ["Conv"]
        assert "scale" in names_of(prepared, "conv")


def test_a_chain_is_folded_as_one() -> None:
    chain = [
        node("Mul", "c k", "m", "scale"),
        tiny.bn("bn", "m", "n"),
        node("Add", "k n", "a", "shift"),
        node("Sub", "two a", "y", "flip"),
    ]
    constants = {"k": PER_CHANNEL, "two": np.array([2], np.float32), **tiny.batch_norm("bn", 4)}
    prepared = assert_same(conv_then(chain, constants))
    assert types(prepared) == ["Conv"]
    assert {"conv", "scale", "bn", "shift", "flip"} <= set(names_of(prepared, "conv"))


@pytest.mark.parametrize(
    "constant",
    [
        normal(1, 1, 5, 5, seed=5),  # varies over the picture
        normal(5, seed=5),  # over its last axis
        normal(1, 1, 1, 5, seed=5),
        normal(2, 4, 1, 1, seed=5),  # over the batch
        normal(1, 1, 4, 1, 1, seed=5),  # adds an axis
    ],
    ids=lambda array: str(array.shape),
)
def test_a_constant_that_varies_otherwise_is_not_folded(constant: np.ndarray) -> None:
    shape: list[int | str] = [1] if constant.ndim == 5 else []
    made = conv_then(
        [node("Mul", "c k", "y", "scale")], {"k": constant}, {"y": [*shape, "N", 4, 5, 5]}
    )
    assert types(assert_same(made)) == ["Conv", "Mul"]


def test_a_constant_as_long_as_the_picture_is_wide_is_not_taken_for_channels() -> None:
    """[4] lies along the last axis even where that is as long as the channel axis."""
    made = tiny.model(
        [node("Conv", "x w", "c", "conv"), node("Add", "c k", "y", "add")],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 4, 4, 4]},
        {"w": normal(4, 3, 1, 1), "k": normal(4, seed=3)},
    )
    assert types(assert_same(made)) == ["Conv", "Add"]


def test_gemm_takes_the_bias_behind_it() -> None:
    made = tiny.model(
        [node("Gemm", "x w b", "g", "fc", beta=0.5, alpha=2.0), node("Mul", "g k", "y", "scale")],
        {"x": ["N", 3]},
        {"y": ["N", 4]},
        {"w": normal(3, 4), "b": normal(4, seed=1), "k": normal(4, seed=2)},
    )
    assert types(assert_same(made)) == ["Gemm"]


def test_gemm_whose_bias_differs_by_row_is_left_alone() -> None:
    made = tiny.model(
        [node("Gemm", "x w b", "g", "fc"), node("Mul", "g k", "y", "scale")],
        {"x": [4, 3]},
        {"y": [4, 4]},
        {"w": normal(3, 4), "b": normal(4, 1, seed=1), "k": normal(4, seed=2)},
    )
    assert_same(made)


def test_batch_normalization_behind_a_tensor_that_others_read_is_not_folded() -> None:
    made = conv_then(
        [tiny.bn("bn", "c", "n"), node("Add", "c n", "y", "add")], tiny.batch_norm("bn", 4)
    )
    assert types(assert_same(made)) == ["Conv", "BatchNormalization", "Add"]


def test_batch_normalization_behind_a_graph_output_is_not_folded() -> None:
    made = conv_then(
        [tiny.bn("bn", "c", "y")],
        tiny.batch_norm("bn", 4),
        {"c": ["N", 4, 5, 5], "y": ["N", 4, 5, 5]},
    )
    assert types(assert_same(made)) == ["Conv", "BatchNormalization"]


def test_a_tensor_added_to_itself_is_not_folded() -> None:
    assert types(assert_same(conv_then([node("Add", "c c", "y", "twice")], {}))) == ["Conv", "Add"]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_grouped_transposed_convolutions_are_folded_right(group: int) -> None:
    made = tiny.model(
        [
            node("ConvTranspose", "x w", "t", "up", group=group, strides=[2, 2]),
            tiny.bn("bn", "t", "y"),
        ],
        {"x": ["N", 6, 3, 3]},
        {"y": ["N", 6, 6, 6]},
        {"w": normal(6, 6 // group, 2, 2), **tiny.batch_norm("bn", 6)},
    )
    assert types(assert_same(made)) == ["ConvTranspose"]


def test_one_dimensional_convolutions_are_folded() -> None:
    made = tiny.model(
        [node("Conv", "x w", "c", "conv"), tiny.bn("bn", "c", "n"), node("Add", "n k", "y", "add")],
        {"x": ["N", 3, 6]},
        {"y": ["N", 4, 4]},
        {"w": normal(4, 3, 3), "k": normal(4, 1, seed=3), **tiny.batch_norm("bn", 4)},
    )
    assert types(assert_same(made)) == ["Conv"]


# --------------------------------------------------------------------------------------- pads


def padded(amounts: list[int], extra: str = "", mode: str = "constant", **conv: Any) -> Any:
    """A Pad in front of a convolution; ``extra`` names more inputs of the Pad."""
    size = [6 + amounts[i] + amounts[i + 4] for i in (2, 3)]
    constants = {
        "pads": np.array(amounts),
        "w": normal(4, 3 + amounts[1] + amounts[5], 1, 1),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
    }
    used = {"pads", "w", *extra.split()}
    own = conv.get("pads", [0] * 4)
    return tiny.model(
        [
            node("Pad", f"x pads {extra}", "p", "pad", mode=mode),
            node("Conv", "p w", "y", "conv", **conv),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["B", 4, size[0] + own[0] + own[2], size[1] + own[1] + own[3]]},
        {name: array for name, array in constants.items() if name in used},
    )


@pytest.mark.parametrize("extra", ["", "zero"])
def test_pads_of_zeros_go_into_the_convolution(extra: str) -> None:
    made = padded([0, 0, 1, 2, 0, 0, 3, 0], extra, pads=[1, 0, 0, 1])
    prepared = assert_same(made)
    assert types(prepared) == ["Conv"]
    assert {"conv", "pad"} <= set(names_of(prepared, "pad"))


@pytest.mark.parametrize(
    ("pads", "extra", "mode"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], "one", "constant"),
        ([0, 0, 1, 1, 0, 0, 1, 1], "", "reflect"),
        ([0, 0, 1, 1, 0, 0, 1, 1], "", "edge"),
        ([0, 0, -1, 0, 0, 0, 0, -1], "", "constant"),
        ([0, 0, 2, 0, 0, 0, 0, -1], "", "constant"),
        ([1, 0, 0, 0, 0, 0, 0, 0], "", "constant"),
    ],
)
def test_other_pads_stay(pads: list[int], extra: str, mode: str) -> None:
    assert types(assert_same(padded(pads, extra, mode))) == ["Pad", "Conv"]


def test_pads_stay_in_front_of_a_convolution_that_pads_by_itself() -> None:
    made = padded([0, 0, 1, 1, 0, 0, 1, 1], auto_pad="SAME_UPPER")
    assert types(assert_same(made)) == ["Pad", "Conv"]


def test_pads_go_into_a_convolution_with_valid_padding() -> None:
    assert types(assert_same(padded([0, 0, 1, 1, 0, 0, 1, 1], auto_pad="VALID"))) == ["Conv"]


def test_pads_that_a_pool_reads_too_stay() -> None:
    made = tiny.model(
        [
            node("Pad", "x pads", "p", "pad"),
            node("Conv", "p w", "y", "conv"),
            node("MaxPool", "p", "m", "pool", kernel_shape=[2, 2]),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 4, 8, 8], "m": ["N", 3, 7, 7]},
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": normal(4, 3, 1, 1)},
    )
    assert types(assert_same(made)) == ["Pad", "Conv", "MaxPool"]


def test_pads_go_into_every_convolution_that_reads_them() -> None:
    made = tiny.model(
        [
            node("Pad", "x pads", "p", "pad"),
            node("Conv", "p w", "y", "conv1"),
            node("Conv", "p w", "z", "conv2", pads=[1, 1, 1, 1]),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 4, 8, 8], "z": ["N", 4, 10, 10]},
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": normal(4, 3, 1, 1)},
    )
    prepared = assert_same(made)
    assert types(prepared) == ["Conv", "Conv"]
    assert all("pad" in prepared.names(one) for one in prepared.model.graph)


def test_pads_with_axes_of_their_own_are_not_misread() -> None:
    made = tiny.model(
        [node("Pad", "x pads _ axes", "p", "pad"), node("Conv", "p w", "y", "conv")],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 4, 8, 8]},
        {"pads": np.array([1, 1, 1, 1]), "axes": np.array([2, 3]), "w": normal(4, 3, 1, 1)},
        opset=18,
    )
    assert_same(made)


def test_a_shortcut_of_slices_and_channel_pad_becomes_one_strided_convolution() -> None:
    prepared = assert_same(tiny.pad_channel_shortcut())
    assert types(prepared).count("Conv") == 4
    assert not {"Slice", "Pad"} & set(types(prepared))
    assert {"pad", "slice_h", "slice_w"} <= set(names_of(prepared, "pad"))


def test_a_channel_pad_of_integers_is_no_convolution() -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "y", "conv"),
            node("Pad", "k pads", "z", "pad"),
        ],
        [
            tiny.info("x", ["N", 3, 2, 2]),
            tiny.info("k", [1, 2, 3, 3], TensorProto.INT32),
        ],
        [
            tiny.info("y", ["N", 3, 2, 2]),
            tiny.info("z", [1, 3, 3, 3], TensorProto.INT32),
        ],
        {"w": normal(3, 3, 1, 1), "pads": np.array([0, 1, 0, 0, 0, 0, 0, 0])},
    )
    assert types(assert_same(made)) == ["Conv", "Pad"]


@pytest.mark.parametrize(("start", "step"), [(1, 2), (0, 3)])
def test_a_slice_that_begins_elsewhere_is_not_a_stride(start: int, step: int) -> None:
    made = tiny.pad_channel_shortcut()
    arrays = {"start_h": np.array([start]), "step": np.array([step])}
    for tensor in made.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    conv1 = next(one for one in made.graph.node if one.name == "conv1")
    for attribute in conv1.attribute:
        if attribute.name == "strides":
            attribute.ints[:] = [step, step]
    made.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 6 // step
    made.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 6 // step
    prepared = assert_same(made)
    assert ("Slice" in types(prepared)) == (start == 1)


# -------------------------------------------------------------------------------------- means


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_mean_over_the_picture_becomes_a_pool(opset: int, keep: int, axes: list[int]) -> None:
    written = {"axes": axes} if opset < 18 else {}
    made = tiny.model(
        [node("ReduceMean", "x" + (" axes" if not written else ""), "y", "mean", keepdims=keep,
              **written)],
        {"x": ["N", 3, 5, 5]},
        {"y": ["N", 3, 1, 1] if keep else ["N", 3]},
        {} if written else {"axes": np.array(axes)},
        opset=opset,
    )  # fmt: skip
    prepared = assert_same(made)
    assert types(prepared) == ["GlobalAveragePool"] + ["Squeeze"] * (not keep)
    assert all("mean" in prepared.names(one) for one in list(prepared.model.graph)[:1])


@pytest.mark.parametrize("axes", [[1, 2, 3], [2], [1, 2]])
def test_other_means_stay(axes: list[int]) -> None:
    made = tiny.model(
        [node("ReduceMean", "x", "y", "mean", keepdims=1, axes=axes)],
        {"x": ["N", 3, 5, 5]},
        {"y": ["N", *(1 if axis in axes else size for axis, size in ((1, 3), (2, 5), (3, 5)))]},
    )
    assert types(assert_same(made)) == ["ReduceMean"]


def test_the_mean_of_integers_stays() -> None:
    made = tiny.model(
        [node("ReduceMean", "x", "y", "mean", axes=[2, 3])],
        [tiny.info("x", [1, 3, 4, 4], TensorProto.INT32)],
        [tiny.info("y", [1, 3, 1, 1], TensorProto.INT32)],
    )
    assert types(assert_same(made)) == ["ReduceMean"]


# -------------------------------------------------------------------- what does nothing, constants


def test_identity_and_dropout_go_and_say_so() -> None:
    made = conv_then(
        [
            node("Identity", "c", "i", "identity"),
            node("Dropout", "i", "d", "dropout"),
            node("Relu", "d", "y", "relu"),
        ],
        {},
    )
    prepared = assert_same(made)
    assert types(prepared) == ["Conv", "Relu"]
    assert "does nothing in inference" in prepared.removed["identity"]
    assert "does nothing in inference" in prepared.removed["dropout"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        pytest.param([node("Identity", "c", "y")], {}, id="is an output"),
        pytest.param(
            [node("Identity", "c", "y"), node("Identity", "c", "z")],
            {"z": ["N", 4, 5, 5]},
            id="two outputs of one",
        ),
        pytest.param(
            [node("Identity", "c", "y"), node("Relu", "c", "z")],
            {"z": ["N", 4, 5, 5]},
            id="source is read too",
        ),
        pytest.param(
            [node("Identity", "c", "y")], {"c": ["N", 4, 5, 5]}, id="source is an output too"
        ),
        pytest.param(
            [node("Relu", "c", "y"), node("Identity", "x", "z")],
            {"z": ["N", 3, 5, 5]},
            id="of an input",
        ),
        pytest.param(
            [node("Relu", "c", "y"), node("Identity", "b", "z")], {"z": [4]}, id="of a constant"
        ),
    ],
)
def test_identities_at_the_ends_keep_the_names(nodes: list[Any], outputs: dict[str, Any]) -> None:
    assert_same(conv_then(nodes, {}, {"y": ["N", 4, 5, 5], **outputs}))


def test_dropout_whose_mask_is_used_stays() -> None:
    made = conv_then(
        [node("Dropout", "c", "y mask", "dropout"), node("Not", "mask", "z", "not")],
        {},
    )
    made.graph.output.append(tiny.info("z", ["N", 4, 5, 5], TensorProto.BOOL))
    assert "Dropout" in types(assert_same(made))


def test_constant_chains_are_folded() -> None:
    """As exporters leave them: a weight behind Transpose and Identity, shapes computed anew."""
    made = tiny.model(
        [
            node("Constant", "", "two", "constant", value_ints=[1, 0]),
            node("Identity", "w", "w1", "copy"),
            node("Transpose", "w1", "wt", "turn", perm=[1, 0]),
            node("Shape", "x", "s", "shape"),
            node("Gather", "s zero", "first", "gather"),
            node("Concat", "first minus", "target", "concat", axis=0),
            node("Reshape", "x target", "f", "reshape"),
            node("MatMul", "f wt", "y", "fc"),
        ],
        {"x": [2, 3, 4]},
        {"y": [2, 5]},
        {"w": normal(5, 12), "zero": np.array([0]), "minus": np.array([-1])},
    )
    prepared = assert_same(made)
    assert types(prepared) == ["Reshape", "MatMul"]
    assert {"copy", "turn", "shape", "gather", "concat"} <= set(prepared.removed)


def test_a_constant_result_that_is_an_output_stays_an_output() -> None:
    made = conv_then([node("Relu", "c", "y"), node("Neg", "b", "z", "neg")], {})
    made.graph.output.append(tiny.info("z", [4]))
    assert_same(made)


def test_huge_constants_are_not_stored() -> None:
    made = tiny.model(
        [
            node("ConstantOfShape", "s", "k", "fill"),
            node("ReduceSum", "k", "r", "sum", keepdims=0),
            node("Add", "x r", "y", "add"),
        ],
        {"x": ["N", 3]},
        {"y": ["N", 3]},
        {"s": np.array([1024, 2048])},
    )
    assert "ConstantOfShape" in types(assert_same(made))


def test_random_nodes_are_not_constants() -> None:
    made = tiny.model(
        [node("RandomNormal", "", "r", "noise", shape=[3]), node("Add", "x r", "y", "add")],
        {"x": ["N", 3]},
        {"y": ["N", 3]},
    )
    assert types(prepared_from(made)) == ["RandomNormal", "Add"]


# ---------------------------------------------------------------------------- bodies, float16


def test_bodies_and_functions_stay_as_they_are() -> None:
    made = tiny.control_flow()
    prepared = assert_same(made)
    after = onnx.load_from_string(serialize(prepared.model))

    def bodies(proto: onnx.ModelProto) -> list[str]:
        if_node = next(one for one in proto.graph.node if one.op_type == "If")
        return [
            f"{one.op_type} {list(one.input)} {list(one.output)}"
            for attribute in if_node.attribute
            for one in attribute.g.node
        ]

    assert bodies(after) == bodies(made)
    assert [one.name for one in prepared_from(tiny.functions()).model.functions.values()] == [
        "Swish"
    ]


def test_float16_is_widened_with_a_note() -> None:
    prepared = assert_same(tiny.half(), close=HALF)
    assert any("float16" in note for note in prepared.notes)
    proto = onnx.load_from_string(serialize(prepared.model))
    half = TensorProto.FLOAT16
    assert all(one.data_type != half for one in proto.graph.initializer)
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    assert all(value.type.tensor_type.elem_type != half for value in values)


def test_a_float32_model_has_no_notes() -> None:
    assert prepared_from(tiny.conv_bn_relu()).notes == []


def test_float16_inside_a_body_is_widened_too() -> None:
    made = tiny.control_flow()
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for one in made.graph.node:
        for attribute in one.attribute:
            for value in attribute.g.output:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert_same(made, close=HALF)


# -------------------------------------------------------------------------------------- opset


@pytest.mark.parametrize("minimum", [10, 13, 17, 21])
def test_an_old_model_is_raised_as_far_as_needed(minimum: int) -> None:
    prepared = assert_same(tiny.opset_9(), minimum)
    assert prepared.model.graph.opset_imports[""] == minimum
    assert prepared.notes == [f"opset raised from 9 to {minimum}"]


def test_a_newer_model_keeps_its_opset() -> None:
    prepared = prepared_from(tiny.conv_bn_relu(), 13)
    assert prepared.model.graph.opset_imports[""] == tiny.OPSET
    assert prepared.notes == []


@pytest.mark.parametrize(("name", "what"), [("control_flow", "'if'"), ("functions", "functions")])
def test_models_with_bodies_cannot_be_raised_and_say_so(name: str, what: str) -> None:
    made = tiny.MODELS[name]()
    with pytest.raises(ModelError, match=what) as caught:
        prepared_from(made, 19)
    assert "opset 19 or newer" in str(caught.value)


@pytest.mark.parametrize("opset", [8, 9])
def test_an_operator_that_newer_opsets_lack_is_replaced(opset: int) -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    made = tiny.model(
        [
            node("Upsample", "x", "y", "up", mode="nearest", scales=scales.tolist())
            if opset == 8
            else node("Upsample", "x scales", "y", "up", mode="nearest")
        ],
        {"x": [1, 1, 2, 2]},
        {"y": [1, 1, 4, 4]},
        {} if opset == 8 else {"scales": scales},
        opset=opset,
        ir_version=4,
    )
    prepared = assert_same(made)
    assert types(prepared) == ["Resize"]
    assert names_of(prepared, "up")


def test_names_of_nodes_stay_unique() -> None:
    """A node without a name is called after its output, which may be another node's name."""
    made = conv_then([node("Relu", "c", "r", "y"), node("Tanh", "r", "y")], {})
    prepared = assert_same(made)
    names = [one.name for one in prepared.model.graph]
    assert len(set(names)) == len(names)


def test_the_long_name_of_onnx_own_domain_counts_as_the_short_one():
    made = tiny.model([node("Relu", "x", "y")], {"x": [1]}, {"y": [1]})
    made.opset_import[0].domain = made.graph.node[0].domain = "ai.onnx"
    prepared = prepared_from(made)
    assert prepared.model.graph.opset_imports == {"": tiny.OPSET}
    assert [one.domain for one in prepared.model.graph] == [""]
