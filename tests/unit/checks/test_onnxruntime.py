"""What the rules of CPU say is what onnxruntime does with these very models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ml_dtypes import int4
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from ptq_core.checks import check_model, inspect_model
from ptq_core.plugins import discover
from tests import tiny_models as tiny
from tests.unit.checks import broken_models as broken
from tests.unit.checks.broken_models import Net

CPU = discover().target("CPU").entry
IN_FLOAT: list[tuple[Callable[[bool], onnx.ModelProto], str, str]] = [
    # the operator in the broken model, and in the mended one
    (broken.int8_readers, "Conv", "QLinearConv"),
    (broken.int8_bias_of_u8_layer, "Conv", "QLinearConv"),
    (broken.float_result, "Conv", "QLinearConv"),
    (broken.second_reader, "Conv", "QLinearConv"),
    (broken.gemm_with_float_bias, "Gemm", "QGemm"),
    (broken.gemm_with_matrix_as_bias, "Gemm", "QGemm"),
    (broken.matmul_with_matrix_as_bias, "Gemm", "QGemm"),
    (broken.matmul_with_float_bias, "Gemm", "MatMulIntegerToFloat"),
    (broken.matmul_of_matrices_with_float_bias, "Gemm", "QGemm"),
    (broken.range_beyond_relu, "FusedConv", "QLinearConv"),
    (broken.float_operand, "Mul", "QLinearMul"),
]


def executed(made: onnx.ModelProto, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "executed.onnx")
    content = made.SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(one.op_type for one in onnx.load(folder / "executed.onnx").graph.node)


@pytest.mark.parametrize(("make", "floats", "integers"), IN_FLOAT, ids=lambda one: str(one)[10:30])
def test_computes_in_float(
    make: Callable[[bool], onnx.ModelProto], floats: str, integers: str, tmp_path: Path
) -> None:
    before, after = (executed(make(value), tmp_path) for value in (True, False))
    assert before[floats]
    assert not before[integers]
    assert after[integers]
    assert not after[floats]


def test_moves_floats(tmp_path: Path) -> None:
    before, after = (executed(broken.moved(value), tmp_path) for value in (True, False))
    assert before["DequantizeLinear"] == 2
    assert after["DequantizeLinear"] == 1


def test_computes_in_float_where_equal_pairs_have_two_readers(tmp_path: Path) -> None:
    before = executed(broken.int8_pair_for_each_reader(True), tmp_path)
    after = executed(broken.int8_pair_for_each_reader(False), tmp_path)
    assert (before["Conv"], before["QLinearConv"]) == (1, 2)
    assert (after["Conv"], after["QLinearConv"]) == (0, 2)


def test_converts_in_front_of_an_activation_that_it_would_merge(tmp_path: Path) -> None:
    before, after = (executed(broken.between_add_and_relu(one), tmp_path) for one in (True, False))
    assert before["QLinearAdd"] == after["QLinearAdd"] == 1
    assert before["DequantizeLinear"] == 2
    assert after["DequantizeLinear"] == 1
    assert not after["Relu"]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
def test_takes_transposed_weights(per_channel: bool, quantized: bool, tmp_path: Path) -> None:
    """As PyTorch's exporter writes linear layers: the axis is that before the Transpose."""
    net = Net(2, 4)
    given = {"scale": np.linspace(0.01, 0.02, 6), "zero": np.zeros(6), "axis": 0}
    given = given if per_channel else {"scale": 0.01, "zero": 0}
    if quantized:
        weight = net.weight("w", (6, 4), **given)
    else:
        net.constant("floats", tiny.normal(6, 4))
        weight = net.pair("floats", "w", **given, dtype=np.int8)
    turned = net.add("Transpose", weight, "turned", perm=[1, 0])
    product = net.add("MatMul", f"{net.pair('x', 'x')} {turned}", "dense")
    made = net.model(net.pair(product, "y"))
    assert executed(made, tmp_path)["QLinearMatMul"] == 1
    assert check_model(made.SerializeToString(), CPU) == ()


@pytest.mark.parametrize("integers", [True, False])
def test_takes_weights_of_blocks_where_it_computes_in_float(integers: bool, tmp_path: Path) -> None:
    net = Net(2, 32, opset=21)
    data = net.pair("x", "x") if integers else "x"
    net.constant("codes", np.ones((32, 16)), int4)
    net.constant("scales", np.full((2, 16), 0.02))
    net.constant("zeros", np.zeros((2, 16)), int4)
    weight = net.add("DequantizeLinear", "codes scales zeros", "w", axis=0, block_size=16)
    made = net.model(net.add("MatMul", f"{data} {weight}", "dense"))
    found = {one.code for one in check_model(made.SerializeToString(), CPU)}
    assert found == ({"W-AXIS", "W-DTYPE"} if integers else set())
    assert integers or executed(made, tmp_path)["MatMulNBits"] == 1


def test_takes_what_it_has_saved(tmp_path: Path) -> None:
    executed(tiny.MODELS["residual"](), tmp_path)
    saved = tmp_path / "executed.onnx"
    assert "com.microsoft.nchwc" in {one.domain for one in onnx.load(saved).graph.node}
    onnxruntime.InferenceSession(saved, providers=["CPUExecutionProvider"])
    assert check_model(saved, CPU) == ()


@pytest.mark.parametrize("make", [broken.unguarded, broken.guard_of_one_channel])
def test_quantizes_what_was_skipped(
    make: Callable[[bool], onnx.ModelProto], tmp_path: Path
) -> None:
    before, after = (executed(make(value), tmp_path) for value in (True, False))
    assert before["QLinearConv"]
    assert not after["QLinearConv"]


@pytest.mark.parametrize("reader", ["Mish", "QuantizeLinear", "output", "none"])
def test_leaves_a_layer_in_float_that_somebody_else_reads(reader: str, tmp_path: Path) -> None:
    """But an output of the model is nobody: the weights are quantized all the same."""
    net = Net(1, 4, 6, 6)
    net.constant("w", tiny.normal(4, 4, 3, 3))
    conv = net.add("Conv", f"{net.pair('x', 'x')} w", "conv")
    outputs = [net.pair(conv, "y")]
    if reader == "Mish":
        outputs.append(net.add("Mish", conv, "mish"))
    elif reader == "QuantizeLinear":
        outputs.append(net.pair(conv, "z", 0.05))
    elif reader == "output":
        outputs.append(conv)
    made = net.model(*outputs)
    told = {one.code for one in check_model(made.SerializeToString(), CPU)}
    executed(made, tmp_path)
    left = onnx.load(tmp_path / "executed.onnx").graph.initializer
    quantized = any(one.data_type == TensorProto.INT8 for one in left)
    assert quantized is (reader in ("output", "none"))
    assert told == ({"W-SKIP-UNGUARDED"} if quantized else set())


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (2, 4)])
def test_leaves_a_gemm_in_float_whose_bias_is_no_vector(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    net = Net(2, 4)
    net.constant("w", tiny.normal(4, 4))
    net.constant("b", np.zeros(shape))
    dense = net.add("Gemm", f"{net.pair('x', 'x')} w b", "dense")
    made = net.model(net.pair(dense, "y"))
    told = {one.code for one in check_model(made.SerializeToString(), CPU)}
    assert told == ({"W-SKIP-UNGUARDED"} if executed(made, tmp_path)["QGemm"] else set())


def test_takes_scales_of_another_axis_for_channels() -> None:
    made = broken.axis_of_inputs_u8(True)
    given = {"x": np.random.default_rng(0).uniform(-1, 1, (1, 4, 6, 6)).astype(np.float32)}
    told, done = (tiny.run(made, given, optimized=value) for value in (False, True))
    step = 0.02
    assert max(float(np.abs(told[name] - done[name]).max()) for name in told) > 5 * step


def test_adds_a_bias_of_another_scale_as_it_is() -> None:
    for value in (True, False):
        made = broken.scale_of_bias_of_a_matmul(value)
        given = {"x": np.random.default_rng(0).uniform(-1, 1, (2, 4)).astype(np.float32)}
        told, done = (tiny.run(made, given, optimized=one) for one in (False, True))
        close = [np.allclose(told[name], done[name], atol=1e-5) for name in told]
        assert all(close) is not value


# ------------------------------------------------------------ files from onnxruntime's quantizer


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, made: onnx.ModelProto) -> None:
        self._left = [tiny.feeds(made, seed) for seed in range(3)]

    def get_next(self) -> tiny.Arrays | None:
        return self._left.pop() if self._left else None


# What its defaults (int8 activations and weights) are told, and why it is worth telling.
DEFAULTS = {
    # every tensor with two readers keeps what touches it in float
    "residual": {"A-S8-MULTI-CONSUMER"},
    "pad_channel_shortcut": {"A-S8-MULTI-CONSUMER"},
    "two_outputs": {"A-S8-MULTI-CONSUMER"},
    "concat_unlike": {"A-S8-MULTI-CONSUMER"},
    # constants of normalizations are dequantized on every run
    "transformer": {"A-S8-MULTI-CONSUMER", "A-OP-NOT-QUANTISABLE"},
    "unnamed": {"A-OP-NOT-QUANTISABLE"},
    # a body reads the float result, so the convolution stays float
    "control_flow": {"O-NO-Q"},
    # its scale takes beta in, which the integer kernel does not look at: the result is wrong
    "gemm": {"B-SCALE"},
    "depthwise_relu6": {"A-S8-MULTI-CONSUMER"},
}


def peer(name: str, folder: Path, **given: object) -> Path:
    made = tiny.MODELS[name]()
    output = folder / "peer.onnx"
    quantize_static(str(tiny.save(made, folder)), str(output), _Samples(made), **given)
    return output


@pytest.fixture(autouse=True)
def _quiet() -> None:
    onnxruntime.set_default_logger_severity(3)


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize("name", DEFAULTS)
def test_default_output_of_onnxruntime(name: str, tmp_path: Path) -> None:
    found = check_model(peer(name, tmp_path), CPU)
    assert {one.code for one in found} == DEFAULTS[name], found


@pytest.mark.filterwarnings("ignore")
def test_its_excluded_layers_have_no_guard(tmp_path: Path) -> None:
    found = check_model(peer("residual", tmp_path, nodes_to_exclude=["conv2"]), CPU)
    (finding,) = (one for one in found if one.severity == "error")
    assert (finding.code, finding.node) == ("W-SKIP-UNGUARDED", "conv2")


@pytest.mark.filterwarnings("ignore")
def test_its_qoperator_form_computes_with_int8(tmp_path: Path) -> None:
    checked = inspect_model(peer("residual", tmp_path, quant_format=QuantFormat.QOperator), CPU)
    assert {one.code for one in checked.findings} == {"A-S8-MULTI-CONSUMER"}
    assert {one.node for one in checked.findings} >= {"conv1_quant", "conv2_quant"}
    assert checked.operators >= 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["NVGPU", "DSP", "ASCEND"])
def test_no_other_target_takes_the_qoperator_form(target: str, tmp_path: Path) -> None:
    path = peer("residual", tmp_path, quant_format=QuantFormat.QOperator)
    found = check_model(path, discover().target(target).entry)
    assert "X-OP-FORBIDDEN" in {one.code for one in found}
    for name in ("QLinearConv", "QLinearAdd"):
        assert any(name in one.message for one in found)
