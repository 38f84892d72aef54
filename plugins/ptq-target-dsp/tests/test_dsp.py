"""The rules, the options, and what code says of nodes and files; without the HTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptq_core import quantize
from ptq_core.api import FixedOutput, NodeFacts, QScheme
from ptq_core.errors import ConfigError
from ptq_core.plugins import discover
from ptq_target_dsp import DspOptions, configure, ptq_targets
from ptq_target_dsp.conditions import rounds_alike
from ptq_target_dsp.findings import find

(ENTRY,) = ptq_targets()
SPEC = ENTRY.spec


def test_the_entry() -> None:
    assert ENTRY.name == "DSP"
    assert discover().target("htp").entry.name == "DSP"
    assert SPEC.activation == QScheme(dtype="uint8")
    assert SPEC.weight == QScheme(dtype="int8", symmetric=True, narrow_range=True)
    assert (SPEC.bias, SPEC.skip_guard) == ("int32", "none")
    assert SPEC.static_shapes
    assert not SPEC.integer_inputs_outputs


@pytest.mark.parametrize("op_type", sorted(SPEC.operators))
def test_rules_are_about_operators_of_onnx_and_their_attributes(op_type: str) -> None:
    schema = onnx.defs.get_schema(op_type, 21, "")
    rule = SPEC.operators[op_type]
    assert set(rule.attributes) <= set(schema.attributes)
    assert set(rule.fuse) <= {"Relu", "Clip"}
    assert (rule.quantize == "never") <= bool(rule.reason)


def test_nothing_changes_without_options() -> None:
    assert configure(SPEC, DspOptions()) == SPEC


def test_16_bits() -> None:
    wide = configure(SPEC, DspOptions(activation_bits=16))
    assert wide.activation == QScheme(dtype="uint16")
    assert wide.weight == SPEC.weight
    assert wide.minimum_opset == 21
    assert wide.operators["Tanh"].fixed_output == FixedOutput(scale=2**-15, zero_point=2**15)
    assert wide.operators["Log"].quantize == "never"
    narrow = {name: rule for name, rule in SPEC.operators.items() if rule.fixed_output}
    for name, rule in narrow.items():  # the same interval in finer steps
        fine, coarse = wide.operators[name].fixed_output, rule.fixed_output
        assert fine is not None
        assert coarse is not None
        assert fine.scale * 256 == coarse.scale
        assert fine.zero_point == coarse.zero_point * 256
    changed = {name for name, rule in wide.operators.items() if rule != SPEC.operators[name]}
    assert changed == {*narrow, "Log"}


# ---------------------------------------------------------------------------------- conditions


def facts(op_type: str, before: Any = (1, 4, 6, 6), after: Any = None, **given: Any) -> NodeFacts:
    return NodeFacts(
        op_type=op_type,
        attributes=given,
        weight_shape=None,
        input_shape=before,
        output_shape=before if after is None else after,
        reads_graph_input=False,
    )


LARGER = (1, 4, 9, 9)
KEPT = {
    "last axis": (facts("LayerNormalization", axis=-1), None),
    "last axis by its number": (facts("LayerNormalization", axis=3), None),
    "several axes": (
        facts("LayerNormalization", axis=1), "axis is 1, the HTP normalizes over the last one",
    ),
    "pool": (facts("MaxPool", kernel_shape=(2, 2), dilations=(1, 1)), None),
    "spread pool": (facts("MaxPool", dilations=(2, 2)), "the HTP has no MaxPool with dilations"),
    "linear": (facts("Resize", after=LARGER, mode="linear"), None),
    "floor": (
        facts("Resize", after=LARGER, nearest_mode="floor"),
        "the HTP takes other elements for the nearest",
    ),
    "half up": (facts("Resize", after=LARGER, nearest_mode="round_prefer_ceil"), None),
    "open": (
        facts("Resize", before=(None, 4, 6, 6), after=LARGER),
        "its sizes are not known, on which it depends what the HTP takes for nearest",
    ),
    "pool to the end": (
        facts("AveragePool", after=(1, 4, 3, 3), kernel_shape=(2, 2), strides=(2, 2), ceil_mode=1),
        None,
    ),
    "pool beyond the end": (
        facts("AveragePool", after=(1, 4, 3, 3), kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1),
        "the HTP divides by a wrong count beyond the padding (ceil_mode)",
    ),
    "spread average": (
        facts("AveragePool", dilations=(2, 2)), "the HTP has no AveragePool with dilations",
    ),
    "others": (facts("Conv", dilations=(2, 2)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_float(name: str) -> None:
    given, reason = KEPT[name]
    assert ENTRY.keep_float is not None
    assert ENTRY.keep_float(given) == reason


def test_default_roundings() -> None:
    assert rounds_alike({}, 4, 8)  # no element lies halfway
    assert not rounds_alike({}, 6, 9)
    assert rounds_alike({"nearest_mode": b"floor"}, 6, 6)
    assert not rounds_alike({"coordinate_transformation_mode": "tf_crop_and_resize"}, 4, 8)
    asymmetric = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    assert rounds_alike(asymmetric, 5, 7)
    # of a scale that the sizes do not have
    assert not rounds_alike(asymmetric, 10, 13, scale=1.39)


# ------------------------------------------------------------------------------------ findings


def model(
    op_type: str, shape: list[int], constants: dict[str, Any], **attributes: Any
) -> onnx.ModelProto:
    arrays = {name: array for name, array in constants.items() if array is not None}
    inputs = ["x", *(name if name in arrays else "" for name in constants)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("y", None))
    ]
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["y"], "it", **attributes)],
        "tiny",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(np.array(one, np.float32), name) for name, one in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def scales(*numbers: float) -> dict[str, Any]:
    return {"roi": None, "scales": [1, 1, *numbers]}


FOUND = {
    "nearest, twice as large": (model("Resize", [1, 2, 6, 6], scales(2, 2)), []),
    "nearest, half as much again": (
        model("Resize", [1, 2, 6, 6], scales(1.5, 1.5)), ["DSP-RESIZE-NEAREST"],
    ),
    "linear": (model("Resize", [1, 2, 6, 6], scales(1.5, 1.5), mode="linear"), []),
    "linear, of a size that is rounded": (
        model("Resize", [1, 2, 5, 5], scales(1.5, 1.5), mode="linear"), ["DSP-RESIZE-SCALE"],
    ),
    "pool": (model("AveragePool", [1, 2, 6, 6], {}, kernel_shape=[3, 3], ceil_mode=1), []),
    "pool beyond the end": (
        model("AveragePool", [1, 2, 6, 6], {}, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        ["DSP-POOL-CEIL"],
    ),
    "pool to the end": (
        model("AveragePool", [1, 2, 7, 7], {}, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        [],
    ),
    "pool cut off": (
        model("AveragePool", [1, 2, 6, 6], {}, kernel_shape=[3, 3], strides=[2, 2]), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_the_htp_computes_wrongly(name: str) -> None:
    made, codes = FOUND[name]
    found = list(find(made.SerializeToString()))
    assert [one.code for one in found] == codes
    assert all(one.severity == "error" and one.node == "it" for one in found)


def test_operators_of_others_are_not_meant() -> None:
    made, _ = FOUND["pool beyond the end"]
    other = onnx.ModelProto()
    other.CopyFrom(made)
    other.graph.node[0].domain = "someone"
    other.opset_import.append(helper.make_opsetid("someone", 1))
    del other.graph.node[0].attribute[:]  # theirs are called otherwise
    other.graph.node[0].attribute.append(helper.make_attribute("ceil_mode", 1))
    other.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 3])
    )
    assert not list(find(other.SerializeToString()))


def test_findings_of_a_file(tmp_path: Path) -> None:
    made, codes = FOUND["pool beyond the end"]
    onnx.save(onnx.shape_inference.infer_shapes(made), tmp_path / "model.onnx")
    assert [one.code for one in find(tmp_path / "model.onnx")] == codes


# ---------------------------------------------------------------------------------- whole files


def convolution(shape: list[Any]) -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", shape), ("y", None))
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Sigmoid", ["c"], ["y"])],
        "tiny", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def full_quant(folder: Path, shape: list[Any], **options: Any) -> onnx.ModelProto:
    onnx.save(onnx.shape_inference.infer_shapes(convolution(shape)), folder / "float.onnx")
    draw = np.random.default_rng(1)
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "DSP"},
        "target.DSP": options,
    }
    data = [draw.standard_normal((1, 4, 6, 6)).astype(np.float32) for _ in range(3)]
    quantize(folder / "float.onnx", folder / "int8.onnx", config=config, data=data)
    return onnx.load(folder / "int8.onnx")


@pytest.mark.parametrize(("bits", "opset", "kind"), [(8, 20, np.uint8), (16, 21, np.uint16)])
def test_types_and_opset(bits: int, opset: int, kind: type, tmp_path: Path) -> None:
    made = full_quant(tmp_path, [1, 4, 6, 6], activation_bits=bits)
    stored = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    assert {one.version for one in made.opset_import} == {opset}
    assert {array.dtype for name, array in stored.items() if name.endswith("y_zero_point")} == {
        np.dtype(kind)
    }
    assert stored["w_quantized"].dtype == np.int8
    assert stored["y_scale"] == np.float32(2.0**-bits)


def test_integer_ends(tmp_path: Path) -> None:
    made = full_quant(tmp_path, [1, 4, 6, 6], integer_inputs_outputs=True)
    ends = (*made.graph.input, *made.graph.output)
    assert {one.type.tensor_type.elem_type for one in ends} == {TensorProto.UINT8}


def test_open_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DSP takes static shapes only"):
        full_quant(tmp_path, ["N", 4, 6, 6])


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="activation_bits"):
        full_quant(tmp_path, [1, 4, 6, 6], activation_bits=12)
