"""Devices whose operators take integers and give floats; residual Adds; a target's own say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq_core import quantize
from ptq_core.emission import integer_ends
from ptq_core.errors import ConfigError
from ptq_core.graph.prepare import prepare
from ptq_core.graph.shapes import fix_shapes
from ptq_core.planning import Plan, make_plan
from ptq_core.target_types import NodeFacts, OperatorRule, TargetSpec
from ptq_core.types import QScheme
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

LINEAR = OperatorRule(quantize="always", output="float", per_channel=True, fuse=("Relu", "Clip"))
RESIDUAL = OperatorRule(quantize="residual", output="float", fuse=("Relu",))
SPEC = TargetSpec(
    activation=QScheme(dtype="int8", symmetric=True, narrow_range=True),
    weight=QScheme(dtype="int8", symmetric=True, narrow_range=True),
    bias="float",
    operators={
        "Conv": LINEAR,
        "Gemm": LINEAR,
        "MatMul": LINEAR,
        "Add": RESIDUAL,
        "MaxPool": OperatorRule(quantize="between", same_parameters=True),
    },
)


def plan_of(made: onnx.ModelProto, spec: TargetSpec = SPEC, **given: Any) -> Plan:
    return make_plan(prepare(ir.from_proto(made), spec.minimum_opset), spec, **given)


def decisions(plan: Plan) -> dict[str, tuple[str, str]]:
    return {one.name: (one.decision, one.reason) for one in plan.nodes}


def block(shortcut: bool, *, first: bool = False, relu: bool = False) -> onnx.ModelProto:
    """A residual block: two convolutions, and one on the shortcut or none."""
    skip = "s" if shortcut else "r"
    nodes = [
        node("Conv", "x w", "c", "stem"),
        node("Relu", "c", "r", "relu"),
        node("Conv", "r w", "a", "conv1"),
        node("Relu", "a", "ar", "relu1"),
        node("Conv", "ar w", "b", "conv2"),
    ]
    if relu:
        nodes.append(node("Relu", "b", "br", "relu2"))
    if shortcut:
        nodes.insert(2, node("Conv", "r w1", "s", "down"))
    operands = f"{skip} b" if first else f"b {skip}"
    nodes += [
        node("Add", operands.replace("b", "br") if relu else operands, "d", "add"),
        node("Relu", "d", "y", "last"),
    ]
    return tiny.model(
        nodes,
        {"x": ["N", 4, 6, 6]},
        {"y": ["N", 4, 6, 6]},
        {"w": normal(4, 4, 1, 1), "w1": normal(4, 4, 1, 1, seed=1)},
    )


# ------------------------------------------------------------------------------ floats as results


def test_only_what_layers_read_becomes_integer() -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("MaxPool", "r", "p", "pool", kernel_shape=[2, 2]),
            node("Conv", "p w2", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 3, 3]},
        {"w": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1)},
    )
    plan = plan_of(made)
    assert decisions(plan)["relu"] == ("fused", "the activation of 'conv'")
    assert decisions(plan)["pool"] == ("float", "no integer operator before it")
    assert set(plan.tensors) == {"x", "p"}
    assert not plan.tensors["p"].produced


def test_the_float_result_of_a_layer_keeps_its_float_readers() -> None:
    """The tensor that a convolution reads in integers stays float for a Sigmoid."""
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Sigmoid", "c", "s", "sigmoid"),
            node("Conv", "c w2", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4], "s": ["N", 4, 4, 4]},
        {"w": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1)},
    )
    prepared = prepare(ir.from_proto(made), 13)
    plan = make_plan(prepared, SPEC)
    assert set(plan.tensors) == {"x", "c"}
    assert not plan.tensors["c"].produced


# --------------------------------------------------------------------------------------- residual


@pytest.mark.parametrize("first", [False, True])
def test_the_identity_shortcut_becomes_integer(first: bool) -> None:
    plan = plan_of(block(False, first=first))
    assert decisions(plan)["add"] == ("integer", "adds 'r' to a convolution's result")
    assert decisions(plan)["last"] == ("fused", "the activation of 'add'")
    assert "b" not in plan.tensors
    assert "d" not in plan.tensors
    assert "r" in plan.tensors


@pytest.mark.parametrize("first", [False, True])
def test_of_two_convolutions_the_shortcut_becomes_integer(first: bool) -> None:
    plan = plan_of(block(True, first=first))
    assert decisions(plan)["add"] == ("integer", "adds 's' to a convolution's result")
    assert "b" not in plan.tensors
    assert "s" in plan.tensors


def test_what_an_activation_has_passed_is_added_in_float() -> None:
    """Devices add before the activation; behind it an Add is an operator of its own."""
    plan = plan_of(block(False, relu=True))
    text = "it does not add a convolution's result to another tensor"
    assert decisions(plan)["add"] == ("float", text)
    assert decisions(plan)["last"] == ("float", "belongs to 'add', which stays float")


def test_the_file_has_the_shortcut_in_integers(tmp_path: Path) -> None:
    made = block(True)
    path = tiny.save(made, tmp_path)
    target = tmp_path / "npu.toml"
    target.write_text(
        'name = "NPU"\nsummary = "a device"\nbias = "float"\n'
        'activation = { dtype = "int8", symmetric = true, narrow_range = true }\n'
        'weight = { dtype = "int8", symmetric = true, narrow_range = true }\n'
        '[operators.Conv]\nquantize = "always"\noutput = "float"\nfuse = ["Relu"]\n'
        '[operators.Add]\nquantize = "residual"\noutput = "float"\nfuse = ["Relu"]\n'
    )
    out = tmp_path / "out.onnx"
    data = [tiny.feeds(made, seed) for seed in range(12)]
    report = quantize(path, out, data=data, target=str(target))
    proto = onnx.load(out)
    made_by = {output: one for one in proto.graph.node for output in one.output}
    (add,) = [one for one in proto.graph.node if one.op_type == "Add"]
    kinds = [made_by[name].op_type for name in add.input]
    assert kinds == ["Conv", "DequantizeLinear"]
    encode = made_by[made_by[add.input[1]].input[0]]
    assert encode.op_type == "QuantizeLinear"
    assert made_by[encode.input[0]].name == "down"
    assert report.verification is not None
    assert report.verification.unexpected == ()  # onnxruntime is not this device
    assert (report.verification.cosine or 0) > 0.99


# ------------------------------------------------------------------------------ a target's own say


def test_a_target_may_keep_nodes_in_float_and_sees_their_facts() -> None:
    seen: list[NodeFacts] = []

    def keep_float(facts: NodeFacts) -> str | None:
        seen.append(facts)
        return "too few channels" if facts.reads_graph_input else None

    made = tiny.conv_bn_relu()
    plan = plan_of(made, keep_float=keep_float)
    first = next(one for one in plan.nodes if one.op_type == "Conv")
    assert (first.decision, first.reason) == ("float", "too few channels")
    convs = [one for one in seen if one.op_type == "Conv"]
    assert [one.reads_graph_input for one in convs] == [True, False]
    weights = [one for one in made.graph.initializer if len(one.dims) == 4]
    assert convs[0].weight_shape == tuple(weights[0].dims)
    assert convs[0].input_shape is not None
    assert convs[0].input_shape[1] == weights[0].dims[1]
    assert convs[0].output_shape is not None
    assert convs[0].output_shape[1] == weights[0].dims[0]


def two_activations() -> onnx.ModelProto:
    return tiny.model(
        [
            node("MatMul", "x w", "a", "left"),
            node("MatMul", "x v", "b", "right"),
            node("Transpose", "b", "t", "turn", perm=[0, 2, 1]),
            node("MatMul", "a t", "s", "scores"),
            node("MatMul", "s k", "y", "last"),
        ],
        {"x": [2, 4, 8]},
        {"y": [2, 4, 3]},
        {"w": normal(8, 8), "v": normal(8, 8, seed=1), "k": normal(4, 3, seed=2)},
    )


def test_two_activations_are_multiplied_where_the_device_can() -> None:
    text = "its weights are not constant (two activations): gains nothing in integers"
    assert decisions(plan_of(two_activations()))["scores"] == ("float", text)
    rule = replace(LINEAR, two_activations=True)
    spec = replace(SPEC, operators={**SPEC.operators, "MatMul": rule})
    plan = plan_of(two_activations(), spec)
    assert decisions(plan)["scores"] == ("integer", "multiplies two activations")
    assert {"a", "t"} <= set(plan.tensors)
    assert [one.tensor for one in plan.weights] == ["w", "v", "k"]


# ----------------------------------------------------------------------------------- static shapes


def test_open_dimensions_are_fixed_wherever_their_symbol_stands() -> None:
    model = ir.from_proto(tiny.residual())
    (value,) = model.graph.inputs
    sizes = [2 if not isinstance(dim, int) else dim for dim in value.shape or ()]
    fix_shapes(model, {value.name or "": sizes}, "NPU")
    ends = [*model.graph.inputs, *model.graph.outputs]
    assert all(isinstance(dim, int) for one in ends for dim in one.shape or ())


def test_an_open_dimension_is_told_with_what_to_give() -> None:
    model = ir.from_proto(tiny.several_inputs())
    with pytest.raises(ConfigError) as caught:
        fix_shapes(model, {}, "NPU")
    texts = [one.message for one in caught.value.problems]
    assert len(texts) == len(model.graph.inputs)
    assert all("NPU takes static shapes only" in text for text in texts)
    assert all("--input-shape" in one.hint for one in caught.value.problems)


def test_one_symbol_has_one_size() -> None:
    model = ir.from_proto(tiny.several_inputs())
    names = [value.name or "" for value in model.graph.inputs]
    shapes = {
        name: [
            dim if isinstance(dim, int) else size for dim in (model.graph.inputs[index].shape or ())
        ]
        for index, (name, size) in enumerate(zip(names, (2, 3), strict=False))
    }
    with pytest.raises(ConfigError, match="is 2 in one input and 3 in"):
        fix_shapes(model, shapes, "NPU")


# ---------------------------------------------------------------------- integer inputs and outputs


def test_integer_ends_give_the_same_numbers(tmp_path: Path) -> None:
    import onnxruntime

    made = tiny.residual()
    path, out = tiny.save(made, tmp_path), tmp_path / "out.onnx"
    data = [tiny.feeds(made, seed) for seed in range(12)]
    quantize(path, out, data=data)
    model = ir.load(out)
    before = {value.name: value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    notes = integer_ends(model)
    assert len(notes) == len(before)
    (source,), (result,) = model.graph.inputs, model.graph.outputs
    assert source.dtype == ir.DataType.UINT8
    assert notes[0].startswith(f"input '{source.name}' takes uint8: real = ")
    ir.save(model, tmp_path / "codes.onnx")
    onnx.checker.check_model(str(tmp_path / "codes.onnx"), full_check=True)

    floats = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    codes = onnxruntime.InferenceSession(
        str(tmp_path / "codes.onnx"), providers=["CPUExecutionProvider"]
    )
    scale, zero_point = _parameters(notes[0])
    feeds = data[0][source.name or ""]
    given = np.clip(np.rint(feeds / np.float32(scale)) + zero_point, 0, 255).astype(np.uint8)
    wanted = floats.run(None, data[0])[0]
    found = codes.run(None, {source.name or "": given})[0]
    if result.dtype == ir.DataType.UINT8:
        scale, zero_point = _parameters(notes[1])
        found = (found.astype(np.float32) - zero_point) * np.float32(scale)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def _parameters(note: str) -> tuple[float, int]:
    """Scale and zero point, as the sentence tells them."""
    scale, rest = note.split("real = ")[1].split(" * (code - ")
    return float(scale), int(rest.rstrip(")"))
