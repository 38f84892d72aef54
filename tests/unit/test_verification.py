from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq_core.arithmetic import cosine, sqnr
from ptq_core.diagnosis import node_errors
from ptq_core.emission import emit
from ptq_core.errors import ModelError, PtqError
from ptq_core.graph.model import serialize
from ptq_core.graph.prepare import prepare
from ptq_core.jobs import tensor_parameters
from ptq_core.planning import Plan, make_plan
from ptq_core.plugins import discover
from ptq_core.samples import Sample
from ptq_core.target_types import OperatorRule, TargetSpec
from ptq_core.types import QScheme, Range
from ptq_core.verification import Verification, check_model, verify
from tests import tiny_models as tiny

LAYERS = TargetSpec(
    activation=QScheme(),
    weight=QScheme(dtype="int8", symmetric=True, narrow_range=True),
    operators={"Conv": OperatorRule(quantize="always", per_channel=True, fuse=("Relu",))},
)
# onnxruntime has no integer kernels for 16-bit activations: it executes every layer in float.
WIDE = TargetSpec(
    activation=QScheme(dtype="uint16"),
    weight=LAYERS.weight,
    minimum_opset=21,
    operators=LAYERS.operators,
)


def samples(made: onnx.ModelProto, count: int = 4) -> list[Sample]:
    return [Sample(name=f"s{seed}", feeds=tiny.feeds(made, seed)) for seed in range(count)]


def quantized(
    made: onnx.ModelProto, spec: TargetSpec, reach: float = 6.0
) -> tuple[ir.Model, ir.Model, Plan]:
    """The prepared float model, the quantized one and the plan; all ranges are [-reach, reach]."""
    prepared = prepare(ir.from_proto(made), spec.minimum_opset)
    floats = prepared.model.clone()
    plan = make_plan(prepared, spec)
    ranges = {name: Range(low=-reach, high=reach) for name in plan.watched()}
    return floats, emit(prepared, plan, tensor_parameters(plan, ranges), spec), plan


def checked(made: onnx.ModelProto, spec: TargetSpec, **given: Any) -> Verification:
    _, after, plan = quantized(made, spec)
    runner = discover().runner("onnxruntime")
    return verify(
        made.SerializeToString(),
        serialize(after),
        plan,
        samples(made),
        runner,
        runner.entry.options(),
        **given,
    )


def test_closeness_is_that_of_the_outputs() -> None:
    made = tiny.residual()
    found = checked(made, LAYERS, held_out=True)
    _, after, _ = quantized(made, LAYERS)
    pairs = [
        (tiny.run(made, one.feeds)["y"], tiny.run(serialize(after), one.feeds, optimized=True)["y"])
        for one in samples(made)
    ]
    (output,) = found.outputs
    cosines = [cosine(a, b) for a, b in pairs]
    assert output.name == "y"
    # the runner's own float kernels add up in another order
    assert output.cosine == pytest.approx(np.mean(cosines), abs=1e-5)
    assert output.worst_cosine == pytest.approx(min(cosines), abs=1e-5)
    wanted, got = (np.stack(side) for side in zip(*pairs, strict=True))
    assert output.sqnr == pytest.approx(sqnr(wanted, got), abs=0.1)
    assert found.cosine == output.cosine
    assert (found.samples, found.held_out) == (4, True)


def test_layers_that_the_runtime_executes_in_integers_are_expected() -> None:
    found = checked(tiny.residual(), LAYERS)
    assert found.unexpected == ()
    assert found.executed["QLinearConv"] == 4


def test_layers_that_the_runtime_executes_in_float_are_named() -> None:
    found = checked(tiny.residual(), WIDE)
    assert "QLinearConv" not in found.executed
    # a Relu that was merged into its layer hides the layer's own result: its tensor is named
    assert len(found.unexpected) == 4
    assert "conv3" in found.unexpected, "the one that makes the output"


def test_a_runner_that_cannot_tell_is_no_complaint() -> None:
    made = tiny.residual()
    _, after, plan = quantized(made, LAYERS)
    runner = discover().runner("reference")
    found = verify(made.SerializeToString(), serialize(after), plan, samples(made), runner, None)
    assert dict(found.executed) == {}
    assert found.unexpected == ()
    assert found.cosine is not None
    assert found.cosine > 0.99


def test_nothing_compared_is_no_cosine() -> None:
    assert Verification().cosine is None


def test_node_errors_are_those_of_the_measured_tensors() -> None:
    made = tiny.residual()
    floats, after, plan = quantized(made, LAYERS)
    runner = discover().runner("onnxruntime")
    found = node_errors(floats, after, plan, samples(made), runner, runner.entry.options())
    names = {one.name for one in plan.nodes if one.decision == "integer"}
    assert {one.name for one in found} <= names
    assert found
    lost = [one.lost for one in found]
    assert lost == sorted(lost, reverse=True)


def test_an_invalid_model_is_a_defect_of_ours(tmp_path: Path) -> None:
    made = tiny.gemm()
    original = tiny.save(made, tmp_path)
    check_model(made.SerializeToString(), original)
    check_model(original, original)
    made.graph.node[1].input[0] = "nowhere"
    with pytest.raises(PtqError, match="not valid ONNX, nothing was written") as caught:
        check_model(made.SerializeToString(), original)
    assert caught.value.exit_code == 4


def test_a_float_model_that_was_invalid_before_is_blamed_itself(tmp_path: Path) -> None:
    made = tiny.gemm()
    made.graph.input[0].type.tensor_type.ClearField("shape")
    original = tiny.save(made, tmp_path)
    with pytest.raises(ModelError, match="is not valid ONNX: Field 'shape'") as caught:
        check_model(made.SerializeToString(), original)
    assert str(original) in str(caught.value)
    assert caught.value.exit_code == 2
