"""Weight quantization from Python: onnxruntime decodes the very weights, and nothing else is left.

Weights are judged where they end up: in a session of onnxruntime, which knows nothing of ptq.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core import quantize
from ptq_core.errors import ConfigError
from ptq_core.jobs import Settings
from ptq_core.weights.balance import input_scale
from ptq_core.weights.grid import quantize_weight
from ptq_core.weights.quantized import QuantizedWeight, with_half_parameters
from ptq_core.weights.zero_points import with_zero_points
from tests import tiny_models as tiny
from tests.tiny_models import node, normal
from tests.weight_checks import (
    cosine,
    decoded,
    executed,
    operators,
    run,
    shrink,
    weights,
)

WIDTHS = range(1, 17)


def conv_matmul_gather() -> onnx.ModelProto:
    """A convolution, a matrix and a table, large enough that parameters are few."""
    return tiny.model(
        [
            node("Conv", "x conv_w conv_b", "c", "conv", pads=[1, 1, 1, 1]),
            node("GlobalAveragePool", "c", "p", "pool"),
            node("Flatten", "p", "f", "flatten"),
            node("MatMul", "f matmul_w", "m", "matmul"),
            node("Gather", "table ids", "g", "gather"),
            node("Add", "m g", "y", "add"),
        ],
        [tiny.info("x", ["N", 10, 4, 4]), tiny.info("ids", ["N"], onnx.TensorProto.INT64)],
        {"y": ["N", 80]},
        {
            "conv_w": normal(192, 10, 3, 3),
            "conv_b": normal(192, seed=1),
            "matmul_w": normal(192, 80, seed=2),
            "table": normal(210, 80, seed=3),
        },
    )


def arithmetic(
    array: np.ndarray, bits: int, axes: tuple[int, ...], *, groups: int | None, balanced: bool
) -> QuantizedWeight:
    """A weight on its grid, as the defaults have it."""
    divisor = input_scale(array, axes) if balanced else None
    found = quantize_weight(
        array if divisor is None else array / divisor,
        bits,
        axes,
        strategy="MSE" if bits <= 8 else "MAX_MIN",
        correct=True,
        groups=groups,
    )
    return with_half_parameters(replace(found, input_scale=divisor))


def constant(made: onnx.ModelProto, name: str) -> np.ndarray:
    found = {one.name: one for one in made.graph.initializer}
    return onnx.numpy_helper.to_array(found[name])


# -------------------------------------------------------------------------------- the 16 widths


@pytest.mark.parametrize("bits", WIDTHS)
def test_onnxruntime_has_exactly_the_weights_of_the_arithmetic(bits: int, tmp_path: Path) -> None:
    made = conv_matmul_gather()
    report = shrink(made, tmp_path, bits)

    groups = next(one.group_size for one in report.plan.constants if one.tensor == "matmul_w")
    assert (groups > 0) == (bits <= 8)  # long channels of transformers have groups by default
    expected = {
        "conv_w": arithmetic(constant(made, "conv_w"), bits, (0,), groups=None, balanced=False),
        "matmul_w": arithmetic(
            constant(made, "matmul_w"), bits, (1,), groups=groups or None, balanced=True
        ),
        "table": arithmetic(constant(made, "table"), bits, (0,), groups=None, balanced=True),
    }
    found = decoded(tmp_path / "out.onnx", expected, tiny.feeds(made))
    for name, weight in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight.dequantize(), err_msg=name)

    stored = weights(report)
    assert set(stored) == set(expected)
    for name, weight in expected.items():
        one = stored[name]
        parameters = weight.scale.nbytes + weight.offset.nbytes
        parameters += 0 if weight.input_scale is None else weight.input_scale.nbytes
        array = constant(made, name)
        assert one.bits == bits
        assert one.bytes_before == array.nbytes
        codes = -(-array.size * bits // 8)
        # groups of eight codes are filled up; symmetric weights need no offset
        assert codes <= one.bytes_after <= codes + parameters + 2 * bits
        assert one.bits_per_weight == 8 * one.bytes_after / array.size
        assert 0 < one.entropy <= bits
        error = weight.dequantize().astype(np.float64) - array
        power = 10 * np.log10((array.astype(np.float64) ** 2).sum() / (error**2).sum())
        assert one.sqnr == pytest.approx(power, abs=1e-3)
        np.testing.assert_array_equal(one.scale, weight.scale)

    result = executed(tmp_path / "out.onnx", tmp_path)
    reference = executed(tmp_path / "model.onnx", tmp_path)
    assert operators(result.graph) == operators(reference.graph)
    assert not result.functions


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_file_has_no_byte_too_many(bits: int, tmp_path: Path) -> None:
    """Within 2 % of codes, parameters and what is not quantized."""
    made = tiny.model(
        [node("Conv", "x w b", "y", "conv")],
        {"x": ["N", 512, 2, 2]},
        {"y": ["N", 512, 2, 2]},
        {"w": normal(512, 512, 1, 1), "b": normal(512)},
    )
    report = shrink(made, tmp_path, bits)
    rest = report.bytes_before - 4 * 512 * 512
    bound = 512 * 512 * bits / 8 + 512 * 8 + rest
    assert report.bytes_after == (tmp_path / "out.onnx").stat().st_size
    assert report.bytes_after < 1.02 * bound + 2500  # a decoder, names and what made the file


@pytest.mark.parametrize("bits", [0, 1, 4, 8, 16])
def test_the_same_model_gives_the_same_bytes(bits: int, tmp_path: Path) -> None:
    for name in ("first.onnx", "second.onnx"):
        shrink(conv_matmul_gather(), tmp_path, bits, name=name)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


# ------------------------------------------------------------------------------- operators


def _one(op: str, weight: np.ndarray, shape: list[Any], **attributes: Any) -> onnx.ModelProto:
    """One layer of two inputs."""
    return tiny.model(
        [node(op, "x w", "y", "layer", **attributes)],
        {"x": shape},
        {"y": [None] * len(shape)},
        {"w": weight},
    )


def _recurrent(op: str, direction: str) -> onnx.ModelProto:
    gates, both = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + (direction == "bidirectional")
    return tiny.model(
        [node(op, "x w r b", "y", "layer", hidden_size=24, direction=direction)],
        {"x": [5, 2, 20]},
        {"y": [5, both, 2, 24]},
        {
            "w": normal(both, gates * 24, 20),
            "r": normal(both, gates * 24, 24, seed=1),
            "b": normal(both, 2 * gates * 24, seed=2),
        },
    )


def _constant_first() -> onnx.ModelProto:
    return tiny.model(
        [node("MatMul", "w x", "y", "layer")],
        {"x": [32, 3]},
        {"y": [40, 3]},
        {"w": normal(40, 32)},
    )


def _gather(axis: int) -> onnx.ModelProto:
    ids = tiny.info("ids", [2, 3], onnx.TensorProto.INT64)
    return tiny.model(
        [node("Gather", "w ids", "y", "layer", axis=axis)],
        [ids],
        {"y": [None] * 3},
        {"w": normal(64, 32)},
    )


# model, axes with a scale each of the weight w
LAYERS: dict[str, tuple[onnx.ModelProto, tuple[int, ...]]] = {
    "Conv": (_one("Conv", normal(24, 16, 3, 3), ["N", 16, 5, 5]), (0,)),
    "depthwise Conv": (_one("Conv", normal(64, 1, 5, 5), ["N", 64, 6, 6], group=64), (0,)),
    "grouped Conv": (_one("Conv", normal(24, 8, 3, 3), ["N", 16, 5, 5], group=2), (0,)),
    "Conv1d": (_one("Conv", normal(24, 16, 5), ["N", 16, 9]), (0,)),
    "Conv3d": (_one("Conv", normal(12, 6, 3, 3, 3), ["N", 6, 4, 4, 4]), (0,)),
    "ConvTranspose": (_one("ConvTranspose", normal(16, 24, 3, 3), ["N", 16, 4, 4]), (1,)),
    "depthwise ConvTranspose": (
        _one("ConvTranspose", normal(32, 1, 5, 5), ["N", 32, 4, 4], group=32), (0,),
    ),
    "grouped ConvTranspose": (
        _one("ConvTranspose", normal(16, 12, 3, 3), ["N", 16, 4, 4], group=2), (1,),
    ),
    "Gemm": (_one("Gemm", normal(48, 32), [3, 48]), (1,)),
    "Gemm transB": (_one("Gemm", normal(32, 48), [3, 48], transB=1), (0,)),
    "Gemm transA": (_one("Gemm", normal(48, 32), [48, 3], transA=1), (1,)),
    "Gemm transA, transB": (_one("Gemm", normal(32, 48), [48, 3], transA=1, transB=1), (0,)),
    "MatMul": (_one("MatMul", normal(48, 32), ["N", 7, 48]), (1,)),
    "MatMul of a stack": (_one("MatMul", normal(3, 24, 32), [3, 5, 24]), (2,)),
    "MatMul with its constant first": (_constant_first(), (0,)),
    "Gather": (_gather(0), (0,)),
    "Gather axis 1": (_gather(1), (1,)),
    **{
        f"{op} {direction}": (_recurrent(op, direction), (0, 1))
        for op in ("LSTM", "GRU", "RNN")
        for direction in ("forward", "reverse", "bidirectional")
    },
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_every_operator_with_weights(layer: str, tmp_path: Path) -> None:
    made, axes = LAYERS[layer]
    feeds = tiny.feeds(made)
    report = shrink(made, tmp_path, 6)
    stored = weights(report)["w"]
    array = constant(made, "w")
    kept = [size if axis in axes else 1 for axis, size in enumerate(array.shape)]
    if not layer.startswith(("MatMul", "Gemm")):
        assert list(stored.scale.shape) == kept
    found = decoded(tmp_path / "out.onnx", ["w"], feeds)["w"]
    assert found.shape == array.shape
    # the error is of its own channel's step: half of it, and what the fit and a clip add
    step = np.broadcast_to(stored.scale, stored.scale.shape).max()
    assert np.abs(found - array).max() <= 2.5 * step * np.abs(array).max() / 0.3
    assert stored.sqnr > 28
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.998
    reference, result = (executed(tmp_path / one, tmp_path) for one in ("model.onnx", "out.onnx"))
    assert operators(result.graph) == operators(reference.graph)
    first, second = (run(tmp_path / one, feeds) for one in ("model.onnx", "out.onnx"))
    assert cosine(first[0], second[0]) > 0.998


@pytest.mark.parametrize(
    ("layer", "asked", "used"),
    [
        ("Conv", 48, 48),
        ("Conv", 50, 48),  # the next divisor below
        ("Conv", 143, 72),  # a channel has 144: two groups at least
        ("Conv3d", 27, 27),
        ("depthwise Conv", 9, 5),
        ("depthwise Conv", 4, None),  # no divisor between 2 and 4
        ("ConvTranspose", 36, 4),  # inputs, of nine weights each
        ("Gemm transB", 16, 16),
        ("MatMul", 16, 16),
        ("MatMul of a stack", 24, 24),
        ("MatMul with its constant first", 8, 8),
        ("Gather", 8, None),
        ("LSTM forward", 8, None),
    ],
)
def test_groups_have_scales_of_their_own(
    layer: str, asked: int, used: int | None, tmp_path: Path
) -> None:
    made, axes = LAYERS[layer]
    array, balanced = constant(made, "w"), layer.startswith(("MatMul", "Gemm", "Gather"))
    whole = weights(shrink(made, tmp_path, 3, weight={"group_size": 0}))["w"]
    one = weights(shrink(made, tmp_path, 3, weight={"group_size": asked}))["w"]
    channels = int(np.prod([array.shape[axis] for axis in axes]))
    assert whole.scale.size == channels
    if used is not None:
        assert one.scale.size > channels
        assert one.sqnr > whole.sqnr
    expected = arithmetic(array, 3, axes, groups=used, balanced=balanced)
    np.testing.assert_array_equal(one.scale, expected.scale)
    found = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    np.testing.assert_array_equal(found, expected.dequantize())


@pytest.mark.parametrize("layer", ["Conv", "MatMul", "Gather", "LSTM bidirectional"])
def test_per_layer_has_one_scale(layer: str, tmp_path: Path) -> None:
    made, _ = LAYERS[layer]
    one = weights(shrink(made, tmp_path, 5, weight={"per_channel": False}))["w"]
    assert one.scale.size == 1
    expected = arithmetic(constant(made, "w"), 5, (), groups=None, balanced=False)
    found = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    np.testing.assert_array_equal(found, expected.dequantize())


# ------------------------------------------------------------------------------- on the fly


def _integers(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Constants of few bits, as the optimized graph has them."""
    found = {}
    for one in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(one.data_type)
        if kind in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "INT16", "UINT16"):
            found[one.name] = onnx.numpy_helper.to_array(one)
    return found


ON_THE_FLY = {"dequant_strategy": "ON_THE_FLY"}


@pytest.mark.parametrize("group_size", [0, 36])
@pytest.mark.parametrize("bits", [1, 3, 4, 8, 12, 16])
@pytest.mark.parametrize(
    "layer",
    ["Conv", "ConvTranspose", "MatMul", "Gemm transB", "Gather", "Gather axis 1", "LSTM forward"],
)
def test_on_the_fly_keeps_integers_in_memory(
    layer: str, bits: int, group_size: int, tmp_path: Path
) -> None:
    made, axes = LAYERS[layer]
    given = {**ON_THE_FLY, "group_size": group_size} if group_size else ON_THE_FLY
    report = shrink(made, tmp_path, bits, weight=given)
    one, array = weights(report)["w"], constant(made, "w")
    expected = quantize_weight(
        array,
        bits,
        axes,
        strategy="MSE" if bits <= 8 else "MAX_MIN",
        correct=True,
        groups=report.plan.constants[0].group_size or None,
    )
    grouped = bool(group_size) and not layer.startswith(("Gather", "LSTM"))
    assert (one.scale.size > np.prod([array.shape[axis] for axis in axes])) == grouped
    if layer != "Gather":  # which multiplies and adds what it has looked up
        expected = with_zero_points(array, expected, keep_sums=made.graph.node[0].op_type == "Conv")
        np.testing.assert_array_equal(one.zero_point, expected.zero_point)
    np.testing.assert_array_equal(one.scale, expected.scale)

    feeds = tiny.feeds(made)
    if layer == "Gather":
        (found,) = run(tmp_path / "out.onnx", feeds)
        np.testing.assert_array_equal(found, expected.dequantize()[feeds["ids"]])
    else:
        found = decoded(tmp_path / "out.onnx", ["w"], feeds)["w"]
        steps = expected.codes.astype(np.float32) - expected.zero_point.astype(np.float32)
        np.testing.assert_array_equal(found, (steps * expected.scale).reshape(array.shape))

    result = executed(tmp_path / "out.onnx", tmp_path)
    kept = sum(one.size for one in _integers(result.graph).values())
    assert kept >= array.size / (2 if bits <= 4 and layer.startswith(("MatMul", "Gemm")) else 1)
    floats = {one.name: int(np.prod(one.dims)) for one in result.graph.initializer
              if one.data_type == onnx.TensorProto.FLOAT}  # fmt: skip
    assert array.size not in floats.values()
    least = {1: 0.5, 3: 0.95, 4: 0.99}.get(bits, 0.9999)
    first, second = (run(tmp_path / one, feeds) for one in ("model.onnx", "out.onnx"))
    assert cosine(first[0], second[0]) > least


def test_mixed_bits_on_the_fly_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ON_THE_FLY with bit_num = 0"):
        shrink(conv_matmul_gather(), tmp_path, 0, weight=ON_THE_FLY)
    assert not (tmp_path / "out.onnx").exists()


# -------------------------------------------------------------------------------- with samples


def network(*, bias: bool = True) -> onnx.ModelProto:
    """Two convolutions behind Relu, as MatMul a layer without and one with an Add behind it."""
    constants = {
        "w1": normal(32, 3, 3, 3, scale=0.4),
        "w2": normal(48, 32, 3, 3, seed=1, scale=0.1),
        "w3": normal(48, 40, seed=2),
        "w4": normal(40, 24, seed=3),
        "b4": normal(24, seed=4),
    }
    if bias:
        constants |= {"b1": normal(32, seed=5), "b2": normal(48, seed=6)}
    b1, b2 = (" b1", " b2") if bias else ("", "")
    return tiny.model(
        [
            node("Conv", f"x w1{b1}", "c1", "conv1", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1", "relu1"),
            node("Conv", f"r1 w2{b2}", "c2", "conv2", strides=[2, 2]),
            node("Relu", "c2", "r2", "relu2"),
            node("GlobalAveragePool", "r2", "p", "pool"),
            node("Flatten", "p", "f", "flatten"),
            node("MatMul", "f w3", "m", "bare"),
            node("Relu", "m", "r3", "relu3"),
            node("MatMul", "r3 w4", "n", "dense"),
            node("Add", "n b4", "y", "add"),
        ],
        {"x": ["N", 3, 12, 12]},
        {"y": ["N", 24]},
        constants,
    )


def samples(count: int, seed: int = 0) -> list[np.ndarray]:
    """Pictures that differ in brightness, smooth as pictures are."""
    draw = tiny.rng(seed)
    found = []
    for _ in range(count):
        level = draw.uniform(0.2, 1.5, (1, 3, 1, 1))
        wave = np.sin(np.arange(12) * draw.uniform(0.2, 0.8) + draw.uniform(0, 6))
        noise = draw.standard_normal((1, 3, 12, 12)) * 0.3
        found.append((level * (1 + wave[:, None] * wave) + noise).astype(np.float32))
    return found


def error(folder: Path, name: str, given: list[np.ndarray]) -> float:
    """Relative error of a result on samples."""
    wanted, found = (
        np.concatenate([run(folder / one, {"x": array})[0].ravel() for array in given])
        for one in ("model.onnx", name)
    )
    return float(np.linalg.norm(wanted - found) / np.linalg.norm(wanted))


def codes(folder: Path, name: str) -> dict[str, np.ndarray]:
    proto = onnx.load(folder / name)
    return {
        one.name: onnx.numpy_helper.to_array(one)
        for one in proto.graph.initializer
        if one.name.endswith((".data", ".codes"))
    }


NO_GROUPS = {"group_size": 0}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_bias_correction_helps_on_unseen_samples(bits: int, bias: bool, tmp_path: Path) -> None:
    made = network(bias=bias)
    plain = shrink(made, tmp_path, bits, name="plain.onnx", weight=NO_GROUPS)
    report = shrink(made, tmp_path, bits, name="better.onnx", weight=NO_GROUPS, data=samples(40))
    unseen = samples(10, seed=1)
    before, after = (error(tmp_path, one, unseen) for one in ("plain.onnx", "better.onnx"))
    assert after < 0.7 * before
    assert any("biases of" in one for one in report.notes)
    assert not report.generated
    assert report.samples == 35
    assert report.verification is not None
    assert plain.generated
    assert any("generated input" in one for one in plain.notes)
    # only biases and scales have changed
    first, second = codes(tmp_path, "plain.onnx"), codes(tmp_path, "better.onnx")
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    # the Add that stands behind MatMul takes its offset; the bare one gets one of its own
    counted = operators(onnx.load(tmp_path / "better.onnx").graph)
    assert counted["MatMul"] == 2
    pairs = zip(plain.weights, report.weights, strict=True)
    assert any((one.scale != other.scale).any() for one, other in pairs)


def test_bias_correction_can_be_left_out(tmp_path: Path) -> None:
    off = {**NO_GROUPS, "bias_correction": False}
    shrink(network(), tmp_path, 4, name="without.onnx", weight=off)
    report = shrink(network(), tmp_path, 4, name="with.onnx", weight=off, data=samples(20))
    first, second = (onnx.load(tmp_path / one).graph for one in ("without.onnx", "with.onnx"))
    assert first.SerializeToString() == second.SerializeToString()
    assert not any("biases of" in one for one in report.notes)


@pytest.mark.parametrize("group", [1, 2, 32])
def test_corrected_transposed_convolutions(group: int, tmp_path: Path) -> None:
    """Their output channels are not on the axis of their scales where there are groups."""
    made = tiny.model(
        [
            node("Conv", "x w1", "c1", "conv"),
            node("Relu", "c1", "r", "relu"),
            node("ConvTranspose", "r w2", "y", "up", group=group, strides=[2, 2]),
        ],
        {"x": ["N", 3, 12, 12]},
        {"y": ["N", 32, 25, 25]},
        {"w1": normal(32, 3, 1, 1), "w2": normal(32, 32 // group, 3, 3, seed=1)},
    )
    shrink(made, tmp_path, 4, name="plain.onnx")
    report = shrink(made, tmp_path, 4, name="better.onnx", data=samples(20))
    unseen = samples(5, seed=1)
    assert error(tmp_path, "better.onnx", unseen) <= error(tmp_path, "plain.onnx", unseen)
    assert report.verification is not None


@pytest.mark.parametrize("group_size", [0, 16])
def test_corrected_groups(group_size: int, tmp_path: Path) -> None:
    weight = {"group_size": group_size}
    shrink(network(), tmp_path, 3, name="plain.onnx", weight=weight)
    shrink(network(), tmp_path, 3, name="better.onnx", weight=weight, data=samples(40))
    unseen = samples(10, seed=1)
    assert error(tmp_path, "better.onnx", unseen) < 0.8 * error(tmp_path, "plain.onnx", unseen)


@pytest.mark.parametrize("weight", [NO_GROUPS, {"group_size": 16}, ON_THE_FLY])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_is_better_than_rounding(bits: int, weight: dict[str, Any], tmp_path: Path) -> None:
    """On inputs that go together, as those of every trained network do."""
    made = tiny.model(
        [node("Gemm", "x w", "h", "first"), node("MatMul", "h v", "y", "second")],
        {"x": ["N", 64]},
        {"y": ["N", 48]},
        {"w": normal(64, 80), "v": normal(80, 48, seed=1)},
    )
    mixing = normal(8, 64, seed=2, scale=1.0)

    def draw(count: int, seed: int) -> list[np.ndarray]:
        factors = tiny.rng(seed).standard_normal((count, 1, 8))
        noise = tiny.rng(seed + 1).standard_normal((count, 1, 64)) * 0.2
        return list((factors @ mixing + noise).astype(np.float32))

    off = {**weight, "bias_correction": False}
    rounded = {**off, "quant_strategy": "MSE"}
    compensated = {**off, "quant_strategy": "GPTQ"}
    shrink(made, tmp_path, bits, name="rounded.onnx", weight=rounded, data=draw(100, 5))
    report = shrink(made, tmp_path, bits, name="gptq.onnx", weight=compensated, data=draw(100, 5))
    unseen = draw(20, 50)
    assert error(tmp_path, "gptq.onnx", unseen) < 0.75 * error(tmp_path, "rounded.onnx", unseen)
    assert (tmp_path / "gptq.onnx").stat().st_size == pytest.approx(
        (tmp_path / "rounded.onnx").stat().st_size, abs=1500
    )
    assert report.bytes_after == (tmp_path / "gptq.onnx").stat().st_size


def test_gptq_needs_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quant_strategy = GPTQ measures on samples"):
        shrink(network(), tmp_path, 4, weight={"quant_strategy": "GPTQ"})


def test_gptq_of_a_layer_that_reads_the_input(tmp_path: Path) -> None:
    """Nothing inside the model has to be looked at then."""
    made = tiny.model(
        [node("MatMul", "x w", "y", "layer")], {"x": ["n", 64]}, {"y": ["n", 40]},
        {"w": normal(64, 40)},
    )  # fmt: skip
    data = [normal(8, 64, seed=seed) for seed in range(4)]
    report = shrink(made, tmp_path, 4, weight={"quant_strategy": "GPTQ"}, data=data)
    assert report.verification is not None
    assert report.verification.outputs[0].sqnr > 20


def test_gptq_on_a_whole_network(tmp_path: Path) -> None:
    gptq = {**NO_GROUPS, "quant_strategy": "GPTQ"}
    data, unseen = samples(40), samples(10, seed=1)
    shrink(network(), tmp_path, 3, name="rounded.onnx", weight=NO_GROUPS, data=data)
    for name in ("gptq.onnx", "again.onnx"):
        shrink(network(), tmp_path, 3, name=name, weight=gptq, data=data)
    assert (tmp_path / "gptq.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    assert error(tmp_path, "gptq.onnx", unseen) < error(tmp_path, "rounded.onnx", unseen)


def test_a_missed_gate_is_told(tmp_path: Path) -> None:
    report = shrink(network(), tmp_path, 2, data=samples(8), settings=Settings(min_cosine=0.99999))
    assert not report.passed
    assert (tmp_path / "out.onnx").exists()
    assert shrink(network(), tmp_path, 8, settings=Settings(min_cosine=0.99)).passed


# --------------------------------------------------------------------------------- mixed bits


@pytest.mark.parametrize("init_scale", [0.01, 0.02, 0.1])
def test_mixed_bits_make_the_error_that_is_asked_for(init_scale: float, tmp_path: Path) -> None:
    report = shrink(conv_matmul_gather(), tmp_path, 0, mixed={"init_scale": init_scale})
    for one in report.weights:
        assert one.encoding == "ENTROPY"
        assert one.scale.size == 1
        # of normal weights without a mean, the relative error is that of the weights themselves
        assert one.sqnr == pytest.approx(-20 * np.log10(init_scale), abs=0.2)
        assert one.entropy == pytest.approx(np.log2(1.193 / init_scale), abs=0.15)
        margin = max(0.06 * one.entropy, 0.25)
        assert one.bits_per_weight < one.entropy + margin + 8 * 200 / one.size
    found = decoded(tmp_path / "out.onnx", weights(report), tiny.feeds(conv_matmul_gather()))
    for name, one in weights(report).items():
        steps = found[name].astype(np.float64) / one.scale.ravel()[0]
        assert np.abs(steps - np.round(steps)).max() < 1e-3  # one grid, with zero on it


def test_auto_tune_keeps_the_outputs(tmp_path: Path) -> None:
    data = samples(12)
    scales = tmp_path / "scales.json"
    report = shrink(
        network(), tmp_path, 0, name="tuned.onnx", data=data,
        mixed={"auto_tune": True}, weight={"bias_correction": False},
        settings=Settings(save_scales=scales),
    )  # fmt: skip
    cosines = []
    for one in data:
        first, second = (run(tmp_path / f, {"x": one})[0] for f in ("model.onnx", "tuned.onnx"))
        cosines.append(cosine(first, second))
    assert np.mean(cosines) >= 0.995 - 1e-4
    assert any(one.startswith("auto_tune: cosine 0.99") for one in report.notes)
    fixed = shrink(network(), tmp_path, 0, name="fixed.onnx")
    assert sum(one.bytes_after for one in report.weights) < sum(
        one.bytes_after for one in fixed.weights
    )
    # the steps, used again, give the same network, without any search
    again = shrink(
        network(), tmp_path, 0, name="again.onnx", data=data,
        mixed={"scales": str(scales)}, weight={"bias_correction": False},
    )  # fmt: skip
    assert "tune" not in again.seconds
    first, second = (onnx.load(tmp_path / one).graph for one in ("tuned.onnx", "again.onnx"))
    assert first.SerializeToString() == second.SerializeToString()


def test_auto_tune_without_samples(tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        report = shrink(network(), tmp_path, 0, name=name, mixed={"auto_tune": True})
        assert report.generated
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert any("generated samples" in one for one in report.notes)


def test_the_encoding_can_be_chosen(tmp_path: Path) -> None:
    entropy = shrink(conv_matmul_gather(), tmp_path, 0, name="entropy.onnx")
    packed = shrink(conv_matmul_gather(), tmp_path, 0, name="p.onnx", weight={"encoding": "packed"})
    plain = shrink(
        conv_matmul_gather(), tmp_path, 0, name="plain.onnx", weight={"encoding": "PLAIN"}
    )
    sizes = [sum(one.bytes_after for one in report.weights) for report in (entropy, packed, plain)]
    assert sizes == sorted(set(sizes))
    assert {one.encoding for one in packed.weights} == {"PACKED"}
    feeds = tiny.feeds(conv_matmul_gather())
    names = list(weights(entropy))
    first, *others = (
        decoded(tmp_path / one, names, feeds) for one in ("entropy.onnx", "p.onnx", "plain.onnx")
    )
    for other in others:
        for name in names:
            np.testing.assert_array_equal(first[name], other[name])


# ------------------------------------------------------------------------------- half precision


def test_what_stays_float_can_be_float16(tmp_path: Path) -> None:
    made = network()
    skip = {"skip_quant_node": ["bare"]}
    plain = shrink(made, tmp_path, 4, name="plain.onnx", common=skip)
    report = shrink(made, tmp_path, 4, common=skip, settings=Settings(fp16=True))
    graph = onnx.load(tmp_path / "out.onnx").graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    assert "w3" not in kinds
    assert kinds["w3.half"] == onnx.TensorProto.FLOAT16
    assert plain.bytes_after - report.bytes_after > 2 * 48 * 40 - 300
    found = decoded(tmp_path / "out.onnx", ["w3", "w1"], {"x": samples(1)[0]})
    rounded = constant(made, "w3").astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found["w3"], rounded)
    same = decoded(tmp_path / "plain.onnx", ["w1"], {"x": samples(1)[0]})
    np.testing.assert_array_equal(found["w1"], same["w1"])
    assert (
        error(tmp_path, "out.onnx", samples(3))
        < 1.01 * error(tmp_path, "plain.onnx", samples(3)) + 1e-3
    )
    first, second = (executed(tmp_path / one, tmp_path) for one in ("model.onnx", "out.onnx"))
    assert operators(first.graph) == operators(second.graph)


def test_numbers_that_float16_has_not_stay(tmp_path: Path) -> None:
    made = network()
    for one in made.graph.initializer:
        if one.name == "w3":
            array = onnx.numpy_helper.to_array(one).copy()
            array[0, 0] = 70000.0
            one.CopyFrom(onnx.numpy_helper.from_array(array, "w3"))
    skip = {"skip_quant_node": ["bare"]}
    report = shrink(made, tmp_path, 4, common=skip, settings=Settings(fp16=True))
    assert "too large for float16, kept as float32: w3" in report.warnings
    np.testing.assert_array_equal(constant(onnx.load(tmp_path / "out.onnx"), "w3"), array)


# -------------------------------------------------------------------------------- what it says


def test_the_report_and_the_file_say_what_was_done(tmp_path: Path) -> None:
    report = shrink(network(), tmp_path, 4, data=samples(10))
    assert report.target == "CPU"
    assert report.bytes_before == (tmp_path / "model.onnx").stat().st_size
    assert report.bytes_after == (tmp_path / "out.onnx").stat().st_size
    assert list(report.seconds) == [
        "prepare", "plan", "load", "weights", "correct", "emit", "verify", "check", "save",
    ]  # fmt: skip
    proto = onnx.load(tmp_path / "out.onnx")
    found = {one.key: one.value for one in proto.metadata_props}
    assert found["ptq.job"] == "WEIGHT_QUANT"
    assert found["ptq.samples"] == "10"
    assert "ptq-encoding-packed==" in found["ptq.plugins"]
    assert str(tmp_path) not in str(found)


def test_the_default_output_tells_the_width(tmp_path: Path) -> None:
    path = tiny.save(network(), tmp_path)
    assert quantize(path, bits=4).files == [tmp_path / "model_w4.onnx"]
    assert quantize(path, bits=0).files == [tmp_path / "model_mixed.onnx"]
    assert quantize(path, bits=8, skip=["conv*"], per_channel=False).weights
