"""Masks, and what Softmax makes zero of; tables of embeddings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from ptq_core import quantize
from ptq_core.errors import NumericError
from ptq_core.graph.prepare import prepare
from ptq_core.planning import Plan, lifted, make_plan, narrowed
from ptq_core.planning.plan import TensorPlan
from ptq_core.plugins import discover
from ptq_core.target_types import FixedOutput, TargetSpec
from ptq_core.types import QScheme, Range
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

TOKENS, WIDTH, WORDS = 6, 8, 20
LOWEST = float(np.finfo(np.float32).min)


@pytest.fixture(scope="module")
def dsp() -> TargetSpec:
    return discover().target("DSP").entry.spec


def constants(minus: float) -> dict[str, np.ndarray]:
    table = normal(WORDS, WIDTH, scale=1.0)
    table[-1] = 9.0  # a word that no sample has
    return {
        "table": table,
        "wq": normal(WIDTH, WIDTH, seed=1),
        "wk": normal(WIDTH, WIDTH, seed=2),
        "wv": normal(WIDTH, WIDTH, seed=3),
        "one": np.float32(1),
        "zero": np.float32(0),
        "minus": np.float32(minus),
        "axis": np.array([1]),
        "causal": np.triu(np.full((TOKENS, TOKENS), minus, np.float32), 1),
        "biased": np.triu(np.full((TOKENS, TOKENS), minus, np.float32), 1)
        + normal(TOKENS, TOKENS, seed=4),
        "heads": np.array([1, 1, TOKENS, TOKENS]),
        "row": np.array([1, TOKENS, 1]),
        "back": np.array([1, TOKENS, TOKENS]),
    }


PROJECTIONS = [
    node("Gather", "table ids", "e"),
    node("MatMul", "e wq", "q"),
    node("MatMul", "e wk", "k"),
    node("MatMul", "e wv", "v"),
    node("Transpose", "k", "kt", perm=[0, 2, 1]),
    node("MatMul", "q kt", "scores"),
]
ATTENTION = [node("MatMul", "p v", "y")]
MASKS = {
    "multiplied": [
        node("Cast", "mask", "m", to=TensorProto.FLOAT),
        node("Sub", "one m", "inverse"),
        node("Mul", "inverse minus", "flat"),
        node("Unsqueeze", "flat axis", "added"),
        node("Add", "scores added", "masked"),
    ],
    "chosen, then added": [
        node("Cast", "mask", "m", to=TensorProto.BOOL),
        node("Where", "m zero minus", "flat"),
        node("Unsqueeze", "flat axis", "added"),
        node("Add", "added scores", "masked"),
    ],
    "chosen": [
        node("Cast", "mask", "flat", to=TensorProto.BOOL),
        node("Unsqueeze", "flat axis", "m"),
        node("Where", "m scores minus", "masked"),
    ],
    "constant": [node("Add", "scores causal", "masked")],
    "constant, with a bias": [node("Add", "biased scores", "masked")],
    "added twice": [
        node("Cast", "mask", "m", to=TensorProto.BOOL),
        node("Where", "m zero minus", "flat"),
        node("Unsqueeze", "flat axis", "added"),
        node("Add", "scores added", "first"),
        node("Add", "first causal", "masked"),
    ],
    "chosen and added": [
        node("Cast", "mask", "flat", to=TensorProto.BOOL),
        node("Unsqueeze", "flat axis", "m"),
        node("Where", "m scores minus", "first"),
        node("Add", "first causal", "masked"),
    ],
    "for windows": [
        node("Cast", "mask", "m", to=TensorProto.BOOL),
        node("Where", "m zero minus", "flat"),
        node("Unsqueeze", "flat axis", "added"),
        node("Add", "scores added", "masked"),
        node("Reshape", "masked heads", "reshaped"),
        node("Reshape", "reshaped back", "in_rows"),
    ],
}


def attention(mask: str, minus: float = -10000.0, more: tuple[Any, ...] = ()) -> onnx.ModelProto:
    masks = MASKS[mask]
    softmax = node("Softmax", masks[-1].output[0], "p", axis=-1)
    nodes = [*PROJECTIONS, *masks, softmax, *ATTENTION, *more]
    read = {name for one in nodes for name in one.input}
    inputs = [tiny.info(name, [1, TOKENS], TensorProto.INT64) for name in ("ids", "mask")]
    outputs = {"y": [1, TOKENS, WIDTH], **({"z": [1, "a", "b"]} if more else {})}
    kept = {name: array for name, array in constants(minus).items() if name in read}
    return tiny.model(nodes, inputs, outputs, kept, opset=20, ir_version=9)


def samples(count: int = 4) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    found = []
    for seen in draw.integers(2, TOKENS, count):
        ids = draw.integers(0, WORDS - 1, (1, TOKENS))
        found.append({"ids": ids, "mask": (np.arange(TOKENS) < seen)[None].astype(np.int64)})
    return found


def plan_of(model: onnx.ModelProto, spec: TargetSpec) -> Plan:
    return make_plan(prepare(ir.from_proto(model), 20), spec)


def test_sums_and_masks_are_known(dsp: TargetSpec) -> None:
    plan = plan_of(attention("multiplied"), dsp)
    assert plan.tensors["masked"].softmax_axis == -1
    assert plan.tensors["flat"].masks == (("masked", "scores"),)
    assert plan.tensors["added"].source == "flat"
    others = [one for name, one in plan.tensors.items() if name not in ("masked", "flat")]
    # what is added to the mask is a mask of it, too, unless others read it
    assert {one.name for one in others if one.masks} == {"scores"}
    assert not any(one.softmax_axis is not None for one in others)


def test_sums_that_others_read_keep_their_range(dsp: TargetSpec) -> None:
    plan = plan_of(attention("multiplied", more=(node("Neg", "masked", "z"),)), dsp)
    assert plan.tensors["masked"].softmax_axis is None
    assert not any(one.masks for one in plan.tensors.values())


def test_masks_that_others_read_keep_their_range(dsp: TargetSpec) -> None:
    plan = plan_of(attention("multiplied", more=(node("Neg", "added", "z"),)), dsp)
    assert plan.tensors["masked"].softmax_axis == -1
    assert not plan.tensors["flat"].masks


def test_masks_that_are_given_as_a_result_keep_their_range(tmp_path: Path) -> None:
    """Even where that is the mask in another shape, which no integer operator reads."""
    model = attention("chosen, then added", more=(node("Reshape", "flat row", "z"),))
    onnx.save(model, tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", data=samples(), target="DSP")
    (sample,) = samples(1)
    found = tiny.run(onnx.load(tmp_path / "int8.onnx"), sample)["z"]
    np.testing.assert_array_equal(found.reshape(-1), np.where(sample["mask"], 0, -10000)[0])


def test_a_mask_that_is_an_input_of_the_model_for_several_heads(dsp: TargetSpec) -> None:
    heads = [
        node("MatMul", "v kt", "scores_2"),
        node("Add", "mask scores_2", "masked_2"),
        node("Softmax", "masked_2", "p_2"),
        node("MatMul", "p_2 v", "z"),
    ]
    model = tiny.model(
        [*PROJECTIONS, node("Add", "scores mask", "masked"), node("Softmax", "masked", "p"),
         *ATTENTION, *heads],
        [tiny.info("ids", [1, TOKENS], TensorProto.INT64), tiny.info("mask", [1, 1, TOKENS])],
        {"y": [1, TOKENS, WIDTH], "z": [1, TOKENS, WIDTH]},
        {name: one for name, one in constants(0).items() if name in ("table", "wq", "wk", "wv")},
        opset=20,
        ir_version=9,
    )  # fmt: skip
    found = plan_of(model, dsp).tensors["mask"].masks
    assert set(found) == {("masked", "scores"), ("masked_2", "scores_2")}
    model.graph.node.append(node("Softmax", "mask", "share"))
    model.graph.output.append(tiny.info("share", [1, 1, TOKENS]))
    assert not plan_of(model, dsp).tensors["mask"].masks


def tensor(name: str = "t", **given: Any) -> TensorPlan:
    scheme = QScheme(dtype="uint8")
    return replace(
        TensorPlan(name=name, source=name, scheme=scheme, method="MAX_MIN", produced=True), **given
    )


def test_what_softmax_makes_zero_of_is_lifted() -> None:
    values = np.array([[5.0, 4.0, -10000.0, -np.inf], [-3.0, -9.0, -40.0, LOWEST]], np.float32)
    depth = math.log(4 * 2.0**9)
    found = lifted(values, tensor(softmax_axis=-1))
    np.testing.assert_allclose(
        found, [[5, 4, 5 - depth, 5 - depth], [-3, -9, -3 - depth, -3 - depth]], rtol=1e-6
    )
    before, after = (np.exp(one - one.max(-1, keepdims=True)) for one in (values, found))
    change = before / before.sum(-1, keepdims=True) - after / after.sum(-1, keepdims=True)
    assert np.abs(change).max() < 0.5 / 256


@pytest.mark.parametrize("minus", [-10000.0, LOWEST, -np.inf])
def test_a_row_that_is_masked_from_end_to_end_ends_where_others_do(minus: float) -> None:
    values = np.array([[5, 4, minus], [-3, -60, minus], [minus, minus, minus]], np.float32)
    depth = math.log(3 * 2.0**9)
    found = lifted(values, tensor(softmax_axis=-1))
    assert found.min() == np.float32(-3) - np.float32(depth)
    np.testing.assert_allclose(found[2], -3 - depth, rtol=1e-6)
    # scores may be far apart, too
    apart = np.array([[500.0, 499.0], [-300.0, -301.0]], np.float32)
    np.testing.assert_array_equal(lifted(apart, tensor(softmax_axis=-1)), apart)


def test_along_the_axis_of_softmax() -> None:
    values = np.array([[5.0, -10000.0], [-10000.0, 4.0]], np.float32)
    turned = lifted(values.T.copy(), tensor(softmax_axis=0)).T
    np.testing.assert_array_equal(lifted(values, tensor(softmax_axis=1)), turned)


def test_other_values_are_not_touched() -> None:
    values = np.array([-np.inf, 0, 1], np.float32)
    assert lifted(values, tensor()) is values
    assert np.isfinite(lifted(values, tensor(masks=(("sum", "scores"),)))).all()


def test_masks_go_as_low_as_sums_need() -> None:
    tensors = {
        "mask": tensor("mask", masks=(("one", "first"), ("two", "second"))),
        **{name: tensor(name) for name in ("one", "two", "first", "second")},
    }
    ranges = {
        "mask": Range(low=-10000.0, high=0.0),
        "one": Range(low=-12.0, high=6.0),
        "two": Range(low=-9.0, high=8.0),
        "first": Range(low=-6.0, high=6.0),
        "second": Range(low=-10.0, high=10.0),
    }
    plan = Plan(nodes=(), tensors=tensors)
    found = narrowed(plan, ranges)
    assert found["mask"] == Range(low=-19.0, high=0.0)
    assert {name: one for name, one in found.items() if name != "mask"} == {
        name: one for name, one in ranges.items() if name != "mask"
    }
    assert narrowed(plan, found) == found
    small = {**ranges, "mask": Range(low=-3.0, high=0.0)}
    assert narrowed(plan, small) == small


def test_masks_of_sums_that_are_masks() -> None:
    """Each goes as low as the next sum needs, which counts as it is narrowed itself."""
    tensors = {
        "mask": tensor("mask", masks=(("first", "scores"),)),
        "scores": tensor("scores"),
        "first": tensor("first", masks=(("sum", 1.5),)),  # of a constant
        "sum": tensor("sum"),
    }
    ranges = {
        "mask": Range(low=-10000.0, high=0.0),
        "scores": Range(low=-4.0, high=4.0),
        "first": Range(low=-10004.0, high=4.0),
        "sum": Range(low=-8.0, high=5.0),
    }
    found = narrowed(Plan(nodes=(), tensors=tensors), ranges)
    assert (found["first"].low, found["mask"].low) == (-9.5, -13.5)


def test_an_operand_with_fixed_parameters() -> None:
    fixed = tensor("first", fixed=FixedOutput(scale=0.5, zero_point=128))
    plan = Plan(
        nodes=(),
        tensors={"mask": tensor("mask", masks=(("one", "first"),)), "one": tensor("one"),
                 "first": fixed},
    )  # fmt: skip
    ranges = {"mask": Range(low=-1e4, high=0.0), "one": Range(low=-10.0, high=0.0)}
    assert narrowed(plan, ranges)["mask"].low == -10.0 - 0.5 * 127


@pytest.mark.parametrize("minus", [-30.0, -10000.0, LOWEST, -math.inf])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_with_any_mask(mask: str, minus: float, tmp_path: Path) -> None:
    """The result does not depend on how minus infinity is written, and is close to float."""
    if mask == "multiplied" and minus == -math.inf:
        pytest.skip("0 * inf is no number in the float model")
    path = tmp_path / "float.onnx"
    onnx.save(attention(mask, minus), path)
    report = quantize(path, tmp_path / "int8.onnx", data=samples(), target="DSP")
    assert {one.decision for one in report.plan.nodes if one.op_type != "Cast"} <= {
        "integer", "fused", "untouched",
    }  # fmt: skip
    assert report.verification is not None
    assert not [one for one in report.warnings if "clips" in one]
    made = onnx.load(tmp_path / "int8.onnx")
    found = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    assert found["masked_scale"] < 0.2  # about 20 in 255 steps
    assert all(np.isfinite(one).all() for one in found.values() if one.dtype == np.float32)
    for sample in samples():
        before = tiny.run(onnx.load(path), sample)["y"]
        after = tiny.run(made, sample)["y"]
        assert np.abs(after - before).max() < 0.05 * np.ptp(before)


def test_rows_that_are_masked_from_end_to_end_cost_the_others_nothing(tmp_path: Path) -> None:
    """Texts that are padded on the left, to a model that looks at what came before only."""
    path = tmp_path / "float.onnx"
    onnx.save(attention("added twice"), path)
    padded = [{**one, "mask": one["mask"][:, ::-1].copy()} for one in samples()]
    quantize(path, tmp_path / "int8.onnx", data=padded, target="DSP")
    made = onnx.load(tmp_path / "int8.onnx")
    for one in padded:
        seen = one["mask"][0] > 0
        before, after = (tiny.run(each, one)["y"][0, seen] for each in (onnx.load(path), made))
        assert np.abs(after - before).max() < 0.05 * np.ptp(before)


def test_infinity_elsewhere_is_told_with_its_place(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Conv", "x w", "c", "conv"),
            node("Add", "c lost", "a", "plus"),
            node("Relu", "a", "y", "relu"),
        ],
        {"x": [1, 3, 4, 4]},
        {"y": [1, 4, 4, 4]},
        {"w": normal(4, 3, 1, 1), "lost": np.array([0, 1, -np.inf, 2], np.float32)},
    )
    onnx.save(made, tmp_path / "float.onnx")
    data = [tiny.feeds(made, seed) for seed in range(2)]
    with pytest.raises(NumericError, match="constant 'lost' of 'plus' holds NaN or infinity"):
        quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", data=data, target="DSP")


def test_a_table_is_integer_and_covers_what_no_sample_shows(
    dsp: TargetSpec, tmp_path: Path
) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(attention("chosen"), path)
    report = quantize(path, tmp_path / "int8.onnx", data=samples(), target="DSP")
    (gather,) = (one for one in report.plan.nodes if one.op_type == "Gather")
    assert gather.decision == "integer"
    made = onnx.load(tmp_path / "int8.onnx")
    stored = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    assert stored["table_quantized"].dtype == np.uint8
    for end in ("scale", "zero_point"):  # the same codes before and behind: nothing is rounded
        assert stored[f"table_{end}"] == stored[f"e_{end}"]
    sample = {"ids": np.full((1, TOKENS), WORDS - 1), "mask": np.ones((1, TOKENS), np.int64)}
    before, after = (tiny.run(one, sample)["y"] for one in (onnx.load(path), made))
    assert np.sign(after).tolist() == np.sign(before).tolist()


def test_a_table_stays_float_where_only_integers_make_integers() -> None:
    cpu = discover().target("CPU").entry.spec
    plan = plan_of(attention("chosen"), cpu)
    (gather,) = (one for one in plan.nodes if one.op_type == "Gather")
    assert (gather.decision, gather.reason) == (
        "float", "it computes with constants only, or reads a constant table",
    )  # fmt: skip
    assert not any(one.softmax_axis is not None for one in plan.tensors.values())


def test_two_kinds_of_rows_tell_nothing(dsp: TargetSpec) -> None:
    more = (node("Softmax", "masked", "z", axis=1),)
    plan = plan_of(attention("chosen", more=more), dsp)
    assert plan.tensors["masked"].softmax_axis is None
