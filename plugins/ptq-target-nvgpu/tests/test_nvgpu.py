"""The files have the form that TensorRT takes: where Q and DQ stand, and what they hold."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ptq_core import quantize
from ptq_core.api import QScheme
from ptq_core.jobs import Report
from ptq_core.plugins import discover
from ptq_target_nvgpu import ptq_targets
from tests import tiny_models as tiny

(ENTRY,) = ptq_targets()
CHANNELS = 16  # the fewest that tensor cores like
SAMPLES = 8
NO_CORRECTIONS = {"smoothing": False, "bias_correction": False}


def conv(inputs: str, output: str, name: str, kernel: int = 3, **attributes: Any) -> Any:
    pads = [kernel // 2] * 4
    return tiny.node("Conv", inputs, output, name, pads=pads, **attributes)


def weight(outputs: int = CHANNELS, inputs: int = CHANNELS, kernel: int = 3, seed: int = 0) -> Any:
    return tiny.normal(outputs, inputs, kernel, kernel, seed=seed, scale=0.1)


def bias(seed: int = 9) -> Any:
    return tiny.normal(CHANNELS, seed=seed)


class Made:
    """A model quantized for NVGPU, and how its file is wired."""

    def __init__(self, source: onnx.ModelProto, folder: Path, **full: Any) -> None:
        self.source, self.path = source, folder / "int8.onnx"
        draw = np.random.default_rng(1)
        dims = [dim.dim_value or 2 for dim in source.graph.input[0].type.tensor_type.shape.dim]
        self.data = [draw.standard_normal(dims).astype(np.float32) for _ in range(SAMPLES)]
        self.report: Report = quantize(
            tiny.save(source, folder, "float.onnx"),
            self.path,
            data=self.data,
            config={
                "common_quant_param": {"quant_type": "FULL_QUANT"},
                "full_quant_param": {
                    "target_device": "NVGPU",
                    "activation_quant_method": "MAX_MIN",
                    **full,
                },
            },
        )
        self.model = onnx.load(self.path)
        onnx.checker.check_model(self.model, full_check=True)
        graph = self.model.graph
        self.constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self.producer = {out: one for one in graph.node for out in one.output}
        self.nodes = {one.name: one for one in graph.node}

    def source_of(self, node: str, position: int) -> tuple[str, str]:
        """What an input is: ``activation`` or ``weight`` behind a DQ, or ``float``; and of what."""
        name = self.nodes[node].input[position]
        maker = self.producer.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return "float", name
        if maker.input[0] in self.constants:
            return "weight", maker.input[0]
        return "activation", self.producer[maker.input[0]].input[0]

    def closeness(self) -> float:
        """Cosine of the first output with the float model's, Q and DQ computed as they stand."""
        name = self.source.graph.input[0].name
        wanted, found = (
            np.concatenate([next(iter(tiny.run(one, {name: x}).values())) for x in self.data])
            for one in (self.source, self.model)
        )
        norms = np.linalg.norm(wanted) * np.linalg.norm(found)
        return float((wanted * found).sum() / norms)


def block(nodes: Sequence[Any], **constants: Any) -> onnx.ModelProto:
    """A network from x to y, 16 channels of 6 by 6."""
    ends = {"x": ["N", CHANNELS, 6, 6]}, {"y": ["N", CHANNELS, 6, 6]}
    return tiny.model(nodes, *ends, constants)


def identity() -> onnx.ModelProto:
    """A residual block whose shortcut is its input."""
    return block(
        [
            conv("x w0 b0", "c0", "stem"),
            tiny.node("Relu", "c0", "r0", "relu0"),
            conv("r0 w1", "c1", "conv1"),
            tiny.node("Relu", "c1", "r1", "relu1"),
            conv("r1 w2 b0", "c2", "conv2"),
            tiny.node("Add", "c2 r0", "a", "add"),
            tiny.node("Relu", "a", "r2", "relu2"),
            conv("r2 w3", "y", "conv3", 1),
        ],
        w0=weight(), w1=weight(seed=1), w2=weight(seed=2), w3=weight(kernel=1, seed=3), b0=bias(),
    )  # fmt: skip


def downsample() -> onnx.ModelProto:
    """A residual block whose shortcut is a convolution, named first in the Add."""
    return block(
        [
            conv("x w0", "shortcut", "shortcut", 1),
            conv("x w1", "c1", "conv1"),
            tiny.node("Relu", "c1", "r1", "relu1"),
            conv("r1 w2 b0", "c2", "conv2"),
            tiny.node("Add", "shortcut c2", "a", "add"),
            tiny.node("Relu", "a", "y", "relu2"),
        ],
        w0=weight(kernel=1), w1=weight(seed=1), w2=weight(seed=2), b0=bias(),
    )  # fmt: skip


# ---------------------------------------------------------------------------------- the rules


def test_it_is_found_by_name() -> None:
    assert discover().target("nvgpu").entry.summary == ENTRY.summary


def test_offering_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; from ptq_target_nvgpu import ptq_targets; list(ptq_targets()); "
        "print(*sorted({'numpy', 'numba', 'onnx', 'onnx_ir', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run(  # the interpreter itself
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_numbers_are_symmetric() -> None:
    scheme = QScheme(dtype="int8", symmetric=True, narrow_range=True)
    assert ENTRY.spec.activation == ENTRY.spec.weight == scheme
    assert ENTRY.spec.bias == "float"
    assert ENTRY.spec.skip_guard == "none"
    assert not ENTRY.spec.dynamic_operators


@pytest.mark.parametrize("op_type", sorted(ENTRY.spec.operators))
def test_rules_are_about_operators_of_onnx(op_type: str) -> None:
    schema = onnx.defs.get_schema(op_type, 20, "")  # Gelu came with 20
    rule = ENTRY.spec.operators[op_type]
    assert set(rule.attributes) <= set(schema.attributes)
    assert rule.quantize != "never" or rule.reason
    assert rule.quantize == "never" or rule.output == "float"


# ---------------------------------------------------------------------------------- placement


def test_results_stay_float_until_what_is_merged_is_through(tmp_path: Path) -> None:
    made = Made(identity(), tmp_path)
    assert made.source_of("stem", 0) == ("activation", "x")
    assert made.source_of("conv1", 0) == ("activation", "r0")
    assert made.source_of("conv2", 0) == ("activation", "r1")
    assert made.source_of("conv3", 0) == ("activation", "r2")
    assert [made.nodes[f"relu{i}"].input[0] for i in range(3)] == ["c0", "c1", "a"]
    assert made.producer["y"].op_type == "Conv"
    assert made.closeness() > 0.999


def test_a_shortcut_that_is_the_input_is_quantized_and_the_convolution_is_not(
    tmp_path: Path,
) -> None:
    made = Made(identity(), tmp_path)
    assert made.source_of("add", 0) == ("float", "c2")
    assert made.source_of("add", 1) == ("activation", "r0")
    # one pair for all who read the tensor
    assert made.nodes["add"].input[1] == made.nodes["conv1"].input[0]


def test_of_two_convolutions_the_shortcut_is_quantized(tmp_path: Path) -> None:
    made = Made(downsample(), tmp_path)
    assert made.source_of("add", 0) == ("activation", "shortcut")
    assert made.source_of("add", 1) == ("float", "c2")
    assert made.nodes["conv1"].input[0] == made.nodes["shortcut"].input[0]
    assert made.closeness() > 0.999


def test_a_result_that_is_added_to_itself_stays_float(tmp_path: Path) -> None:
    """Nothing of it is skipped; and the rules do not ask for it."""
    nodes = [
        conv("x w0", "c", "conv0"),
        tiny.node("Add", "c c", "a", "add"),
        conv("a w1", "y", "conv1"),
    ]
    made = Made(block(nodes, w0=weight(), w1=weight(seed=1)), tmp_path)
    assert [made.source_of("add", i) for i in (0, 1)] == [("float", "c")] * 2
    assert not made.report.findings


def test_an_add_without_a_convolution_stays_float(tmp_path: Path) -> None:
    nodes = [
        conv("x w0", "c0", "conv0"),
        tiny.node("Sigmoid", "c0", "s", "gate"),
        tiny.node("Add", "s x", "y", "add"),
    ]
    made = Made(block(nodes, w0=weight()), tmp_path)
    assert [made.source_of("add", i) for i in (0, 1)] == [("float", "s"), ("float", "x")]


def test_movers_and_pools_have_no_pairs_of_their_own(tmp_path: Path) -> None:
    """TensorRT moves the Q at the last convolution's input to their front."""
    nodes = [
        conv("x w0", "c0", "conv0"),
        conv("x w1", "c1", "conv1"),
        tiny.node("Concat", "c0 c1", "both", "concat", axis=1),
        tiny.node(
            "MaxPool", "both", "p", "pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]
        ),
        conv("p w2", "y", "conv2", 1),
    ]
    made = Made(
        block(nodes, w0=weight(), w1=weight(seed=1), w2=weight(inputs=32, kernel=1)), tmp_path
    )
    assert list(made.nodes["concat"].input) == ["c0", "c1"]
    assert list(made.nodes["pool"].input) == ["both"]
    assert made.source_of("conv2", 0) == ("activation", "p")
    pairs = [one for one in made.model.graph.node if one.op_type == "QuantizeLinear"]
    assert [one.input[0] for one in pairs] == ["x", "p"]


def test_attention_has_integers_where_weights_are(tmp_path: Path) -> None:
    made = Made(tiny.transformer(), tmp_path, **NO_CORRECTIONS)
    for name in ("q", "k", "v", "o", "up", "down"):
        assert made.source_of(name, 0)[0] == "activation"
        assert made.source_of(name, 1)[0] == "weight"
        assert made.source_of(f"{name}_bias", 1)[0] == "float"
    for name in ("scores", "context", "residual1", "residual2"):
        assert {made.source_of(name, i)[0] for i in (0, 1)} == {"float"}
    reasons = {one.name: one.reason for one in made.report.plan.nodes}
    assert "two activations" in reasons["scores"]
    assert made.closeness() > 0.99


# ---------------------------------------------------------------------------- what they hold


def chain() -> onnx.ModelProto:
    """A depthwise and a transposed convolution, a classifier; biases everywhere."""
    return tiny.model(
        [
            conv("x w0 b0", "c0", "conv0"),
            tiny.node("Clip", "c0 zero six", "r0", "relu6"),
            conv("r0 w1 b0", "c1", "depthwise", group=CHANNELS),
            tiny.node("ConvTranspose", "c1 w2 b1", "c2", "transposed", strides=[2, 2]),
            tiny.node("GlobalAveragePool", "c2", "p", "pool"),
            tiny.node("Flatten", "p", "f", "flatten"),
            tiny.node("Gemm", "f w3 b2", "y", "classifier", transB=1),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 40]},
        {
            "w0": weight(inputs=3), "b0": bias(), "zero": np.float32(0), "six": np.float32(6),
            "w1": weight(inputs=1, seed=1), "w2": weight(outputs=CHANNELS, inputs=24, seed=2),
            "b1": tiny.normal(24, seed=3), "w3": tiny.normal(40, 24, seed=4),
            "b2": tiny.normal(40, seed=5),
        },
    )  # fmt: skip


AXES = {"conv0": 0, "depthwise": 0, "transposed": 1, "classifier": 0}


@pytest.mark.parametrize("per_channel", [True, False])
def test_codes_are_int8_around_zero_and_biases_float(per_channel: bool, tmp_path: Path) -> None:
    made = Made(chain(), tmp_path, per_channel=per_channel, **NO_CORRECTIONS)
    pairs = [one for one in made.model.graph.node if one.op_type.endswith("zeLinear")]
    assert len(pairs) == 2 * 4 + 4  # four layers: activations, and weights without a Q
    for one in pairs:
        assert len(one.input) == 3, "an explicit zero point"
        scale, zero_point = made.constants[one.input[1]], made.constants[one.input[2]]
        assert zero_point.dtype == np.int8
        assert zero_point.shape == scale.shape
        assert not zero_point.any()
        assert scale.dtype == np.float32
        assert np.all(np.isfinite(scale) & (scale > 0))
    for name, axis in AXES.items():
        made_by = made.producer[made.nodes[name].input[1]]
        codes, scale = made.constants[made_by.input[0]], made.constants[made_by.input[1]]
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        if per_channel:
            assert {one.name: one.i for one in made_by.attribute} == {"axis": axis}
            assert scale.shape == (codes.shape[axis],)
        else:
            assert scale.shape == ()
        activation = made.producer[made.nodes[name].input[0]]
        assert made.constants[activation.input[1]].shape == ()
        assert made.source_of(name, 2)[0] == "float"
        assert made.constants[made.nodes[name].input[2]].dtype == np.float32
    assert made.closeness() > 0.99


def test_the_scale_is_the_largest_magnitude_by_127(tmp_path: Path) -> None:
    made = Made(identity(), tmp_path)
    first = made.producer[made.nodes["stem"].input[0]]
    peak = max(float(np.abs(one).max()) for one in made.data)
    assert made.constants[first.input[1]] == pytest.approx(peak / 127, rel=1e-6)


def test_weights_take_a_byte_each(tmp_path: Path) -> None:
    big = block([conv("x w0", "c", "one"), conv("c w1", "y", "two")],
                w0=weight(64, CHANNELS), w1=weight(CHANNELS, 64))  # fmt: skip
    made = Made(big, tmp_path)
    assert not any(one.dtype == np.float32 and one.size > 64 for one in made.constants.values())
    assert made.path.stat().st_size < 0.3 * (tmp_path / "float.onnx").stat().st_size


def test_factors_of_gemm_stay_float(tmp_path: Path) -> None:
    nodes = [
        tiny.node("Gemm", "x w0", "g", "plain"),
        tiny.node("Gemm", "g w1", "y", "scaled", alpha=0.5),
    ]
    constants = {"w0": tiny.normal(32, 32), "w1": tiny.normal(32, 32, seed=1)}
    made = Made(tiny.model(nodes, {"x": ["N", 32]}, {"y": ["N", 32]}, constants), tmp_path)
    assert made.source_of("plain", 0)[0] == "activation"
    assert made.source_of("scaled", 0) == ("float", "g")


def test_a_skipped_layer_has_no_pairs(tmp_path: Path) -> None:
    source = tiny.save(identity(), tmp_path, "float.onnx")
    draw = np.random.default_rng(0)
    data = [draw.standard_normal((1, CHANNELS, 6, 6)).astype(np.float32) for _ in range(4)]
    quantize(source, tmp_path / "int8.onnx", data=data, target="NVGPU", skip=["conv2"])
    graph = onnx.load(tmp_path / "int8.onnx").graph
    (skipped,) = (one for one in graph.node if one.name == "conv2")
    assert list(skipped.input) == ["r1", "w2", "b0"]
    kinds = {one.name: one.data_type for one in graph.initializer}
    assert kinds["w2"] == TensorProto.FLOAT


def test_weights_on_the_fly_are_dequantized(tmp_path: Path) -> None:
    """And nothing that the importer does not know is in the file, nor a cache beside it."""
    source = tiny.save(identity(), tmp_path, "float.onnx")
    report = quantize(
        source,
        tmp_path / "w8.onnx",
        config={
            "common_quant_param": {
                "quant_type": "WEIGHT_QUANT",
                "bit_num": 8,
                "min_quant_weight_channel": 0,
            },
            "weight_quant_param": {"dequant_strategy": "ON_THE_FLY"},
        },
        target="NVGPU",
    )
    made = onnx.load(tmp_path / "w8.onnx")
    assert not made.functions
    counted = Counter(one.op_type for one in made.graph.node)
    assert counted == {"Conv": 4, "Relu": 3, "Add": 1, "DequantizeLinear": 4}
    assert report.files == [tmp_path / "w8.onnx"]
