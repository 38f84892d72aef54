from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq_core import quantize
from ptq_core.errors import ConfigError, ModelError
from ptq_core.graph.prepare import prepare
from ptq_core.planning import MAX_MIN, Plan, make_plan, match_nodes
from ptq_core.plugins import discover
from ptq_core.target_types import OperatorRule, TargetSpec
from ptq_core.targets import target_from_toml
from ptq_core.types import QScheme
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

# A device with a rule of every kind. The real CPU rules are a plugin's; its tests are there.
LINEAR = OperatorRule(quantize="always", per_channel=True, fuse=("Relu", "Clip"))
DENSE = OperatorRule(
    quantize="always", output="as_needed", per_channel=True, fuse=("Relu", "Clip"),
    attributes={"alpha": (1.0,), "beta": (1.0,), "transA": (0,)},
)  # fmt: skip
BETWEEN = OperatorRule(quantize="between", fuse=("Relu", "Clip"))
MOVER = OperatorRule(quantize="between", same_parameters=True)
NEVER = OperatorRule(quantize="never", reason="no integer kernel for it")
SPEC = TargetSpec(
    activation=QScheme(),
    weight=QScheme(dtype="int8", symmetric=True, narrow_range=True),
    skip_guard="per_axis_dequantize",
    operators={
        "Conv": LINEAR,
        "Gemm": DENSE,
        "MatMul": OperatorRule(quantize="always", output="as_needed", per_channel=True),
        "ConvTranspose": NEVER,
        "Add": BETWEEN,
        "Mul": BETWEEN,
        "Concat": BETWEEN,
        "Relu": OperatorRule(quantize="between"),
        "Sigmoid": OperatorRule(quantize="between", fixed_output=None),
        "GlobalAveragePool": OperatorRule(quantize="after"),
        **dict.fromkeys(("MaxPool", "Reshape", "Flatten", "Transpose", "Split"), MOVER),
        "Unsqueeze": MOVER,
        "Squeeze": MOVER,
    },
)


def plan_of(made: onnx.ModelProto, spec: TargetSpec = SPEC, **given: Any) -> Plan:
    return make_plan(prepare(ir.from_proto(made), spec.minimum_opset), spec, **given)


def decisions(plan: Plan) -> dict[str, str]:
    return {one.name: one.decision for one in plan.nodes}


def reason(plan: Plan, name: str) -> str:
    return next(one.reason for one in plan.nodes if one.name == name)


# ----------------------------------------------------------------------------------- every node


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_node_has_a_decision_and_a_reason(name: str) -> None:
    prepared = prepare(ir.from_proto(tiny.MODELS[name]()), 13)
    plan = make_plan(prepared, SPEC)
    assert len(plan.nodes) == len(prepared.model.graph)
    assert [one.name for one in plan.nodes if not one.reason] == []
    assert len({one.key for one in plan.nodes}) == len(plan.nodes)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_plan_touches_nothing_and_is_repeatable(name: str) -> None:
    prepared = prepare(ir.from_proto(tiny.MODELS[name]()), 13)
    before = ir.to_proto(prepared.model).SerializeToString(deterministic=True)
    assert make_plan(prepared, SPEC) == make_plan(prepared, SPEC)
    assert ir.to_proto(prepared.model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_source_is_watched_or_fixed(name: str) -> None:
    plan = plan_of(tiny.MODELS[name]())
    for tensor in plan.tensors.values():
        source = plan.tensors[tensor.source]
        assert source.source == source.name, "sources are not chained"
        assert (source.name in plan.watched()) == (source.fixed is None)


# -------------------------------------------------------------------------------------- regions


def test_a_convolutional_network_is_integer_from_input_to_classifier() -> None:
    plan = plan_of(tiny.conv_bn_relu())
    assert decisions(plan) == {
        "conv1": "integer", "relu1": "fused", "conv2": "integer", "relu2": "fused",
        "pool": "integer", "flatten": "integer", "classifier": "integer",
    }  # fmt: skip
    assert list(plan.tensors) == ["x", "r1", "r2", "p", "f"]
    assert plan.tensors["r1"].bounds == (0.0, float("inf"))


def test_the_sum_of_a_residual_block_is_integer() -> None:
    plan = plan_of(tiny.residual())
    assert decisions(plan)["add"] == "integer"
    assert decisions(plan)["relu2"] == "fused"
    assert set(plan.tensors) == {"x", "r0", "r1", "c2", "r2", "y"}
    assert plan.tensors["c2"].bounds is None


def test_a_transformer_has_integers_in_weighted_matmuls_only() -> None:
    plan = plan_of(tiny.transformer())
    integer = {name for name, one in decisions(plan).items() if one == "integer"}
    assert integer == {"q", "k", "v", "o", "up", "down"}
    fused = {name for name, one in decisions(plan).items() if one == "fused"}
    assert fused == {f"{name}_bias" for name in integer}
    assert "two activations" in reason(plan, "scores")
    # what they read, and nothing they make
    assert set(plan.tensors) == {"x", "context", "norm1", "gelu"}
    assert not any(tensor.produced for tensor in plan.tensors.values())


def test_an_operator_between_float_operators_stays_float() -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Tanh", "c", "t", "tanh"),
            node("Add", "t t", "a", "add"),
            node("Tanh", "a", "u", "tanh2"),
            node("MaxPool", "u", "y", "pool", kernel_shape=[1, 1]),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 4, 4, 4]},
        {"w": normal(4, 3, 1, 1)},
    )
    plan = plan_of(made)
    assert decisions(plan) == {
        "conv": "integer", "tanh": "float", "add": "float", "tanh2": "float", "pool": "float"
    }  # fmt: skip
    assert reason(plan, "add") == "no integer operator before it"
    assert "no integer form for Tanh" in reason(plan, "tanh")
    assert set(plan.tensors) == {"x", "c"}


def test_an_operator_that_no_integer_operator_reads_stays_float() -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("MaxPool", "c", "m", "pool", kernel_shape=[2, 2]),
            node("Add", "m m", "a", "add"),
            node("Tanh", "a", "y", "tanh"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 4, 3, 3]},
        {"w": normal(4, 3, 1, 1)},
    )
    plan = plan_of(made)
    assert reason(plan, "add") == reason(plan, "pool") == "no integer operator reads its result"


def test_movers_carry_the_parameters_of_their_input() -> None:
    made = tiny.model(
        [
            node("Transpose", "x", "t", "transpose", perm=[0, 3, 1, 2]),
            node("Conv", "t w", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("MaxPool", "r", "m", "pool", kernel_shape=[2, 2]),
            node("Split", "m", "s1 s2", "split", axis=1),
            node("Concat", "s2 s1", "k", "concat", axis=1),
            node("Conv", "k w2", "y", "conv2"),
        ],
        {"x": ["N", 4, 4, 3]},
        {"y": ["N", 2, 3, 3]},
        {"w": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1, seed=1)},
    )
    plan = plan_of(made, method="KL")
    assert set(decisions(plan).values()) == {"integer", "fused"}
    assert {name: one.source for name, one in plan.tensors.items()} == {
        "x": "x", "t": "x", "r": "r", "m": "r", "s1": "r", "s2": "r", "k": "k", "y": "y"
    }  # fmt: skip
    assert {one.bounds for one in plan.tensors.values() if one.source == "r"} == {
        (0.0, float("inf"))
    }
    assert set(plan.watched()) == {"x", "r", "k", "y"}


def test_every_output_of_a_split_is_integer() -> None:
    """What is behind the second output is as much behind an integer operator as the first."""
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Split", "c", "s1 s2", "split", axis=1),
            node("Add", "s2 s2", "a", "add"),
            node("Conv", "a w2", "y", "conv2"),
            node("Conv", "s1 w2", "z", "conv3"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4], "z": ["N", 2, 4, 4]},
        {"w": normal(4, 3, 1, 1), "w2": normal(2, 2, 1, 1, seed=1)},
    )
    assert set(decisions(plan_of(made)).values()) == {"integer"}


def test_graph_inputs_and_outputs_take_max_min() -> None:
    plan = plan_of(tiny.residual(), method="KL")
    assert {name: one.method for name, one in plan.tensors.items()} == {
        "x": MAX_MIN, "r0": "KL", "r1": "KL", "c2": "KL", "r2": "KL", "y": MAX_MIN
    }  # fmt: skip


def test_a_result_that_is_quantized_only_as_needed() -> None:
    made = tiny.model(
        [
            node("Gemm", "x w1 b1", "g", "first"),
            node("Gemm", "g w2 b2", "h", "second"),
            node("Tanh", "h", "t", "tanh"),
            node("Gemm", "t w2 b2", "u", "third"),
            node("Relu", "u", "r", "relu"),
            node("Tanh", "r", "s", "tanh2"),
            node("Gemm", "s w2 b2", "v", "last"),
            node("Relu", "v", "y", "last_relu"),
        ],
        {"x": ["N", 6]},
        {"y": ["N", 8]},
        {"w1": normal(6, 8), "b1": normal(8), "w2": normal(8, 8), "b2": normal(8)},
    )
    plan = plan_of(made)
    # g because an integer layer reads it, not h; r because of its activation, y is an output
    assert set(plan.tensors) == {"x", "g", "t", "r", "s"}
    assert {name for name, one in plan.tensors.items() if one.produced} == {"r"}
    assert [weight.bias for weight in plan.weights] == ["b1", "b2", "b2", "b2"]


def test_fixed_outputs_are_not_watched(cpu_spec: TargetSpec) -> None:
    plan = plan_of(tiny.several_inputs(), cpu_spec)
    fixed = {name: one for name, one in plan.tensors.items() if one.fixed is not None}
    assert decisions(plan)["dense"] == "integer"
    assert not set(fixed) & set(plan.watched())
    for tensor in fixed.values():
        assert tensor.method is None


def test_fixed_parameters_are_carried_by_movers(cpu_spec: TargetSpec) -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Sigmoid", "c", "s", "sigmoid"),
            node("MaxPool", "s", "m", "pool", kernel_shape=[2, 2]),
            node("Conv", "m w2", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 3, 3]},
        {"w": normal(4, 3, 1, 1), "w2": normal(2, 4, 1, 1, seed=1)},
    )
    plan = plan_of(made, cpu_spec)
    assert plan.tensors["m"].source == "s"
    assert plan.tensors["s"].fixed is not None
    assert plan.tensors["m"].fixed == plan.tensors["s"].fixed
    assert set(plan.watched()) == {"x", "c", "y"}


@pytest.fixture
def cpu_spec(tmp_path: Path) -> TargetSpec:
    """The device with a fixed output."""
    path = tmp_path / "device.toml"
    path.write_text(
        """
name = "D"
summary = "a device with fixed sigmoids"
activation = { dtype = "uint8" }
weight = { dtype = "int8", symmetric = true }
[operators]
Conv = { quantize = "always" }
Gemm = { quantize = "always" }
Mul = { quantize = "between" }
MaxPool = { quantize = "between", same_parameters = true }
[operators.Sigmoid]
quantize = "between"
fixed_output = { scale = 0.00390625, zero_point = 0 }
"""
    )
    return target_from_toml(path).spec


# ------------------------------------------------------------------------------ what stays float


def test_attributes_that_the_device_does_not_take_leave_the_node_float() -> None:
    plan = plan_of(tiny.gemm())
    assert decisions(plan)["head"] != "integer"
    assert reason(plan, "head") == "beta is 0.5, the target's integer form needs 1.0"


def test_operators_that_the_device_never_takes_give_its_reason() -> None:
    assert reason(plan_of(tiny.conv_transpose()), "up") == "no integer kernel for it"


def test_bodies_and_functions_are_float() -> None:
    assert reason(plan_of(tiny.control_flow()), "if") == "control flow is left as it is"
    assert "domain 'tiny'" in reason(plan_of(tiny.functions()), "swish")


def test_nodes_of_bodies_are_never_taken_for_followers() -> None:
    """A Relu in a branch is the only reader of a convolution's result."""
    branches = [
        onnx.helper.make_graph(
            [node(op, "c", f"{op}_out", f"in_{op}")], op, [], [tiny.info(f"{op}_out", None)]
        )
        for op in ("Relu", "Tanh")
    ]
    for both in (branches, [branches[0], branches[0]]):
        made = tiny.model(
            [
                node("Conv", "x w1", "c", "conv1"),
                node("If", "flag", "y", "if", then_branch=both[0], else_branch=both[1]),
            ],
            [tiny.info("x", ["N", 4, 3, 3]), tiny.info("flag", [], onnx.TensorProto.BOOL)],
            {"y": ["N", 4, 3, 3]},
            {"w1": normal(4, 4, 1, 1)},
        )
        if both[0] is both[1]:
            # one and the same body twice is not valid ONNX; a flag-free body reads it once
            other = onnx.helper.make_graph(
                [node("Constant", "", "k", value=onnx.numpy_helper.from_array(normal(1, 4, 3, 3)))],
                "else", [], [tiny.info("k", None)],
            )  # fmt: skip
            made.graph.node[1].attribute[1].g.CopyFrom(other)
        plan = plan_of(made)
        assert set(plan.tensors) == {"x", "c"}, "the convolution's own result is the integer one"
        assert decisions(plan) == {"conv1": "integer", "if": "float"}


def test_constant_weights_are_needed() -> None:
    made = tiny.model(
        [node("Conv", "x w", "c", "conv"), node("Conv", "c k", "y", "dynamic")],
        {"x": ["N", 3, 4, 4], "k": [2, 4, 1, 1]},
        {"y": ["N", 2, 4, 4]},
        {"w": normal(4, 3, 1, 1)},
    )
    plan = plan_of(made)
    assert decisions(plan)["dynamic"] == "float", "nothing to guard: the runtime needs constants"
    assert "not constant" in reason(plan, "dynamic")


def test_shapes_and_indices_are_untouched() -> None:
    plan = plan_of(tiny.dynamic_shapes())
    assert {decisions(plan)[name] for name in ("shape", "gather", "concat")} == {"untouched"}
    assert decisions(plan)["reshape"] == "integer"


def test_a_product_added_to_itself_has_no_bias() -> None:
    made = tiny.model(
        [node("MatMul", "x w", "m", "fc"), node("Add", "m m", "y", "twice")],
        {"x": ["N", 4]},
        {"y": ["N", 3]},
        {"w": normal(4, 3)},
    )
    assert decisions(plan_of(made)) == {"fc": "integer", "twice": "float"}


@pytest.mark.parametrize("shape", [(1, 3), (1,), (2, 3), ()])
def test_an_add_of_another_shape_is_no_bias(shape: tuple[int, ...]) -> None:
    made = tiny.model(
        [node("MatMul", "x w", "m", "fc"), node("Add", "m b", "y", "add")],
        {"x": [2, 4]},
        {"y": [2, 3]},
        {"w": normal(4, 3), "b": normal(*shape)},
    )
    assert plan_of(made).weights[0].bias is None


def test_nothing_to_quantize_says_what_was_found() -> None:
    made = tiny.model([node("Relu", "x", "y", "relu")], {"x": ["N", 3]}, {"y": ["N", 3]})
    with pytest.raises(ModelError, match="no layer with weights"):
        plan_of(made)
    with pytest.raises(ModelError, match="2 x Conv: named in skip_quant_node"):
        plan_of(tiny.conv_bn_relu(), skip=["*"])


# ---------------------------------------------------------------------------------------- guards


@pytest.mark.parametrize(
    ("name", "decision"),
    [
        ("conv1", "guarded"),
        ("conv2", "guarded"),
        ("stem", "float"),  # reads the model's input
        ("conv3", "float"),  # without it, nothing reads the sum as integers
    ],
)
def test_a_skipped_layer_is_guarded_where_it_reads_integers(name: str, decision: str) -> None:
    plan = plan_of(tiny.residual(), skip=[name])
    assert decisions(plan)[name] == decision
    assert reason(plan, name) == "named in skip_quant_node"
    skipped = next(one.key for one in plan.nodes if one.name == name)
    assert skipped not in {weight.node for weight in plan.weights}


def test_a_transposed_convolution_between_integers_is_guarded() -> None:
    assert decisions(plan_of(tiny.conv_transpose()))["up"] == "guarded"


def test_without_guards_nothing_is_guarded() -> None:
    spec = TargetSpec(activation=SPEC.activation, weight=SPEC.weight, operators=SPEC.operators)
    assert plan_of(tiny.residual(), spec, skip=["conv1"]).count("guarded") == 0


# ------------------------------------------------------------------------------------ the weights


def test_channel_axes() -> None:
    made = tiny.model(
        [
            node("Conv", "x w1", "c", "conv"),
            node("GlobalAveragePool", "c", "p", "pool"),
            node("Flatten", "p", "f", "flatten"),
            node("Gemm", "f w2", "g", "gemm"),
            node("Gemm", "g w3", "h", "gemm_t", transB=1),
            node("MatMul", "h w4", "y", "matmul"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 5]},
        {
            "w1": normal(4, 3, 1, 1),
            "w2": normal(4, 6, seed=1),
            "w3": normal(7, 6, seed=2),
            "w4": normal(7, 5, seed=3),
        },
    )
    assert [one.axis for one in plan_of(made).weights] == [0, 1, 0, 1]
    assert [one.axis for one in plan_of(made, per_channel=False).weights] == [None] * 4


def test_a_constant_operand_takes_the_scheme_of_activations() -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Relu", "c", "r", "relu"),
            node("Mul", "k r", "m", "mul"),
            node("Conv", "m w2", "y", "conv2"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 2, 4, 4]},
        {"w": normal(4, 3, 1, 1), "k": normal(4, 1, 1), "w2": normal(2, 4, 1, 1)},
    )
    operand = next(one for one in plan_of(made).weights if one.tensor == "k")
    assert (operand.node, operand.position) == ("m", 0)
    assert operand.scheme == SPEC.activation
    assert operand.axis is None


def test_per_channel_where_the_device_cannot_is_a_warning() -> None:
    rules = {**SPEC.operators, "Conv": OperatorRule(quantize="always")}
    spec = TargetSpec(activation=SPEC.activation, weight=SPEC.weight, operators=rules)
    plan = plan_of(tiny.residual(), spec)
    assert plan.warnings == ("per_channel: the target takes one weight scale for Conv",)
    assert {one.axis for one in plan.weights} == {None}
    assert plan_of(tiny.residual(), spec, per_channel=False).warnings == ()


def test_a_model_too_new_for_the_device_is_a_warning() -> None:
    spec = TargetSpec(
        activation=SPEC.activation, weight=SPEC.weight, operators=SPEC.operators, maximum_opset=15
    )
    assert plan_of(tiny.residual(), spec).warnings == (
        "the model's opset is 17, the target's importer takes 15",
    )


# ------------------------------------------------------------------------------------------ skip


def matched(made: onnx.ModelProto, *patterns: str) -> set[str]:
    return set(match_nodes(prepare(ir.from_proto(made), 13), patterns))


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("conv1", {"r1_in"}),
        ("bn1", {"r1_in"}),  # it was folded into conv1
        ("conv?", {"r1_in", "r2_in"}),
        ("*1", {"r1_in", "r1"}),
        ("[bc]*2", {"r2_in"}),
        ("type:Conv", {"r1_in", "r2_in"}),
        ("type:conv", {"r1_in", "r2_in"}),
        ("TYPE: relu", {"r1", "r2"}),
        ("y", {"y"}),  # an output's name
    ],
)
def test_patterns(pattern: str, keys: set[str]) -> None:
    made = tiny.conv_bn_relu()
    for one in made.graph.node:  # what the folded convolutions will be called
        for names in (one.input, one.output):
            for i, name in enumerate(names):
                names[i] = {"n1": "r1_in", "n2": "r2_in"}.get(name, name)
    assert matched(made, pattern) == keys


def test_a_name_with_glob_characters_is_taken_as_it_is() -> None:
    made = tiny.conv_bn_relu()
    made.graph.node[0].name = "model[0]/conv*"
    assert len(matched(made, "model[0]/conv*")) == 1


def test_unnamed_nodes_are_matched_by_their_output() -> None:
    assert matched(tiny.unnamed(), "r1") == {"r1"}
    assert len(matched(tiny.unnamed(), "c1")) == 1, "the convolution, now with another output"


def test_skipping_by_a_folded_name_leaves_the_convolution_float() -> None:
    plan = plan_of(tiny.conv_bn_relu(), skip=["bn2"])
    assert decisions(plan)["conv2"] == "guarded"


def test_a_skipped_activation_is_not_fused() -> None:
    plan = plan_of(tiny.residual(), skip=["relu1"])
    assert decisions(plan)["conv1"] == "integer"
    assert decisions(plan)["relu1"] == "float"
    assert "c1" in plan.tensors


def test_patterns_that_match_nothing_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        matched(tiny.conv_bn_relu(), "conv1", "conw2", "type:Konv", "nothing/like/it")
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == 3
    assert "did you mean 'conv2'" in problems[0]
    assert "did you mean 'Conv'" in problems[1]
    assert "'nothing/like/it' matches no node" in problems[2]
    assert all("ptq plan" in problem for problem in problems)


def test_a_node_that_preparation_removed_is_told_so() -> None:
    made = tiny.opset_9()
    with pytest.raises(ConfigError, match="Dropout does nothing in inference"):
        matched(made, "dropout")


def test_names_differ_in_case() -> None:
    with pytest.raises(ConfigError, match="did you mean 'conv1'"):
        matched(tiny.conv_bn_relu(), "CONV1")


def test_weights_of_two_dimensions_only() -> None:
    made = tiny.model(
        [node("MatMul", "x w", "m", "batched"), node("MatMul", "m v", "y", "plain")],
        {"x": [2, 3, 4]},
        {"y": [2, 3, 5]},
        {"w": np.stack([normal(4, 4), normal(4, 4, seed=1)]), "v": normal(4, 5)},
    )
    plan = plan_of(made)
    assert reason(plan, "batched") == "its weights have rank 3, not 2"
    assert decisions(plan)["plain"] == "integer"


@pytest.mark.parametrize("behind", ["Flatten", "Reshape"])
def test_what_is_an_output_but_for_its_shape_takes_max_min(behind: str) -> None:
    """A method that cuts off logits cuts off classes."""
    inputs = "p s" if behind == "Reshape" else "p"
    shape = {"s": np.array([1, 5])} if behind == "Reshape" else {}
    made = tiny.model(
        [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "d"),
         node("GlobalAveragePool", "d", "p"), node(behind, inputs, "y")],
        {"x": [1, 3, 8, 8]}, {"y": [1, 5]},
        {"w": normal(4, 3, 3, 3), "v": normal(5, 4, 1, 1), **shape},
    )  # fmt: skip
    cpu = discover().target("CPU").entry.spec
    plan = make_plan(prepare(ir.from_proto(made), 13), cpu, method="KL")
    methods = {name: tensor.method for name, tensor in plan.watched().items()}
    assert methods["x"] == methods["p"] == "MAX_MIN"
    assert methods["r"] == methods["d"] == "KL"


@pytest.mark.parametrize(("group", "axis"), [(1, 1), (2, None)])
def test_a_transposed_convolution_with_groups_has_one_scale(group: int, axis: int | None) -> None:
    """Its weights' second axis has the channels of one group only; its bias has those of all."""
    rule = OperatorRule(quantize="always", per_channel=True)
    rules = {**SPEC.operators, "ConvTranspose": rule}
    spec = TargetSpec(activation=SPEC.activation, weight=SPEC.weight, operators=rules)
    plan = plan_of(tiny.conv_transpose(group), spec)
    (weight,) = (one for one in plan.weights if one.tensor == "w2")
    assert weight.axis == axis
    told = [one for one in plan.warnings if one.endswith("all output channels: up")]
    assert len(told) == (group > 1)
    plain = plan_of(tiny.conv_transpose(group), spec, per_channel=False)
    assert not plain.warnings


def test_a_transposed_convolution_with_groups_is_emitted(tmp_path: Path) -> None:
    cpu = (files("ptq_target_cpu") / "cpu.toml").read_text(encoding="utf-8")
    start, end = (
        cpu.index("[operators.ConvTranspose]"),
        cpu.index("# ---", cpu.index("ConvTranspose]")),
    )
    rule = '[operators.ConvTranspose]\nquantize = "always"\nper_channel = true\n\n'
    (tmp_path / "own.toml").write_text(cpu[:start] + rule + cpu[end:], encoding="utf-8")
    model = tiny.save(tiny.conv_transpose(2), tmp_path)
    data = [tiny.feeds(tiny.conv_transpose(2), seed) for seed in range(4)]
    report = quantize(model, tmp_path / "o.onnx", data=data, target=str(tmp_path / "own.toml"))
    assert report.verification is not None
    assert (report.verification.cosine or 0.0) > 0.99
