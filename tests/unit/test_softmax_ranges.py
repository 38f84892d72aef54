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
    }


PROJECTIONS = [
    node("Gather", "table ids", "e"),
    node("MatMul", "e wq", "q"),
    node("MatMul", "e wk", "k"),
    node("MatMul", "e wv", "v"),
    node("Transpose", "k", "kt", perm=[0, 2, 1]),
    node("MatMul", "q kt", "scores"),
]
ATTENTION = [node("Softmax", "masked", "p", axis=-1), node("MatMul", "p v", "y")]
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
}


def attention(mask: str, minus: float = -10000.0, more: tuple[Any, ...] = ()) -> onnx.ModelProto:
    nodes = [*PROJECTIONS, *MASKS[mask], *ATTENTION, *more]
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
