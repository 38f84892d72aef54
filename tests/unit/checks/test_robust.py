"""Any ONNX model can be looked at: nothing crashes, nothing changes, our own files are clean."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ptq_core import quantize
from ptq_core.checks import check_model, inspect_model
from ptq_core.errors import ConfigError, ModelError
from ptq_core.graph.model import serialize
from ptq_core.plugins import discover
from ptq_core.target_types import CheckRule, Finding, TargetEntry
from tests import tiny_models as tiny
from tests.unit.checks import broken_models as broken
from tests.unit.checks.broken_models import CASES, Net

TARGETS = {name: discover().target(name).entry for name in ("CPU", "NVGPU", "DSP", "ASCEND")}
CPU = TARGETS["CPU"]


def ours(name: str, folder: Path, target: str = "CPU") -> Path:
    """A tiny model, quantized from the command line's own function."""
    made = tiny.MODELS[name]()
    data = folder / "data"
    names = list(tiny.feeds(made))
    for key, seed in itertools.product(names, range(3)):
        (data / key).mkdir(parents=True, exist_ok=True)
        np.save(data / key / f"{seed}.npy", tiny.feeds(made, seed)[key])
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": target},
        "data_preprocess_param": {
            "calibrate_path": ",".join(f"{key}:{data / key}" for key in names),
            "calibrate_size": 3,
            "input_type": "NPY",
        },
    }
    output = folder / "int8.onnx"
    quantize(tiny.save(made, folder), output, config=config)
    return output


@pytest.mark.parametrize("name", sorted(tiny.MODELS))
def test_what_we_make_for_cpu_is_clean(name: str, tmp_path: Path) -> None:
    checked = inspect_model(ours(name, tmp_path), CPU)
    assert checked.findings == ()
    assert checked.operators


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(tiny.MODELS))
def test_a_float_model_has_no_quantized_operator(name: str, target: str) -> None:
    checked = inspect_model(tiny.MODELS[name]().SerializeToString(), TARGETS[target])
    assert checked.operators == 0
    codes = {one.code for one in checked.findings}
    assert codes <= {"X-DOMAIN", "X-OP-FORBIDDEN", "S-DYNAMIC-SHAPE"}


@pytest.mark.parametrize("target", TARGETS)
def test_any_file_can_be_checked_for_any_target(target: str) -> None:
    for case in CASES:
        for value in (True, False):
            for one in check_model(case.make(value).SerializeToString(), TARGETS[target]):
                assert one.severity in ("error", "warning")
                assert one.message
                assert one.because
                assert one.fix


def test_order_is_that_of_the_graph_and_then_of_codes() -> None:
    net = Net(opset=25)
    value = net.pair("x", "x", 0.0, 3, np.int8)
    value = net.add("Relu", value, "relu", domain="elsewhere")
    net.opsets = [helper.make_opsetid("elsewhere", 1)]
    found = check_model(net.model(net.pair(value, "y", 0.02, 3, np.int8)).SerializeToString(),
                        TARGETS["NVGPU"])  # fmt: skip
    assert [(one.node, one.code) for one in found] == [
        ("", "X-OPSET"),
        ("x_q", "Q-SCALE-NONPOS"),
        ("x_q", "Q-ZP-NONZERO"),
        ("x_dq", "Q-SCALE-NONPOS"),
        ("relu", "X-DOMAIN"),
        ("y_q", "Q-ZP-NONZERO"),
    ]


def test_bodies_are_looked_into() -> None:
    """A convolution in a branch, on integers of the main graph, without a QuantizeLinear."""
    net = Net(1, 4, 6, 6)
    data, weight = net.pair("x", "x"), net.weight("w", (4, 4, 1, 1))
    bodies = {
        name: helper.make_graph(
            [helper.make_node("Conv", [data, weight], [f"{name}_out"], name)],
            name,
            [],
            [tiny.info(f"{name}_out", None)],
        )
        for name in ("then_branch", "else_branch")
    }
    net.inputs.append(tiny.info("flag", [], TensorProto.BOOL))
    net.nodes.append(helper.make_node("If", ["flag"], ["y"], "if", **bodies))
    found = check_model(net.model("y").SerializeToString(), CPU)
    assert {(one.code, one.node) for one in found} == {
        ("O-NO-Q", "then_branch"),
        ("O-NO-Q", "else_branch"),
    }
    forbidden = check_model(net.model("y").SerializeToString(), TARGETS["DSP"])
    assert "X-OP-FORBIDDEN" in {one.code for one in forbidden}


def test_bodies_of_functions_are_looked_into_where_they_are_put_in_place() -> None:
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"],
        [helper.make_node("Erf", ["a"], ["c"], "inner"), helper.make_node("Relu", ["c"], ["b"])],
        [helper.make_opsetid("", 19)],
    )  # fmt: skip
    net = Net(2, 4)
    net.functions = [function]
    net.opsets = [helper.make_opsetid("mine", 1)]
    content = net.model(net.add("Twice", "x", "call", domain="mine")).SerializeToString()
    assert check_model(content, CPU) == ()
    (inner,) = check_model(content, TARGETS["DSP"])
    assert (inner.code, inner.node) == ("X-OP-FORBIDDEN", "inner")
    (call,) = check_model(content, TARGETS["NVGPU"])
    assert (call.code, call.node) == ("X-DOMAIN", "call")


def test_what_decodes_weights_is_computed_first() -> None:
    net = Net(1, 4, 6, 6)
    net.constant("ones", np.ones((4, 4, 1, 1)))
    net.constant("axis", 0, np.int64)
    weight = net.add("CumSum", "ones axis", "decode")
    content = net.model(net.add("Conv", f"x {weight}", "conv")).SerializeToString()
    assert check_model(content, TARGETS["DSP"]) == ()
    net.add("CumSum", "x axis", "sum")
    (finding,) = check_model(net.model("sum_out").SerializeToString(), TARGETS["DSP"])
    assert (finding.code, finding.node) == ("X-OP-FORBIDDEN", "sum")


def test_constants_may_be_nodes() -> None:
    for value in (True, False):
        made = broken.range_beyond_clip(value)
        for tensor in list(made.graph.initializer):
            made.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        del made.graph.initializer[:]
        onnx.checker.check_model(made)
        codes = [one.code for one in check_model(made.SerializeToString(), CPU)]
        assert codes == (["F-ACT-NOT-REDUNDANT"] if value else [])


def test_the_model_stays_as_it_is() -> None:
    made = broken.range_beyond_clip(True)
    tensor = numpy_helper.from_array(np.float32(0), "other")
    made.graph.node.append(helper.make_node("Constant", [], ["other"], value=tensor))
    model = ir.from_proto(made)
    before = serialize(model)
    assert check_model(model, CPU)
    assert serialize(model) == before


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(broken.unguarded(True), path, save_as_external_data=True, location="weights",
              size_threshold=0)  # fmt: skip
    assert [one.code for one in check_model(path, CPU)] == ["W-SKIP-UNGUARDED"]
    (tmp_path / "weights").unlink()
    with pytest.raises(ModelError, match="is missing"):
        check_model(path, CPU)


def _changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """A model that is quantized well for CPU, but for one change."""
    made = broken.u8_layer(bias=False)
    change(made)
    return made.SerializeToString()


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.graph.node[-3].input.pop(),  # the convolution's weights
        lambda made: made.graph.node[0].attribute.append(helper.make_attribute("axis", "x")),
        lambda made: made.graph.initializer[0].CopyFrom(
            helper.make_tensor("x_q_scale", TensorProto.STRING, [], [b"large"])
        ),
    ],
    ids=["no weights", "axis is a text", "scale is a text"],
)
def test_what_is_not_valid_onnx_is_told(change: Callable[[onnx.ModelProto], object]) -> None:
    with pytest.raises(ModelError, match="is not valid ONNX: "):
        check_model(_changed(change), CPU)


def test_where_an_invalid_model_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_changed(lambda made: made.graph.node[-3].input.pop()))
    with pytest.raises(ModelError, match="is not valid ONNX") as caught:
        check_model(path, CPU)
    assert str(path) in str(caught.value)


def test_infinite_scales_are_compared_and_shown() -> None:
    net = Net(1, 4, 6, 6)
    scales = ([np.inf] * 4, [0] * 4)
    value = net.add("MaxPool", net.pair("x", "x", *scales, axis=1), "pool", kernel_shape=[1, 1])
    found = check_model(net.model(net.pair(value, "y")).SerializeToString(), CPU)
    (moved,) = (one for one in found if one.code == "P-PASSTHROUGH-QPARAMS")
    assert "are 4 times inf and 4 times 0 (uint8, axis 1) in front of it" in moved.message


@pytest.mark.parametrize("target", TARGETS)
def test_a_scale_without_numbers_is_none(target: str) -> None:
    net = Net(1, 4, 6, 6)
    conv = net.add("Conv", f"{net.pair('x', 'x', [], [])} {net.weight('w', (4, 4, 1, 1))}", "conv")
    made = net.model(net.pair(net.add("Relu", conv, "relu"), "y", [], []))
    codes = {one.code for one in check_model(made.SerializeToString(), TARGETS[target])}
    assert "Q-SCALE-NOT-CONST" in codes


def test_the_opset_may_be_under_the_other_name_of_onnx() -> None:
    made = broken.opset(True)
    made.opset_import[0].domain = "ai.onnx"
    (found,) = check_model(made.SerializeToString(), TARGETS["NVGPU"])
    assert (found.code, found.message) == ("X-OPSET", "the opset is 25, expected 24 at most")


def test_a_pair_along_two_axes_is_none() -> None:
    net = Net(1, 4, 6, 6)
    net.constant("floats", np.ones((4, 4, 1, 1)))
    scales, zeros = [0.01, 0.02, 0.03, 0.04], [0] * 4
    codes = net.quantize("floats", "w", scales, zeros, np.int8, axis=0)
    weight = net.dequantize(codes, "w", scales, zeros, np.int8, axis=1)
    made = net.model(net.add("Conv", f"x {weight}", "conv"))
    (found,) = check_model(made.SerializeToString(), CPU)
    assert found.code == "Q-PAIR-MISMATCH"
    assert "axis 1" in found.message
    assert "axis 0" in found.message


def test_packed_weights_are_no_floats() -> None:
    """Codes that a Cast widens are not divided by their scale once more."""
    net = Net(2, 16)
    net.constant("codes", np.ones((16, 16)), np.int16)
    wide = net.add("Cast", "codes", "cast", to=TensorProto.INT8)
    weight = net.dequantize(wide, "w", 0.5, 0, np.int8)
    made = net.model(net.add("MatMul", f"{net.pair('x', 'x')} {weight}", "dense"))
    assert check_model(made.SerializeToString(), CPU) == ()


@pytest.mark.parametrize("in_front", [True, False])
def test_a_layer_may_stay_in_float_between_integers(in_front: bool) -> None:
    """DSP has no other way where the layer in front needs an integer result."""
    net = Net(opset=21)
    net.constant("floats", tiny.normal(4, 4, 1, 1))
    data = net.pair("x", "x")
    if in_front:
        data = net.add("Conv", f"{data} {net.weight('w', (4, 4, 1, 1))}", "conv")
        data = net.pair(net.add("Relu", data, "relu"), "relu", zero=0)
    value = net.pair(net.add("Conv", f"{data} floats", "skipped"), "y")
    found = check_model(net.model(value).SerializeToString(), TARGETS["DSP"])
    assert [one.code for one in found] == ([] if in_front else ["D-FLOAT-EDGE-IN"])


def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("nothing of the kind")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        check_model(path, CPU)
    with pytest.raises(ModelError, match="is not an ONNX model"):
        check_model(b"\x00nothing", CPU)


def test_unknown_rules_of_a_target_are_refused() -> None:
    import dataclasses

    rule = CheckRule(severity="error", because="it does")
    checks = {**CPU.spec.checks, "W-SCALE": rule, "NONE": rule}
    entry = dataclasses.replace(CPU, spec=dataclasses.replace(CPU.spec, checks=checks))
    with pytest.raises(ConfigError, match="no code 'W-SCALE'") as caught:
        check_model(broken.unguarded(False).SerializeToString(), entry)
    assert len(caught.value.problems) == 2


def test_a_target_has_findings_of_its_own() -> None:
    import dataclasses

    def own(model: bytes | Path) -> list[Finding]:
        assert isinstance(model, bytes)
        return [Finding(code="MINE", severity="warning", node="conv", message="found",
                        because="it does", fix="mend it")]  # fmt: skip

    entry: TargetEntry = dataclasses.replace(CPU, check=own)
    made = broken.unguarded(True)
    for form in (made.SerializeToString(), ir.from_proto(made)):
        assert [one.code for one in check_model(form, entry)] == ["MINE", "W-SKIP-UNGUARDED"]


# --------------------------------------------------------------------- graphs of any kind

_OPERATORS = {"Relu": 1, "Sigmoid": 1, "MaxPool": 1, "Add": 2, "Mul": 2, "Conv": 1, "Concat": 2}


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Chains of operators with Q, DQ or both between some of them, sensible or not."""
    net = Net(1, 4, 6, 6)
    values = ["x"]
    for index in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from([*_OPERATORS, "pair", "pair", "pair"]))
        picked = [draw(st.sampled_from(values)) for _ in range(_OPERATORS.get(kind, 1))]
        name = f"n{index}"
        if kind == "pair":
            scale = draw(st.sampled_from([0.02, 0.0, [0.02], [0.02] * 4, np.inf, [0.1, 0.2, 0, 1]]))
            count = np.shape(scale)
            dtype = draw(st.sampled_from([np.int8, np.uint8]))
            zero = np.full(count, draw(st.sampled_from([0, 1])))
            axis = 1 if count else None
            implicit = draw(st.booleans()) and dtype is np.uint8
            value = net.pair(picked[0], name, scale, zero, dtype, axis=axis, implicit=implicit)
        elif kind == "Conv":
            weight = draw(st.sampled_from(["float", "codes", "activation"]))
            if weight == "float":
                second = net.constant(f"{name}_w", np.ones((4, 4, 1, 1)))
            else:
                second = net.weight(f"{name}_w", (4, 4, 1, 1))
            value = net.add("Conv", f"{picked[0]} {second}", name)
        else:
            extra = {"kernel_shape": [1, 1]} if kind == "MaxPool" else {}
            extra |= {"axis": 1} if kind == "Concat" else {}
            value = net.add(kind, " ".join(picked), name, **extra)
        values.append(value)
    return net.model(values[-1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=graphs())
def test_no_graph_crashes(made: onnx.ModelProto) -> None:
    content = made.SerializeToString()
    for entry in TARGETS.values():
        found = check_model(content, entry)
        assert found == check_model(content, entry)
        assert {one.node for one in found} <= {"", *(one.name for one in made.graph.node)}


@pytest.mark.parametrize("target", ["NVGPU", "ASCEND"])
def test_weights_may_be_quantized_in_the_graph(target: str) -> None:
    """As other tools write them: float32, QuantizeLinear, DequantizeLinear, one scale each channel.

    Residual Add and Relu stand where TensorRT merges them.
    """
    net = Net(1, 16, 6, 6)
    data = net.pair("x", "x", **broken.S8)
    results = []
    for name in ("first", "second"):
        net.constant(f"{name}_w", tiny.normal(16, 16, 3, 3))
        scales, zeros = np.linspace(0.01, 0.02, 16), np.zeros(16)
        weight = net.pair(f"{name}_w", f"{name}_w", scales, zeros, np.int8, axis=0)
        conv = net.add("Conv", f"{data} {weight}", name, pads=[1, 1, 1, 1])
        results.append(conv)
        relu = net.add("Relu", conv, f"{name}_relu")
        data = net.pair(relu, f"{name}_relu", **broken.S8) if name == "first" else data
    entry = TARGETS[target]
    assert check_model(net.model(results[-1]).SerializeToString(), entry) == ()
    for tensor in net.constants:
        if tensor.endswith("w_dq_zero"):
            net.constants[tensor] = np.ones(16, np.int8)
    codes = [one.code for one in check_model(net.model(results[-1]).SerializeToString(), entry)]
    assert codes.count("W-ASYM") == 2
