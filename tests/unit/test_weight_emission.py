"""Integer weights in the graph: what onnxruntime decodes is the arithmetic, bit for bit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from ptq_core.arithmetic import Correction
from ptq_core.emission import WeightWriter, correct_biases, correctable, corrected_weight
from ptq_core.emission.weights import Form
from ptq_core.errors import PluginError
from ptq_core.graph.names import Names
from ptq_core.graph.prepare import prepare
from ptq_core.planning import ConstantPlan, Plan, Thresholds, make_weight_plan
from ptq_core.planning.constants import weight_values
from ptq_core.plugins import discover
from ptq_core.types import Encoded, Encoding
from ptq_core.weights.grid import quantize_weight
from ptq_core.weights.quantized import QuantizedWeight, with_half_parameters
from ptq_core.weights.zero_points import with_zero_points
from tests import tiny_models as tiny
from tests.tiny_models import node, normal
from tests.weight_checks import decoded, executed, operators

FORMS: tuple[Form, ...] = ("folded", "dequantize", "cast_add_mul")


def codec(name: str) -> Encoding:
    return discover().encoding(name).entry.factory(None)


def layer(
    op: str, *shape: int, opset: int = 21, source: tuple[Any, ...] = ("N", None), **attributes: Any
) -> onnx.ModelProto:
    return tiny.model(
        [node(op, "x w", "y", "layer", **attributes)],
        {"x": list(source)},
        {"y": [None] * len(source)},
        {"w": normal(*shape)},
        opset=opset,
        ir_version=10,
    )


def write(
    made: onnx.ModelProto,
    folder: Path,
    bits: int,
    *,
    form: Form = "folded",
    encoding: str = "PACKED",
    groups: int | None = None,
    per_channel: bool = True,
    half: bool = False,
    weight: QuantizedWeight | None = None,
) -> tuple[QuantizedWeight, int, list[str]]:
    """Put the codes of the first weight into the model; what they are, and what they take."""
    prepared = prepare(ir.from_proto(deepcopy(made)), 13, integers=False)  # shares its tensors
    model = prepared.model
    plan = make_weight_plan(
        prepared, Thresholds(channels=0, bits=1, per_channel=per_channel, group_size=groups or 0)
    )
    one = plan.constants[0]
    value = weight_values(model, plan)[one.tensor]
    array = value.const_value.numpy()  # type: ignore[union-attr]
    if weight is None:
        weight = quantize_weight(
            array, bits, one.axes, strategy="MSE", correct=True, groups=one.group_size or None
        )
        if form == "dequantize" and not one.table:
            weight = with_zero_points(array, weight)
        if form == "folded":
            weight = with_half_parameters(weight)
    encoded = codec(encoding).encode(weight.codes, weight.bits, model.graph.opset_imports[""])
    writer = WeightWriter(model, form)
    size = writer.write(value, one, weight, encoded, encoding)
    too_large = writer.finish(half=half)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    (folder / "out.onnx").write_bytes(proto.SerializeToString())
    return weight, size, too_large


def reals(weight: QuantizedWeight, form: Form) -> np.ndarray:
    """What each form computes, in its order."""
    if form == "folded":
        return weight.dequantize()
    codes = weight.codes.astype(np.float32)
    if form == "dequantize":
        codes -= weight.zero_point.astype(np.float32)
    else:
        codes += weight.offset / weight.scale
    return (codes * weight.scale).reshape(weight.shape)


LAYERS: dict[str, tuple[onnx.ModelProto, int | None]] = {
    "conv": (layer("Conv", 24, 10, 3, 3, source=("N", 10, 5, 5)), None),
    "conv in groups": (layer("Conv", 24, 10, 3, 3, source=("N", 10, 5, 5)), 45),
    "transposed": (layer("ConvTranspose", 8, 24, 3, 3, source=("N", 8, 5, 5)), None),
    "transposed in groups": (layer("ConvTranspose", 8, 24, 3, 3, source=("N", 8, 5, 5)), 18),
    "matmul": (layer("MatMul", 40, 24, source=("N", 40)), None),
    "matmul in groups": (layer("MatMul", 40, 24, source=("N", 40)), 10),
    "stack in groups": (layer("MatMul", 2, 40, 24, source=(2, 3, 40)), 10),
    "gemm in groups": (layer("Gemm", 24, 40, source=(3, 40), transB=1), 10),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, 11, 16])
@pytest.mark.parametrize("name", LAYERS)
def test_every_form_is_its_arithmetic(name: str, bits: int, form: Form, tmp_path: Path) -> None:
    made, groups = LAYERS[name]
    encoding = "PLAIN" if form == "cast_add_mul" else "PACKED"
    weight, size, _ = write(made, tmp_path, bits, form=form, groups=groups, encoding=encoding)
    assert (weight.codes.shape != weight.shape) == (groups is not None)
    found = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    np.testing.assert_array_equal(found, reals(weight, form))
    # what it says it takes is what is there
    proto = onnx.load(tmp_path / "out.onnx")
    stored = {
        one.name: onnx.numpy_helper.to_array(one).size
        * {TensorProto.INT4: 0.5, TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2,
           TensorProto.INT16: 2, TensorProto.INT64: 8}.get(one.data_type, 1)
        for one in proto.graph.initializer
        if not one.name.startswith("w.shape")
    }  # fmt: skip
    assert size == pytest.approx(sum(stored.values()), abs=1)
    if form == "folded":
        result = executed(tmp_path / "out.onnx", tmp_path)
        assert not {"Cast", "Mul", "Add", "Reshape"} & set(operators(result.graph))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [1, 4, 8, 12])
@pytest.mark.parametrize("per_channel", [True, False])
def test_tables(per_channel: bool, bits: int, form: Form, tmp_path: Path) -> None:
    """On the fly, only rows that are looked up are made float; two look-ups share the codes."""
    made = tiny.model(
        [
            node("Gather", "w ids", "g", "first"),
            node("Gather", "w ids", "h", "second"),
            node("Add", "g h", "y", "add"),
        ],
        [tiny.info("ids", [2, 3], TensorProto.INT64)],
        [tiny.info("y", [2, 3, 24]), tiny.info("g", [2, 3, 24])],
        {"w": normal(60, 24)},
        opset=21,
        ir_version=10,
    )
    encoding = "PLAIN" if form == "cast_add_mul" else "PACKED"
    weight, _, _ = write(
        made, tmp_path, bits, form=form, encoding=encoding, per_channel=per_channel
    )
    ids = np.array([[0, 7, 59], [-1, 7, 3]])
    found = decoded(tmp_path / "out.onnx", ["g", "h", "y"], {"ids": ids})
    expected = weight.dequantize()[ids]
    np.testing.assert_array_equal(found["g"], expected)
    np.testing.assert_array_equal(found["h"], expected)
    np.testing.assert_array_equal(found["y"], expected + expected)
    floats = [one for one in executed(tmp_path / "out.onnx", tmp_path).graph.initializer
              if one.data_type == TensorProto.FLOAT and np.prod(one.dims) == 60 * 24]  # fmt: skip
    assert len(floats) == (1 if form == "folded" else 0)


def test_inputs_may_have_scales(tmp_path: Path) -> None:
    made = layer("MatMul", 96, 24, source=("N", 96))
    weight = quantize_weight(normal(96, 24), 5, (1,), strategy="MSE", correct=True)
    scales = np.geomspace(0.1, 10, 96).astype(np.float16).astype(np.float32).reshape(96, 1)
    weight = replace(weight, input_scale=scales)
    write(made, tmp_path, 5, weight=weight)
    found = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    np.testing.assert_array_equal(found, weight.dequantize())
    kinds = {one.name: one.data_type for one in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert kinds["w.input_scale"] == TensorProto.FLOAT16  # which has the same numbers


@pytest.mark.parametrize(("scale", "offset", "left"), [
    (1.0, 0.0, set()), (0.5, 0.0, {"Mul"}), (1.0, 0.25, {"Add"}), (0.5, 0.25, {"Mul", "Add"}),
])  # fmt: skip
def test_what_changes_nothing_is_left_out(
    scale: float, offset: float, left: set[str], tmp_path: Path
) -> None:
    made = layer("MatMul", 40, 24, source=("N", 40))
    weight = quantize_weight(normal(40, 24), 8, (), strategy="MSE", correct=True)
    weight = replace(
        weight,
        scale=np.full((1, 1), scale, np.float32),
        offset=np.full((1, 1), offset, np.float32),
    )
    write(made, tmp_path, 8, weight=weight)
    found = operators(onnx.load(tmp_path / "out.onnx").graph)
    assert set(found) == {"Cast", "MatMul"} | left
    values = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    np.testing.assert_array_equal(values, weight.dequantize())


def test_decoders_are_shared_and_of_the_models_opset(tmp_path: Path) -> None:
    """One function for each width, however many weights have it."""
    made = tiny.model(
        [node("MatMul", "x w", "a", "one"), node("MatMul", "a v", "y", "two")],
        {"x": ["N", 40]},
        {"y": ["N", 40]},
        {"w": normal(40, 40), "v": normal(40, 40, seed=1)},
        opset=15,
        ir_version=7,
    )
    prepared = prepare(ir.from_proto(made), 13, integers=False)
    plan = make_weight_plan(prepared, Thresholds(channels=0))
    writer, values = WeightWriter(prepared.model, "folded"), weight_values(prepared.model, plan)
    for one in plan.constants:
        weight = quantize_weight(
            values[one.tensor].const_value.numpy(), 5, (1,), strategy="MSE", correct=True
        )
        writer.write(
            values[one.tensor], one, weight, codec("PACKED").encode(weight.codes, 5, 15), "P"
        )
    writer.finish()
    proto = ir.to_proto(prepared.model)
    (function,) = proto.functions
    assert (function.domain, function.name) == ("ptq.p", "Unpack5")
    assert [(one.domain, one.version) for one in function.opset_import] == [("", 15)]
    assert proto.ir_version == 8
    assert {one.domain: one.version for one in proto.opset_import} == {"": 15, "ptq.p": 1}
    calls = [one for one in proto.graph.node if one.op_type == "Unpack5"]
    assert [one.attribute[0].i for one in calls] == [5, 5]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (Encoded(constants={"a": np.zeros((40, 24), np.int8), "b": np.zeros(3)}), "one constant"),
        (Encoded(constants={"a": np.zeros((24, 40), np.int8)}), "in the shape of the codes"),
        (Encoded(constants={"a": np.zeros(3)}, function="nonsense"), "cannot be read"),
    ],
)
def test_encodings_that_break_their_contract(encoded: Encoded, message: str) -> None:
    prepared = prepare(ir.from_proto(layer("MatMul", 40, 24, source=("N", 40))), 13)
    plan = make_weight_plan(prepared, Thresholds(channels=0))
    value = weight_values(prepared.model, plan)["w"]
    weight = quantize_weight(normal(40, 24), 5, (1,), strategy="MSE", correct=True)
    with pytest.raises(PluginError, match=message):
        WeightWriter(prepared.model, "folded").write(
            value, plan.constants[0], weight, encoded, "BAD"
        )


# --------------------------------------------------------------------------------------- float16


def test_half_precision_is_for_what_is_left(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Conv", "x w b", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("Mul", "r large", "d", "mul"),
            node("Add", "d small", "y", "add"),
        ],
        {"x": ["N", 8, 10, 10]},
        {"y": ["N", 100, 10, 10]},
        {
            "w": normal(100, 8, 1, 1),
            "b": normal(100),
            "large": np.full((100, 1, 1), 1e5, np.float32),
            "small": np.full((1, 1, 1), 0.1, np.float32),
        },
    )
    weight, _, too_large = write(made, tmp_path, 5, half=True)
    assert too_large == ["large"]
    kinds = {one.name: one.data_type for one in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert kinds["b.half"] == TensorProto.FLOAT16
    assert kinds["large"] == kinds["small"] == kinds["w.scale"] == TensorProto.FLOAT
    found = decoded(tmp_path / "out.onnx", ["w", "b"], tiny.feeds(made))
    np.testing.assert_array_equal(found["w"], weight.dequantize())
    np.testing.assert_array_equal(found["b"], normal(100).astype(np.float16).astype(np.float32))


# ------------------------------------------------------------------------------------------ names


def test_names_are_free_in_bodies_too() -> None:
    body = helper.make_graph(
        [node("Relu", "x", "inner.codes", "inner")], "then", [], [tiny.info("inner.codes", None)]
    )
    made = tiny.model(
        [node("If", "flag", "y", "if", then_branch=body, else_branch=body)],
        [tiny.info("x", [3]), tiny.info("flag", [], TensorProto.BOOL)],
        {"y": [3]},
        {"unused": normal(3)},
    )
    names = Names(ir.from_proto(made))
    taken = ("x", "flag", "unused", "if", "y", "inner", "inner.codes")
    assert [names.free(one) for one in taken] == [f"{one}_1" for one in taken]
    assert [names.free("w.codes") for _ in range(3)] == ["w.codes", "w.codes_1", "w.codes_2"]


# ----------------------------------------------------------------------------------- corrections


@pytest.mark.parametrize(
    ("shape", "axes", "axis", "groups"),
    [
        ((6, 4, 3, 3), (0,), 0, None),
        ((6, 4, 3, 3), (0,), 0, 18),
        ((4, 6, 3, 3), (1,), 1, None),
        ((4, 6, 3, 3), (1,), 1, 2),
        ((20, 6), (1,), 1, None),
        ((20, 6), (1,), 1, 5),
        ((6, 20), (0,), 0, 5),
        ((2, 20, 6), (2,), 2, 10),
    ],
)
def test_gains_go_into_the_scales_of_their_channels(
    shape: tuple[int, ...], axes: tuple[int, ...], axis: int, groups: int | None
) -> None:
    weight = quantize_weight(
        normal(*shape) + np.float32(0.1), 5, axes, strategy="MSE", correct=True, groups=groups
    )
    gain = np.linspace(0.7, 1.4, 6)
    found = corrected_weight(weight, gain, axis)
    form = [1] * len(shape)
    form[axis] = 6
    np.testing.assert_allclose(
        found.dequantize(), weight.dequantize() * gain.reshape(form), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(found.codes, weight.codes)
    assert found.scale.dtype == np.float32
    one = corrected_weight(weight, gain, None)
    np.testing.assert_allclose(
        one.dequantize(), weight.dequantize() * gain.mean(), rtol=1e-5, atol=1e-6
    )


def linear(*, bias: bool, add: bool) -> onnx.ModelProto:
    """A Gemm with beta, and a MatMul with or without an Add behind it."""
    return tiny.model(
        [
            node(
                "Gemm", "x w b" if bias else "x w", "g", "gemm", **({"beta": 0.5} if bias else {})
            ),
            node("MatMul", "g v", "m" if add else "y", "matmul"),
            *([node("Add", "c m", "y", "add")] if add else []),
        ],
        {"x": ["N", 30]},
        {"y": ["N", 20]},
        {"w": normal(30, 24), "b": normal(24), "v": normal(24, 20), "c": normal(20)},
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("add", [True, False])
def test_offsets_go_into_biases(bias: bool, add: bool) -> None:
    made = linear(bias=bias, add=add)
    prepared = prepare(ir.from_proto(made), 13, integers=False)
    plan = make_weight_plan(prepared, Thresholds(channels=0))
    layers = correctable(prepared.model, plan)
    assert [(one.tensor, one.axis) for one in layers] == [("w", 1), ("v", 1)]
    keys = [one.node for one in layers]
    corrections = {
        keys[0]: Correction(gain=np.full(24, 2.0), offset=np.linspace(-1, 1, 24)),
        keys[1]: Correction(gain=np.ones(20), offset=np.linspace(3, 4, 20)),
    }
    correct_biases(prepared.model, corrections)
    proto = ir.to_proto(prepared.model)
    onnx.checker.check_model(proto, full_check=True)
    x = normal(5, 30, seed=7)
    # the gain of the weights is somebody else's; that of the bias is in it already
    hidden = x @ normal(30, 24) + (normal(24) if bias else 0.0) + np.linspace(-1, 1, 24)
    expected = hidden @ normal(24, 20) + (normal(20) if add else 0.0) + np.linspace(3, 4, 20)
    (found,) = tiny.run(proto, {"x": x}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert operators(proto.graph)["Add"] == 1  # the model's own, or one of ours


def test_what_cannot_be_corrected() -> None:
    """A weight that others read, and a bias that is no constant."""
    made = tiny.model(
        [
            node("MatMul", "x w", "a", "first"),
            node("MatMul", "a w", "b", "second"),
            node("Gemm", "b v x", "y", "third"),
        ],
        {"x": [3, 30]},
        {"y": [3, 30]},
        {"w": normal(30, 30), "v": normal(30, 30, seed=1)},
    )
    prepared = prepare(ir.from_proto(made), 13, integers=False)
    plan = make_weight_plan(prepared, Thresholds(channels=0))
    assert len(plan.constants) == 2
    assert correctable(prepared.model, plan) == ()
    assert isinstance(plan, Plan)
    assert isinstance(plan.constants[0], ConstantPlan)
