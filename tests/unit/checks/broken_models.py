"""One small model for each code of ``ptq check``, and the same model mended.

What is wrong is what the argument ``broken`` changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from ml_dtypes import int4
from onnx import TensorProto, helper, numpy_helper

from tests.tiny_models import info, node, normal

F = np.float32


class Net:
    """Builds a quantized graph; tensors are names, constants are made where they are used."""

    def __init__(self, *shape: int | str, opset: int = 19) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs = [info("x", list(shape) or [1, 4, 6, 6])]
        self.rank = len(shape) or 4
        self.opset = opset
        self.opsets: list[Any] = []
        self.functions: list[Any] = []

    def constant(self, name: str, value: Any, dtype: Any = F) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def add(self, op_type: str, inputs: str, name: str, **given: Any) -> str:
        domain = given.pop("domain", "")
        made = node(op_type, inputs, f"{name}_out", name, **given)
        made.domain = domain
        self.nodes.append(made)
        return f"{name}_out"

    def pair(
        self,
        source: str,
        name: str,
        scale: Any = 0.02,
        zero: Any = 128,
        dtype: Any = np.uint8,
        *,
        behind: tuple[Any, Any] | None = None,
        axis: int | None = None,
        implicit: bool = False,
    ) -> str:
        """QuantizeLinear and DequantizeLinear; ``behind``: other parameters of the latter."""
        codes = self.quantize(source, name, scale, zero, dtype, axis=axis, implicit=implicit)
        scale, zero = behind or (scale, zero)
        return self.dequantize(codes, name, scale, zero, dtype, axis=axis, implicit=implicit)

    def quantize(
        self, source: str, name: str, scale: Any = 0.02, zero: Any = 128, dtype: Any = np.uint8,
        *, axis: int | None = None, implicit: bool = False,
    ) -> str:  # fmt: skip
        return self._coder("Quantize", source, f"{name}_q", scale, zero, dtype, axis, implicit)

    def dequantize(
        self, codes: str, name: str, scale: Any = 0.02, zero: Any = 128, dtype: Any = np.uint8,
        *, axis: int | None = None, implicit: bool = False,
    ) -> str:  # fmt: skip
        return self._coder("Dequantize", codes, f"{name}_dq", scale, zero, dtype, axis, implicit)

    def _coder(
        self, kind: str, source: str, name: str, scale: Any, zero: Any, dtype: Any,
        axis: int | None, implicit: bool,
    ) -> str:  # fmt: skip
        given = {} if axis is None else {"axis": axis}
        scale = scale if isinstance(scale, str) else self.constant(f"{name}_scale", scale)
        inputs = f"{source} {scale}"
        if not implicit:
            inputs += " " + self.constant(f"{name}_zero", zero, dtype)
        return self.add(f"{kind}Linear", inputs, name, **given)

    def weight(
        self, name: str, shape: tuple[int, ...], scale: Any = 0.01, zero: Any = 0,
        dtype: Any = np.int8, axis: int | None = None, *, implicit: bool = False,
    ) -> str:  # fmt: skip
        """Codes of weights behind DequantizeLinear."""
        codes = (normal(*shape) * 100).clip(-127, 127)
        codes += 128 if np.dtype(dtype) == np.uint8 else 0
        self.constant(f"{name}_codes", codes.round(), dtype)
        return self.dequantize(
            f"{name}_codes", name, scale, zero, dtype, axis=axis, implicit=implicit
        )

    def bias(self, name: str, size: int, scale: Any = 0.0002, dtype: Any = np.int32) -> str:
        """Codes of a bias behind DequantizeLinear, with one scale or a list of them."""
        self.constant(f"{name}_codes", np.arange(size), dtype)
        axis = 0 if np.ndim(scale) else None
        return self.dequantize(f"{name}_codes", name, scale, np.zeros(np.shape(scale)), dtype,
                               axis=axis)  # fmt: skip

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            self.inputs,
            [info(name, ["?"] * self.rank) for name in outputs],
            [_tensor(array, name) for name, array in self.constants.items()],
        )
        made = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset), *self.opsets],
            functions=self.functions,
            ir_version=9,
        )
        onnx.checker.check_model(made)
        return made


def _tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
    if array.dtype != int4:
        return numpy_helper.from_array(array, name)
    codes = array.astype(np.int8)  # older onnx knows the type, but not NumPy's
    return helper.make_tensor(name, TensorProto.INT4, codes.shape, codes.reshape(-1))


@dataclass(frozen=True)
class Case:
    """A code, the target for which it is shown, and the model: broken, or not."""

    code: str
    target: str
    make: Callable[[bool], onnx.ModelProto]
    found: str = ""  # the code in the finding, where it is another

    def __str__(self) -> str:
        return f"{self.code}-{self.target}"


CASES: list[Case] = []


def case(code: str, *targets: str, found: str = "") -> Callable[[Any], Any]:
    def register(make: Callable[[bool], onnx.ModelProto]) -> Callable[[bool], onnx.ModelProto]:
        CASES.extend(Case(code, target, make, found) for target in targets)
        return make

    return register


def u8_layer(broken_weight: dict[str, Any] | None = None, **given: Any) -> onnx.ModelProto:
    """DequantizeLinear, Conv with bias, QuantizeLinear: what CPU and DSP want."""
    net = Net(opset=21)
    data = net.pair("x", "x", **given.get("x", {}))
    weight = net.weight("w", (4, 4, 3, 3), **(broken_weight or {}))
    scale = given.get("bias", 0.0002)
    bias = f" {net.bias('b', 4, scale)}" if scale else ""
    conv = net.add("Conv", f"{data} {weight}{bias}", "conv")
    return net.model(net.pair(conv, "y", **given.get("y", {})))


S8 = {"zero": 0, "dtype": np.int8}


def s8_layer(
    x: dict[str, Any] | None = None, w: dict[str, Any] | None = None, **given: Any
) -> onnx.ModelProto:
    """DequantizeLinear, Conv with a float result: what NVGPU wants (ASCEND too)."""
    net = Net(opset=given.get("opset", 19))
    data = net.pair("x", "x", **{**S8, **(x or {})})
    weight = net.weight("w", (16, 16, 3, 3), **(w or {}))
    return net.model(net.add("Conv", f"{data} {weight}", "conv"))


# ---------------------------------------------------------------------------------- operators


@case("X-OPSET", "NVGPU", "ASCEND", "DSP")
def opset(broken: bool) -> onnx.ModelProto:
    net = Net(opset=25 if broken else 21)
    return net.model(net.add("Relu", "x", "relu"))


@case("X-DOMAIN", "CPU", "NVGPU", "DSP", "ASCEND")
def domain(broken: bool) -> onnx.ModelProto:
    net = Net()
    net.opsets = [helper.make_opsetid("mine", 1)]
    return net.model(net.add("Relu", "x", "relu", domain="mine" if broken else ""))


@case("X-OP-FORBIDDEN", "NVGPU", "DSP", "ASCEND")
def forbidden(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    if not broken:
        return net.model(net.add("Relu", "x", "relu"))
    net.nodes.append(node("DynamicQuantizeLinear", "x", "codes scale zero", "dynamic"))
    return net.model(net.add("Cast", "codes", "cast", to=TensorProto.FLOAT))


@case("X-OP-FORBIDDEN", "CPU", "NVGPU", "DSP")
def of_another_toolchain(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    made = net.model(net.add("Relu", "x", "relu"))
    if broken:
        made.graph.node[0].op_type = "AscendQuant"  # which is no operator of ONNX
    return made


@case("X-OP-UNSUPPORTED", "LISTED")
def unsupported(broken: bool) -> onnx.ModelProto:
    net = Net()
    return net.model(net.add("Tanh" if broken else "Relu", "x", "one"))


@case("S-DYNAMIC-SHAPE", "DSP")
def dynamic_shape(broken: bool) -> onnx.ModelProto:
    net = Net("N" if broken else 1, 4)
    return net.model(net.pair(net.add("Relu", net.pair("x", "x"), "relu"), "y", zero=0))


# ----------------------------------------------------------------------- scales, zero points


@case("Q-SCALE-NOT-CONST", "CPU", "NVGPU", "ASCEND", "DSP")
def scale_not_constant(broken: bool) -> onnx.ModelProto:
    net = Net()
    scale: Any = 0.02
    if broken:
        net.inputs.append(info("scale", []))
        scale = "scale"
    return net.model(net.pair("x", "x", scale, **S8))


@case("Q-SCALE-NONPOS", "CPU", "NVGPU", "DSP", "ASCEND")
def scale_not_positive(broken: bool) -> onnx.ModelProto:
    return s8_pair(0.0 if broken else 0.02)


def s8_pair(scale: Any) -> onnx.ModelProto:
    net = Net()
    return net.model(net.pair("x", "x", scale, **S8))


@case("Q-SCALE-RANK1", "CPU")
def scale_rank_one(broken: bool) -> onnx.ModelProto:
    net = Net(opset=19)
    one = [0.02] if broken else 0.02
    data = net.quantize("x", "x", one, [128] if broken else 128)
    return net.model(net.dequantize(data, "x", 0.02, 128))


@case("Q-ZP-IMPLICIT", "DSP")
def implicit_zero_point(broken: bool) -> onnx.ModelProto:
    scales = {"scale": [0.01, 0.02, 0.03, 0.04], "zero": [0] * 4, "axis": 0}
    return u8_layer({"dtype": int4, "implicit": broken, **scales}, bias=False)


@case("Q-ZP-NONZERO", "NVGPU")
def zero_point(broken: bool) -> onnx.ModelProto:
    return s8_layer({"zero": 3 if broken else 0})


@case("Q-PAIR-MISMATCH", "CPU", "NVGPU", "DSP", "ASCEND")
def mismatch(broken: bool) -> onnx.ModelProto:
    net = Net()
    return net.model(net.pair("x", "x", **S8, behind=(0.03, 0) if broken else None))


# -------------------------------------------------------------------------------- activations


@case("A-DTYPE", "NVGPU", "ASCEND")
def activation_type(broken: bool) -> onnx.ModelProto:
    return s8_layer({"dtype": np.uint8, "zero": 128} if broken else {})


@case("A-DTYPE", "CPU")
def activation_of_16_bits(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    return net.model(net.pair("x", "x", 0.02, 0, np.int16 if broken else np.int8))


@case("A-DTYPE", "DSP")
def activation_of_4_bits(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    return net.model(net.pair("x", "x", 0.02, 0, int4 if broken else np.int8))


@case("A-PER-AXIS-ACT", "CPU", "NVGPU", "DSP", "ASCEND")
def per_axis_activation(broken: bool) -> onnx.ModelProto:
    net = Net()
    if broken:
        scales, zeros = [0.01, 0.02, 0.03, 0.04], np.zeros(4)
        return net.model(net.pair("x", "x", scales, zeros, np.int8, axis=1))
    return net.model(net.pair("x", "x", **S8))


@case("A-PER-AXIS-ACT", "NVGPU", "ASCEND")
def guard_where_there_are_none(broken: bool) -> onnx.ModelProto:
    """Equal entries keep a layer in float for onnxruntime; other importers refuse them."""
    net = Net()
    entries = ([0.02] * 4, [0] * 4, np.int8)
    data = net.pair("x", "x", *entries, axis=1) if broken else net.pair("x", "x", **S8)
    return net.model(net.add("Conv", f"{data} {net.weight('w', (16, 4, 3, 3))}", "conv"))


@case("A-S8-MULTI-CONSUMER", "CPU")
def int8_readers(broken: bool) -> onnx.ModelProto:
    net = Net()
    data = net.pair("x", "x", **S8)
    weight = net.weight("w", (4, 4, 1, 1))
    conv = net.add("Conv", f"{data} {weight}", "conv")
    ends = [net.pair(conv, "y", **S8)]
    if broken:
        ends.append(net.add("Relu", data, "relu"))
    return net.model(*ends)


@case("A-S8-MULTI-CONSUMER", "CPU")
def int8_pair_for_each_reader(broken: bool) -> onnx.ModelProto:
    """Equal QuantizeLinear of one tensor are one to onnxruntime, which has two readers then."""
    net = Net()
    data = net.pair("x", "x", **S8)
    conv = net.add("Conv", f"{data} {net.weight('w', (4, 4, 1, 1))}", "conv")
    ends = []
    for name in ("a", "b") if broken else ("a",):
        weight = net.weight(f"{name}_w", (4, 4, 1, 1))
        reader = net.add("Conv", f"{net.pair(conv, name, **S8)} {weight}", f"{name}_conv")
        ends.append(net.pair(reader, f"{name}_end", **S8))
    return net.model(*ends)


@case("A-S8-MULTI-CONSUMER", "CPU")
def int8_in_operators(broken: bool) -> onnx.ModelProto:
    net = Net()
    dtype, zero = (np.int8, 0) if broken else (np.uint8, 128)
    codes = net.quantize("x", "x", 0.02, zero, dtype)
    net.constant("w", np.ones((4, 4, 1, 1)), np.int8)
    net.constant("ws", 0.01)
    net.constant("wz", 0, np.int8)
    inputs = f"{codes} x_q_scale x_q_zero w ws wz x_q_scale x_q_zero"
    return net.model(net.dequantize(net.add("QLinearConv", inputs, "conv"), "y", 0.02, zero, dtype))


@case("A-OP-NOT-QUANTISABLE", "CPU")
def quantized_constant_of_a_float_operator(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    data = net.pair("x", "x") if broken else "x"
    net.constant("gamma", np.ones(4))
    gamma = net.weight("g", (4,)) if broken else "gamma"
    return net.model(net.pair(net.add("LayerNormalization", f"{data} {gamma}", "norm"), "y"))


@case("A-OP-NOT-QUANTISABLE", "ASCEND", "CPU")
def pair_of_no_use(broken: bool) -> onnx.ModelProto:
    net = Net(2, 16)
    data = net.add("Relu", "x", "relu")
    data = net.pair(data, "a", zero=-128, dtype=np.int8) if broken else data
    soft = net.pair(net.add("Softmax", data, "softmax"), "b", **S8)
    return net.model(net.add("MatMul", f"{soft} {net.weight('w', (16, 16))}", "dense"))


# ------------------------------------------------------------------------------------ weights


@case("W-DTYPE", "CPU")
def slow_weights(broken: bool) -> onnx.ModelProto:
    return u8_layer({"dtype": np.uint8, "zero": 128} if broken else {})


@case("W-DTYPE", "CPU")
def slow_weights_of_dynamic_quantization(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    net.constant("codes", np.ones((4, 6)), np.uint8 if broken else np.int8)
    net.nodes.append(node("DynamicQuantizeLinear", "x", "a scale zero", "dynamic"))
    sums = net.add("MatMulInteger", "a codes zero", "product")
    return net.model(net.add("Cast", sums, "cast", to=TensorProto.FLOAT))


@case("W-DTYPE", "NVGPU", "ASCEND")
def refused_weights(broken: bool) -> onnx.ModelProto:
    return s8_layer(w={"dtype": np.uint8, "zero": 128} if broken else {})


@case("W-DTYPE", "DSP")
def refused_weights_of_16_bits(broken: bool) -> onnx.ModelProto:
    return u8_layer({"dtype": np.int16 if broken else np.int8})


@case("W-ASYM", "NVGPU", "ASCEND")
def zero_point_of_weights(broken: bool) -> onnx.ModelProto:
    return s8_layer(w={"zero": 5 if broken else 0})


@case("W-ASYM-PER-CHANNEL", "DSP")
def zero_points_of_channels(broken: bool) -> onnx.ModelProto:
    scales = [0.01, 0.02, 0.03, 0.04]
    if broken:
        return u8_layer({"scale": scales, "zero": [0, 1, 0, 0], "axis": 0}, bias=False)
    return u8_layer({"zero": 5}, bias=False)  # one zero point is fine there


@case("W-AXIS", "NVGPU", "ASCEND")
def axis_of_inputs(broken: bool) -> onnx.ModelProto:
    scales = np.linspace(0.01, 0.02, 16)
    return s8_layer(w={"scale": scales, "zero": np.zeros(16), "axis": 1 if broken else 0})


@case("W-AXIS", "CPU", "DSP")
def axis_of_inputs_u8(broken: bool) -> onnx.ModelProto:
    scales = [0.01, 0.02, 0.03, 0.04]
    given = {"scale": scales, "zero": [0] * 4, "axis": 1 if broken else 0}
    return u8_layer(given, bias=False)


def _with_small_channel(made: onnx.ModelProto) -> onnx.ModelProto:
    """Codes of one output channel are a twentieth of the others'."""
    codes = next(one for one in made.graph.initializer if one.name == "w_codes")
    array = numpy_helper.to_array(codes).copy()
    array[1] //= 20
    codes.CopyFrom(numpy_helper.from_array(array, codes.name))
    return made


@case("W-ONE-SCALE", "CPU", "DSP")
def one_scale_u8(broken: bool) -> onnx.ModelProto:
    made = u8_layer({})
    return _with_small_channel(made) if broken else made


@case("W-ONE-SCALE", "NVGPU", "ASCEND")
def one_scale_s8(broken: bool) -> onnx.ModelProto:
    made = s8_layer()
    return _with_small_channel(made) if broken else made


@case("W-PER-CHANNEL-NOT-ALLOWED", "ASCEND")
def per_channel(broken: bool) -> onnx.ModelProto:
    net = Net(2, 16)
    given = {"scale": np.linspace(0.01, 0.02, 16), "zero": np.zeros(16), "axis": 1}
    weight = net.weight("w", (16, 16), **(given if broken else {}))
    return net.model(net.add("MatMul", f"{net.pair('x', 'x', **S8)} {weight}", "dense"))


@case("W-SKIP-UNGUARDED", "CPU")
def unguarded(broken: bool) -> onnx.ModelProto:
    net = Net()
    codes = net.quantize("x", "x")
    if broken:
        data = net.dequantize(codes, "x")
    else:
        data = net.dequantize(codes, "x", [0.02] * 4, [128] * 4, axis=1)
    net.constant("w", normal(4, 4, 3, 3))
    relu = net.add("Relu", net.add("Conv", f"{data} w", "conv"), "relu")
    return net.model(net.pair(relu, "y", zero=0))


@case("W-SKIP-UNGUARDED", "CPU")
def guard_of_one_channel(broken: bool) -> onnx.ModelProto:
    """onnxruntime sees through a vector of one entry; an int32 bias keeps the layer in float."""
    net = Net(1, 1, 6, 6)
    data = net.pair("x", "x")
    net.constant("w", normal(4, 1, 3, 3))
    bias = "_" if broken else net.bias("b", 4, 1e-9)
    return net.model(net.pair(net.add("Conv", f"{data} w {bias}", "conv"), "y"))


# ------------------------------------------------------------------------------------- biases


def _with_bias(broken: bool, scale: float, dtype: Any) -> onnx.ModelProto:
    net = Net(opset=19)
    net.constant("float_bias", np.zeros(16))
    data, weight = net.pair("x", "x", **S8), net.weight("w", (16, 4, 3, 3))
    bias = net.bias("b", 16, scale, dtype) if broken else "float_bias"
    return net.model(net.add("Conv", f"{data} {weight} {bias}", "conv"))


@case("B-INT32-BIAS-DQ", "NVGPU")
def int32_bias(broken: bool) -> onnx.ModelProto:
    return _with_bias(broken, 0.0002, np.int32)


@case("B-QUANTISED", "NVGPU", "ASCEND")
def int8_bias(broken: bool) -> onnx.ModelProto:
    return _with_bias(broken, 0.02, np.int8)


@case("B-QUANTISED", "CPU")
def int8_bias_of_u8_layer(broken: bool) -> onnx.ModelProto:
    net = Net()
    dtype = np.int8 if broken else np.int32
    bias = net.bias("b", 4, dtype=dtype)
    inputs = f"{net.pair('x', 'x')} {net.weight('w', (4, 4, 3, 3))} {bias}"
    return net.model(net.pair(net.add("Conv", inputs, "conv"), "y"))


@case("B-SCALE-SHAPE", "DSP")
def scales_of_bias(broken: bool) -> onnx.ModelProto:
    return u8_layer(bias=[0.0002] * 4 if broken else 0.0002)


@case("B-SCALE", "ASCEND")
def scale_of_bias(broken: bool) -> onnx.ModelProto:
    return _with_bias(broken, 0.0003, np.int32)


@case("B-SCALE", "CPU")
def scale_of_bias_of_a_matmul(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    product = net.add("MatMul", f"{net.pair('x', 'x')} {net.weight('w', (4, 6))}", "dense")
    return net.model(
        net.add("Add", f"{product} {net.bias('b', 6, 3e-4 if broken else 2e-4)}", "add")
    )


# ---------------------------------------------------------------------------- results of layers


@case("O-NO-Q", "CPU", "DSP")
def float_result(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    data, weight = net.pair("x", "x"), net.weight("w", (4, 4, 3, 3))
    conv = net.add("Conv", f"{data} {weight}", "conv")
    return net.model(conv if broken else net.pair(conv, "y"))


@case("O-NO-Q", "CPU")
def second_reader(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    data, weight = net.pair("x", "x"), net.weight("w", (4, 4, 3, 3))
    conv = net.add("Conv", f"{data} {weight}", "conv")
    result = net.pair(conv, "y")
    return net.model(result, net.add("Mish", conv if broken else result, "mish"))


@case("O-GEMM-F32BIAS-NO-Q", "CPU")
def gemm_with_float_bias(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    net.constant("float_bias", np.zeros(6))
    bias = "float_bias" if broken else net.bias("b", 6)
    data, weight = net.pair("x", "x"), net.weight("w", (4, 6))
    return net.model(net.add("Gemm", f"{data} {weight} {bias}", "dense"))


@case("O-GEMM-F32BIAS-NO-Q", "CPU")
def gemm_with_matrix_as_bias(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    net.constant("float_bias", np.zeros((1, 6) if broken else 6))
    data, weight = net.pair("x", "x"), net.weight("w", (4, 6))
    return net.model(net.pair(net.add("Gemm", f"{data} {weight} float_bias", "dense"), "y"))


@case("O-MATMUL-1D-BIAS-NO-Q", "CPU")
def matmul_with_matrix_as_bias(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    net.constant("bias", np.zeros((1, 6) if broken else 6))
    product = net.add("MatMul", f"{net.pair('x', 'x')} {net.weight('w', (4, 6))}", "dense")
    return net.model(net.pair(net.add("Add", f"{product} bias", "add"), "y"))


@case("O-MATMUL-1D-BIAS-NO-Q", "CPU")
def matmul_with_float_bias(broken: bool) -> onnx.ModelProto:
    net = Net(2, 3, 4)
    net.constant("bias", np.zeros(6 if broken else (1, 6)))
    product = net.add("MatMul", f"{net.pair('x', 'x')} {net.weight('w', (4, 6))}", "dense")
    return net.model(net.add("Add", f"{product} bias", "add"))


@case("O-MATMUL-1D-BIAS-NO-Q", "CPU")
def matmul_of_matrices_with_float_bias(broken: bool) -> onnx.ModelProto:
    net = Net(2, 4)
    net.constant("matrix", np.zeros((1, 6)))
    bias = "matrix" if broken else net.bias("b", 6)
    product = net.add("MatMul", f"{net.pair('x', 'x')} {net.weight('w', (4, 6))}", "dense")
    return net.model(net.add("Add", f"{product} {bias}", "add"))


@case("O-Q-BEFORE-ACT", "NVGPU", found="O-Q-BEFORE-SIGMOID")
def before_sigmoid(broken: bool) -> onnx.ModelProto:
    return _before("Sigmoid", S8, broken)


@case("O-Q-BEFORE-ACT", "NVGPU", found="O-Q-BEFORE-RELU")
def before_relu(broken: bool) -> onnx.ModelProto:
    return _before("Relu", S8, broken)


@case("O-Q-BEFORE-ACT", "CPU", "DSP", found="O-Q-BEFORE-RELU")
def before_relu_u8(broken: bool) -> onnx.ModelProto:
    """With a zero point of 0 in front of it, the Relu changes nothing."""
    return _before("Relu", {"zero": 0}, True, zero=128 if broken else 0)


@case("O-Q-BEFORE-ACT", "CPU", "DSP", found="O-Q-BEFORE-RELU")
def between_add_and_relu(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    data = net.pair("x", "x")
    value = net.add("Add", f"{data} {data}", "add")
    value = net.pair(value, "a") if broken else value
    return net.model(net.pair(net.add("Relu", value, "relu"), "y", zero=0))


def _before(
    activation: str, given: dict[str, Any], broken: bool, zero: int | None = None
) -> onnx.ModelProto:
    net = Net(1, 16, 6, 6)
    weights = [net.weight(name, (16, 16, 1, 1)) for name in ("w", "v")]
    value = net.add("Conv", f"{net.pair('x', 'x', **given)} {weights[0]}", "conv")
    if broken:
        value = net.pair(value, "c", **{**given, **({} if zero is None else {"zero": zero})})
    value = net.pair(net.add(activation, value, "activation"), "a", **given)
    second = net.add("Conv", f"{value} {weights[1]}", "second")
    return net.model(net.pair(second, "y", **given))


@case("F-ACT-NOT-REDUNDANT", "CPU", "DSP")
def range_beyond_relu(broken: bool) -> onnx.ModelProto:
    return _activated("Relu", 0.02, 1 if broken else 0)


@case("F-ACT-NOT-REDUNDANT", "CPU", "DSP")
def range_beyond_clip(broken: bool) -> onnx.ModelProto:
    scale = np.nextafter(F(6.0 / 255), F(1)) + F(2e-9) if broken else F(6.0 / 255)
    return _activated("Clip", scale, 0)


def _activated(activation: str, scale: Any, zero: int) -> onnx.ModelProto:
    net = Net(opset=21)
    bounds = ""
    if activation == "Clip":
        net.constant("low", 0)
        net.constant("high", 6)
        bounds = " low high"
    value = net.add("Conv", f"{net.pair('x', 'x')} {net.weight('w', (4, 4, 1, 1))}", "conv")
    return net.model(net.pair(net.add(activation, value + bounds, "activation"), "y", scale, zero))


@case("F-FIXED-ENCODING", "DSP")
def encoding(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    sixteen = {"dtype": np.uint16}
    value = net.add("Sigmoid", net.pair("x", "x", 1e-4, 32768, **sixteen), "sigmoid")
    return net.model(net.pair(value, "y", (0.9 if broken else 1) / 65536, 0, **sixteen))


@case("P-PASSTHROUGH-QPARAMS", "CPU")
def moved(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    value = net.add("MaxPool", net.pair("x", "x"), "pool", kernel_shape=[2, 2])
    return net.model(net.pair(value, "y", 0.03 if broken else 0.02))


# ---------------------------------------------------------------------------------- the borders


@case("R-RESIDUAL", "NVGPU")
def both_operands(broken: bool) -> onnx.ModelProto:
    return _residual(shortcut=True, branch=broken)


@case("R-RESIDUAL", "NVGPU")
def no_operand(broken: bool) -> onnx.ModelProto:
    return _residual(shortcut=not broken, branch=False)


def _residual(*, shortcut: bool, branch: bool) -> onnx.ModelProto:
    net = Net(1, 16, 6, 6)
    data = net.pair("x", "x", **S8)
    value = net.add("Conv", f"{data} {net.weight('w', (16, 16, 1, 1))}", "conv")
    value = net.pair(value, "c", **S8) if branch else value
    add = net.add("Add", f"{value} {data if shortcut else 'x'}", "add")
    return net.model(net.add("Relu", add, "relu"))


@case("D-FLOAT-EDGE-IN", "NVGPU", "ASCEND")
def float_weights(broken: bool) -> onnx.ModelProto:
    net = Net(1, 16, 6, 6)
    net.constant("w", normal(16, 16, 1, 1))
    weight = "w" if broken else net.weight("w8", (16, 16, 1, 1))
    return net.model(net.add("Conv", f"{net.pair('x', 'x', **S8)} {weight}", "conv"))


@case("D-FLOAT-EDGE-IN", "CPU", "DSP")
def float_operand(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    data = net.pair("x", "x")
    net.constant("two", 2)
    two = "two" if broken else net.pair("two", "two", 0.01, 0)
    return net.model(net.pair(net.add("Mul", f"{data} {two}", "mul"), "y"))


@case("D-NO-OUTPUT-Q", "DSP")
def island(broken: bool) -> onnx.ModelProto:
    net = Net(opset=21)
    pool = net.add("GlobalAveragePool", net.pair("x", "x"), "pool")
    return net.model(pool if broken else net.pair(pool, "y"))
