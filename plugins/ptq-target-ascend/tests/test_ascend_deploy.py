"""The deploy file computes what the file with Q/DQ computes, in the form that AMCT writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

import ptq_core
from ptq_core.api import Deployment, NodeFacts
from ptq_core.errors import InputError
from ptq_target_ascend import keep_float, lower
from ptq_target_ascend.deploy import pack_scale, serialized, to_deploy, unpack_scale
from ptq_target_ascend.layers import find_layers
from ptq_target_ascend.reference import runnable
from tests import tiny_models as tiny
from tests.tiny_models import Arrays, node, normal

# float32 scales what integers have summed up exactly, in another order of products
ROUNDING = 1e-6
# x * (1 / s) and x / s round some values that lie between two codes to different ones
FLIPS_PER_MILLION = 1000
SAMPLES = 6
NETWORKS = (
    "conv_bn_relu", "depthwise_relu6", "conv_transpose", "gemm", "matmul_bias_2d",
    "matmul_bias_3d", "concat_unlike", "residual", "shared_weights", "several_inputs",
    "control_flow", "pad_channel_shortcut", "unnamed", "opset_9", "transformer", "two_outputs",
)  # fmt: skip


class Made:
    """A quantized model and its deploy file."""

    def __init__(self, model: onnx.ModelProto, folder: Path, **keys: Any) -> None:
        source = tiny.save(model, folder, "m.onnx")
        self.data = [tiny.feeds(model, seed=seed, batch=1) for seed in range(SAMPLES)]
        self.report = ptq_core.quantize(
            source, folder / "q.onnx", target="ASCEND", data=self.data, **keys
        )
        self.qdq = onnx.load(folder / "q.onnx")
        self.deploy = onnx.load(folder / "q_deploy.onnx")
        self.record = (folder / "q_record.txt").read_text()

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [one for one in self.deploy.graph.node if one.op_type == op_type]

    def constant(self, name: str) -> np.ndarray:
        return constants(self.deploy)[name]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def attributes(of: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in of.attribute}


def session(model: onnx.ModelProto) -> Any:
    """As it is written: the optimizer would merge Q/DQ with rounding of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(model: Any, feed: Arrays) -> Arrays:
    names = [one.name for one in model.get_outputs()]
    return dict(zip(names, model.run(names, feed), strict=True))


def differences(qdq: onnx.ModelProto, deploy: onnx.ModelProto, data: list[Arrays]) -> list[float]:
    """The largest difference of every result, relative to its largest value."""
    before, after = session(qdq), session(runnable(deploy))
    return [
        float(np.abs(one.astype(np.float64) - other).max() / np.abs(one).max())
        for given_ in data
        for one, other in zip(before.run(None, given_), after.run(None, given_), strict=True)
    ]


# ---------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", NETWORKS)
def test_the_deploy_file_computes_the_same(name: str, tmp_path: Path) -> None:
    made = Made(getattr(tiny, name)(), tmp_path)
    found = differences(made.qdq, made.deploy, made.data)
    assert np.median(found) < ROUNDING
    assert max(found) < ROUNDING
    kinds = Counter(one.op_type for one in made.deploy.graph.node)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)
    assert kinds["AscendDequant"] >= kinds["AscendQuant"] >= 1
    used = {value for one in made.deploy.graph.node for value in one.input}
    bodies = [one for one in made.deploy.graph.node if one.op_type == "If"]
    assert bodies or constants(made.deploy).keys() <= used, "no constant is left that nobody reads"


def edge_case(**keys: Any) -> onnx.ModelProto:
    """A layer whose padding lies far from the code 0, as all its inputs are positive."""
    kind = keys.pop("kind", "Conv")
    weight = keys.pop("weight")
    return tiny.model(
        [
            node("Relu", "x", "r", "relu"),
            node(kind, "r w b", "y", "layer", **keys),
        ],
        {"x": ["N", 4, 9, 9]},
        {"y": ["N", 6, "H", "W"]},
        {"w": normal(*weight), "b": normal(6, seed=1)},
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"weight": (6, 4, 3, 3), "pads": [2, 0, 1, 2]},
        {"weight": (6, 2, 3, 3), "group": 2, "pads": [1] * 4},
        {"weight": (6, 4, 3, 3), "dilations": [2, 2], "strides": [2, 1], "pads": [1] * 4},
        {"weight": (6, 4, 3, 3), "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"weight": (4, 6, 3, 3), "kind": "ConvTranspose", "pads": [1] * 4, "strides": [2, 2]},
        {"weight": (4, 3, 3, 3), "kind": "ConvTranspose", "group": 2},
        {"weight": (4, 6, 2, 2), "kind": "ConvTranspose", "output_padding": [1, 1],
         "strides": [3, 3]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("per_channel", [True, False])
def test_padding_is_zero_whatever_the_offset(
    keys: dict[str, Any], per_channel: bool, tmp_path: Path
) -> None:
    made = Made(edge_case(**dict(keys)), tmp_path, per_channel=per_channel)
    quant = attributes(made.nodes("AscendQuant")[0])
    assert quant["offset"] == -128, "the smallest value is 0"
    assert max(differences(made.qdq, made.deploy, made.data)) < ROUNDING


def test_symmetric_activations(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    for one in made.qdq.graph.initializer:
        if one.name.endswith("_zero_point") and one.data_type == onnx.TensorProto.INT8:
            array = np.zeros(tuple(one.dims), np.int8)
            one.CopyFrom(numpy_helper.from_array(array, one.name))
    qdq = onnx.load_from_string(made.qdq.SerializeToString())
    deploy = to_deploy(made.qdq, find_layers(made.qdq))
    quants = [one for one in deploy.graph.node if one.op_type == "AscendQuant"]
    assert {attributes(one)["offset"] for one in quants} == {0.0}
    assert max(differences(qdq, deploy, made.data)) < ROUNDING


def product(bias: tuple[int, ...], *behind: onnx.NodeProto, **outputs: Any) -> onnx.ModelProto:
    """A MatMul and its bias, which is the first of the two that are added."""
    nodes = [node("MatMul", "x w", "m", "product"), node("Add", "b m", "a", "add"), *behind]
    constants_ = {"w": normal(8, 4), "b": normal(*bias, seed=1)}
    return tiny.model(nodes, {"x": [2, 3, 8]}, outputs or {"a": [2, 3, 4]}, constants_)


def matrix(bias: tuple[int, ...], **keys: Any) -> onnx.ModelProto:
    weight = normal(4, 8) if keys.get("transB") else normal(8, 4)
    nodes = [node("Gemm", "x w b", "y", "layer", **keys)]
    constants_ = {"w": weight, "b": normal(*bias, seed=1)}
    return tiny.model(nodes, {"x": [3, 8]}, {"y": [3, 4]}, constants_)


INTEGER = ["AscendQuant", "MatMul", "Add", "AscendDequant"]
FLOAT = ["AscendQuant", "MatMul", "AscendDequant", "Add"]
FORMS = {
    "one bias for all of a Gemm": (matrix((1,)), ["AscendQuant", "Gemm", "AscendDequant"]),
    "a row": (matrix((1, 4), transB=1), ["AscendQuant", "Gemm", "AscendDequant"]),
    "a column stays float": (matrix((3, 1)), ["AscendQuant", "Gemm", "AscendDequant", "Add"]),
    "a vector behind a product": (product((4,)), INTEGER),
    "a matrix there stays float": (product((3, 4)), FLOAT),
    "the product is read twice": (
        product((4,), node("Add", "a m", "y", "again"), y=[2, 3, 4]), [*FLOAT, "Add"],
    ),
    "the product is a result": (product((4,), m=[2, 3, 4], a=[2, 3, 4]), FLOAT),
    "one dimension": (
        tiny.model(
            [node("Conv", "x w b", "y", "layer", pads=[1, 1])], {"x": [2, 3, 8]},
            {"y": [2, 4, 8]}, {"w": normal(4, 3, 3), "b": normal(4)},
        ),
        ["AscendQuant", "Conv", "AscendDequant"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS)
def test_forms_of_biases(case: str, tmp_path: Path) -> None:
    model, kinds = FORMS[case]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    data = [tiny.rng(seed).standard_normal(shape).astype(np.float32) for seed in range(SAMPLES)]
    source = tiny.save(model, tmp_path, "m.onnx")
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        # a correction would give a product without a bias one
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "bias_correction": False},
    }
    ptq_core.quantize(source, tmp_path / "q.onnx", target="ASCEND", config=config, data=data)
    qdq, deploy = (onnx.load(tmp_path / name) for name in ("q.onnx", "q_deploy.onnx"))
    assert [one.op_type for one in deploy.graph.node] == kinds
    assert max(differences(qdq, deploy, [{"x": one} for one in data])) < ROUNDING


def test_sums_of_a_transposed_convolution_are_exact() -> None:
    """At the largest products: the codes are split, so that float32 can add them up."""
    layer = helper.make_node("ConvTranspose", ["c", "w"], ["s"])
    graph = helper.make_graph(
        [
            helper.make_node("AscendQuant", ["x"], ["c"], scale=1.0, offset=-128.0),
            layer,
            helper.make_node("AscendDequant", ["s", "p"], ["y"], dtype=0),
        ],
        "g",
        [tiny.info("x", [1, 900, 2, 2])],
        [tiny.info("y", None)],
        [
            numpy_helper.from_array(np.full((900, 1, 2, 2), 127, np.int8), "w"),
            numpy_helper.from_array(pack_scale(np.float32([1])), "p"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    codes = np.full((1, 900, 2, 2), 255, np.float32)
    codes[0, ::7] = 254
    found = session(runnable(model)).run(None, {"x": codes})[0]
    wanted = np.float32(int(codes[0, :, 0, 0].sum()) * 127 * 4)
    assert wanted > 2**24
    assert found[0, 0, 1, 1] == wanted


# ------------------------------------------------------------------------------------- the form


def test_the_form_of_a_convolution(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    quant, conv, dequant = (
        made.nodes(kind)[0] for kind in ("AscendQuant", "Conv", "AscendDequant")
    )
    qdq = constants(made.qdq)
    scale, zero_point = qdq["x_scale"], qdq["x_zero_point"]
    assert attributes(quant) == {
        "scale": float(np.float32(1) / scale),
        "offset": float(zero_point),
        "dst_type": b"INT8",
    }
    assert all(
        one.type == onnx.AttributeProto.FLOAT
        for one in quant.attribute
        if one.name in ("scale", "offset")
    )
    assert conv.input[0] == quant.output[0]
    assert made.constant(conv.input[1]).dtype == np.int8
    bias = made.constant(conv.input[2])
    assert (bias.dtype, bias.shape) == (np.int32, (8,))
    assert dequant.input[0] == conv.output[0]
    assert attributes(dequant) == {"dtype": 0}
    param = made.constant(dequant.input[1])
    assert (param.dtype, param.shape) == (np.uint64, (8,))
    weight_scale = qdq[conv.input[1].replace("quantized", "scale")]
    np.testing.assert_array_equal(unpack_scale(param), scale * weight_scale)
    assert attributes(conv)["pads"] == [1, 1, 1, 1]
    assert made.deploy.opset_import == made.qdq.opset_import
    assert made.deploy.graph.input == made.qdq.graph.input
    assert made.deploy.graph.output == made.qdq.graph.output


def test_the_matrix_of_a_gemm_is_turned_once(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    gemm = made.nodes("Gemm")[0]
    assert "transB" not in attributes(gemm)
    assert made.constant(gemm.input[1]).shape == (12, 5)
    dequant = next(one for one in made.nodes("AscendDequant") if one.output[0] == "y")
    assert made.constant(dequant.input[1]).shape == (1,), "one scale: no channels in a Gemm"


def test_the_bias_behind_a_product_is_added_to_its_sums_as_the_second(tmp_path: Path) -> None:
    made = Made(tiny.matmul_bias_3d(), tmp_path)
    products = {one.output[0]: one for one in made.nodes("MatMul")}
    adds = [one for one in made.nodes("Add") if one.input[0] in products]
    assert len(adds) == len(products) == 2
    read = {one.input[0] for one in made.nodes("AscendDequant")}
    assert read == {one.output[0] for one in adds}
    assert all(made.constant(one.input[1]).dtype == np.int32 for one in adds)


def test_consumers_of_one_tensor_share_an_ascend_quant(tmp_path: Path) -> None:
    made = Made(tiny.transformer(), tmp_path)
    readers = Counter(one.input[0] for one in made.nodes("MatMul"))
    assert max(readers.values()) == 3, "query, key and value"
    assert len(made.nodes("AscendQuant")) == 4


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    Made(tiny.residual(), tmp_path)
    again = onnx.load(tmp_path / "q.onnx")
    assert (tmp_path / "q_deploy.onnx").read_bytes() == serialized(
        to_deploy(again, find_layers(again))
    )


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    made = Made(tiny.residual(), tmp_path)
    onnx.save(
        made.qdq, tmp_path / "l.onnx", save_as_external_data=True, location="l.data",
        size_threshold=0,
    )  # fmt: skip
    files = {one.name: one for one in lower(tmp_path / "l.onnx", Deployment(name="l"))}
    found = onnx.load_from_string(files["l_deploy.onnx"].content)
    assert list(found.graph.node) == list(made.deploy.graph.node)
    wanted = constants(made.deploy)
    assert constants(found).keys() == wanted.keys()
    assert all(np.array_equal(array, wanted[name]) for name, array in constants(found).items())


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 9),
        elements=st.floats(np.float32(1e-30), np.float32(1e30), width=32),
    )
)
@settings(max_examples=50, deadline=None)
def test_scales_are_packed_without_loss(scale: np.ndarray) -> None:
    packed = pack_scale(scale)
    assert packed.dtype == np.uint64
    assert not (packed >> np.uint64(32)).any(), "no offset of the weights"
    np.testing.assert_array_equal(unpack_scale(packed), scale)


def test_only_the_lower_half_is_the_scale() -> None:
    assert pack_scale(np.float32([1.0]))[0] == 0x3F800000
    assert unpack_scale(np.array([0x12_3F80_0000], np.uint64))[0] == 1.0


# --------------------------------------------------------------------------- what is not ours


def test_other_readers_of_codes_are_named(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    decode = next(one for one in made.qdq.graph.node if one.op_type == "DequantizeLinear"
                  and one.input[0] == "x_quantized")  # fmt: skip
    made.qdq.graph.node.append(helper.make_node("Relu", [decode.output[0]], ["other"]))
    with pytest.raises(ValueError, match=r"1 quantized tensors are read by more than .*: x_deq"):
        to_deploy(made.qdq, find_layers(made.qdq))


def test_all_layers_without_a_form_are_named(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    for one in made.qdq.graph.initializer:
        if one.name == "x_zero_point":
            one.CopyFrom(numpy_helper.from_array(np.uint8(3), one.name))
        elif one.name.endswith("quantized") and len(one.dims) == 4 and one.dims[0] == 12:
            array = numpy_helper.to_array(one).astype(np.uint8)
            one.CopyFrom(numpy_helper.from_array(array, one.name))
    with pytest.raises(ValueError, match="Conv 'conv1': its activation is uint8") as caught:
        find_layers(made.qdq)
    assert "Conv 'conv2': its weights are uint8" in str(caught.value)


def test_names_that_are_taken(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    layers = find_layers(made.qdq)
    name = f"{layers[0].node.output[0]}.sums"
    made.qdq.graph.input.append(tiny.info(name, [1]))
    with pytest.raises(ValueError, match=rf"tensors called {name}"):
        to_deploy(made.qdq, layers)


def test_a_result_with_a_name_that_is_taken(tmp_path: Path) -> None:
    """Another node's result, which stays, is called like the sums of a layer."""
    model = tiny.model(
        [node("Conv", "x w", "c", "conv"), node("Relu", "c", "c.sums", "relu"),
         node("Conv", "c.sums v", "y", "conv2")],
        {"x": [1, 4, 8, 8]},
        {"y": [1, 4, 6, 6]},
        {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 3, 3)},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"the model has tensors called c\.sums"):
        Made(model, tmp_path)


@pytest.mark.parametrize(
    ("op_type", "weight", "attributes", "reason"),
    [
        ("Conv", (8, 4, 3, 3), {}, None),
        ("Conv", (8, 4, 3), {}, None),
        ("Conv", (8, 4, 3, 3, 3), {}, "volumes"),
        ("ConvTranspose", (8, 4, 3, 3), {"dilations": (1, 1)}, None),
        ("ConvTranspose", (8, 4, 3, 3), {"dilations": (1, 2)}, "dilations"),
        ("ConvTranspose", (8, 4, 3), {}, "4 dimensions only"),
        ("MatMul", (8, 4), {}, None),
        ("MatMul", (2, 8, 4), {}, "takes a matrix"),
        ("Gemm", (8, 4), {"transB": 1}, None),
    ],
)
def test_what_stays_float(
    op_type: str, weight: tuple[int, ...], attributes: dict[str, Any], reason: str | None
) -> None:
    found = keep_float(
        NodeFacts(
            op_type=op_type,
            attributes=attributes,
            weight_shape=weight,
            input_shape=None,
            output_shape=None,
            reads_graph_input=False,
        )
    )
    assert (found is None) == (reason is None)
    assert reason is None or reason in (found or "")


# ------------------------------------------------------------------------------------ the record


def record_message() -> Any:
    """The toolkit's message, by the fields that its manual lists."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="record.proto", syntax="proto2")

    def message(name: str, *fields: tuple[str, int, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for field, number, label, kind, type_name in fields:
            made.field.add(
                name=field, number=number, label=label, type=kind, type_name=type_name or None
            )

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message(
        "Layer",
        ("scale_d", 1, one, kinds.TYPE_FLOAT, ""),
        ("offset_d", 2, one, kinds.TYPE_INT32, ""),
        ("scale_w", 3, many, kinds.TYPE_FLOAT, ""),
        ("offset_w", 4, many, kinds.TYPE_INT32, ""),
        ("act_type", 11, one, kinds.TYPE_STRING, ""),
        ("wts_type", 12, one, kinds.TYPE_STRING, ""),
    )
    message(
        "Entry",
        ("key", 1, one, kinds.TYPE_STRING, ""),
        ("value", 2, one, kinds.TYPE_MESSAGE, "Layer"),
    )
    message("Record", ("record", 1, many, kinds.TYPE_MESSAGE, "Entry"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Record"))()


def test_the_record_is_a_protobuf_with_the_scales(tmp_path: Path) -> None:
    made = Made(tiny.conv_bn_relu(), tmp_path)
    found = text_format.Parse(made.record, record_message()).record
    assert [one.key for one in found] == ["conv1", "conv2", "classifier"]
    qdq = constants(made.qdq)
    first = found[0].value
    assert np.float32(first.scale_d) == qdq["x_scale"]
    assert first.offset_d == qdq["x_zero_point"]
    param = made.constant(made.nodes("AscendDequant")[0].input[1])
    np.testing.assert_array_equal(
        np.float32(first.scale_d) * np.float32(first.scale_w), unpack_scale(param)
    )
    assert list(first.offset_w) == [0] * 8
    assert len(found[2].value.scale_w) == 1


def test_odd_names_in_the_record(tmp_path: Path) -> None:
    model = tiny.conv_bn_relu()
    model.graph.node[0].name = 'a "quoted\\ name\né'
    made = Made(model, tmp_path)
    found = text_format.Parse(made.record, record_message()).record
    assert found[0].key == 'a "quoted\\ name\né'


def test_weights_alone_need_the_command_only(tmp_path: Path) -> None:
    source = tiny.save(tiny.conv_bn_relu(), tmp_path, "m.onnx")
    files = list(lower(source.read_bytes(), Deployment(name="m", shapes={"x": (1, 3, 8, 8)})))
    assert [one.name for one in files] == ["m_atc.sh"]
    assert b'--model="m.onnx"' in files[0].content


# ---------------------------------------------------------------------------------- real networks

SHARED = Path(__file__).parents[4] / "shared"


def layer_by_layer(
    qdq: onnx.ModelProto, deploy: onnx.ModelProto, data: list[Arrays]
) -> tuple[list[float], float]:
    """Every layer on what the file with Q/DQ feeds it: a flipped code must not hide the next.

    Returns the relative difference (L2) of each layer's result, and how many codes in a million
    differ.
    """
    given_ = {one.name for one in qdq.graph.input}
    quants = [one for one in deploy.graph.node if one.op_type == "AscendQuant"]
    results = [one.output[0] for one in deploy.graph.node if one.op_type == "AscendDequant"]
    known = given_ | {one.name for one in qdq.graph.output}
    wanted = dict.fromkeys([*(one.input[0] for one in quants), *results])
    qdq.graph.output.extend(tiny.info(name, None) for name in wanted if name not in known)
    codes = {
        one.input[0]: one.output[0] for one in qdq.graph.node if one.op_type == "QuantizeLinear"
    }
    qdq.graph.output.extend(tiny.info(name, None, onnx.TensorProto.INT8) for name in codes.values())
    layers = onnx.ModelProto()
    layers.CopyFrom(runnable(deploy))
    made = {out: one for one in layers.graph.node for out in one.output}
    for one in quants:  # cut: every layer reads what it is fed
        made[f"{one.output[0]}.scaled"].input[0] = f"{one.input[0]}.fed"
    del layers.graph.input[:], layers.graph.output[:]
    layers.graph.input.extend(
        tiny.info(name, None) for name in {f"{q.input[0]}.fed" for q in quants}
    )
    layers.graph.output.extend(tiny.info(name, None) for name in results)
    layers.graph.output.extend(
        tiny.info(one.output[0], None, onnx.TensorProto.UINT8) for one in quants
    )
    needed, nodes = set(results), []
    for one in reversed(layers.graph.node):
        if needed & set(one.output):
            nodes.append(one)
            needed |= set(one.input)
    kept = [onnx.NodeProto.FromString(one.SerializeToString()) for one in reversed(nodes)]
    del layers.graph.node[:]
    layers.graph.node.extend(kept)
    before, after = session(qdq), session(layers)
    found, different, total = [], 0, 0
    for feed in data:
        values = dict(
            zip((o.name for o in before.get_outputs()), before.run(None, feed), strict=True)
        )
        values |= feed
        fed = {f"{one.input[0]}.fed": values[one.input[0]] for one in quants}
        outputs = dict(
            zip((o.name for o in after.get_outputs()), after.run(None, fed), strict=True)
        )
        for name in results:
            one, other = values[name].astype(np.float64), outputs[name]
            found.append(float(np.linalg.norm(one - other) / max(np.linalg.norm(one), 1e-12)))
        for one in quants:
            mine = values[codes[one.input[0]]].astype(int) + 128
            different += int((mine != outputs[one.output[0]]).sum())
            total += mine.size
    return found, different / total * 1e6


@pytest.mark.parametrize(
    ("name", "source", "data", "keys"),
    [
        ("resnet20_cifar10", "input", "cifar10", {}),
        ("squeezenet1_1", "data", "", {"center_crop_width": 227, "center_crop_height": 227}),
    ],
)
def test_real_networks_layer_by_layer(
    name: str, source: str, data: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    if not SHARED.is_dir():
        pytest.skip("the real networks are not part of the repository")
    pictures = SHARED / "data" / "dev" / data / "calib"
    ptq_core.quantize(
        SHARED / "models" / f"{name}.onnx",
        tmp_path / "q.onnx",
        config={
            "common_quant_param": {"quant_type": "FULL_QUANT"},
            "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "ASCEND"},
            "data_preprocess_param": {
                "calibrate_path": f"{source}:{pictures}",
                "calibrate_size": 8,
                "input_type": "IMAGE",
                "image_to_format": "BGR",
                "normalize_mean": [104, 117, 123],
                "normalize_std": [58, 57, 57],
                **keys,
            },
        },
    )
    qdq, deploy = (onnx.load(tmp_path / one) for one in ("q.onnx", "q_deploy.onnx"))
    assert sum(one.op_type == "AscendDequant" for one in deploy.graph.node) == len(find_layers(qdq))
    draw = tiny.rng(1)
    shape = [dim.dim_value or 1 for dim in qdq.graph.input[0].type.tensor_type.shape.dim]
    given_ = [{source: draw.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    found, flips = layer_by_layer(qdq, deploy, given_)
    assert np.median(found) < ROUNDING
    assert flips < FLIPS_PER_MILLION
    # a single flipped code is one step of a sum of many
    assert max(found) < 0.01
