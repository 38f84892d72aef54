"""Cross-layer equalization: what the float model computes stays, the weights get easier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptq_core.arithmetic import dequantize, quantize, sqnr, weight_parameters
from ptq_core.equalization import (
    ChannelStatistics,
    Equalization,
    Watched,
    equalize,
    observe,
    rescale,
    watched,
)
from ptq_core.equalization.channels import find_channels
from ptq_core.equalization.noise import least_noise, noise_level
from ptq_core.equalization.ranges import equal_ranges, unequal
from ptq_core.equalization.variables import Variables
from ptq_core.equalization.weights import blocks_of
from ptq_core.errors import ModelError
from ptq_core.graph.model import load_model, serialize, with_outputs
from ptq_core.graph.prepare import prepare
from ptq_core.graph.prepared import Prepared
from ptq_core.types import QScheme
from tests import tiny_models as tiny

# float32 rounding of factors, weights and sums, relative to the largest output
CLOSE = 1e-5
SETTLED = 2e-3  # ranges, after sweeps that stop at changes of 1e-4
INT8 = QScheme(dtype="int8", symmetric=True, narrow_range=True)

Arrays = dict[str, NDArray[Any]]


def prepared_of(made: onnx.ModelProto) -> Prepared:
    return prepare(ir.from_proto(made), 13)


def weights_of(prepared: Prepared) -> dict[str, NDArray[Any]]:
    return {
        name: np.array(value.const_value.numpy())
        for name, value in prepared.model.graph.initializers.items()
        if value.const_value is not None
    }


def statistics_of(
    prepared: Prepared, made: onnx.ModelProto, runs: int = 3
) -> dict[str, ChannelStatistics]:
    """The watched tensors, on random inputs."""
    tensors = watched(prepared)
    inputs = {value.name for value in prepared.model.graph.inputs}
    names = [name for name in tensors if name not in inputs]
    content = serialize(with_outputs(prepared.model, names))
    results = []
    for seed in range(runs):
        fed = feeds(prepared, made, seed)
        results.append({**fed, **(tiny.run(content, fed) if names else {})})
    return observe(tensors, results)


def feeds(prepared: Prepared, made: onnx.ModelProto, seed: int) -> Arrays:
    """Random inputs, float32 where the model was float16."""
    fed = tiny.feeds(made, seed)
    if prepared.widened:
        fed = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in fed.items()}
    return fed


def outputs_of(prepared: Prepared, made: onnx.ModelProto, seed: int = 7) -> Arrays:
    return tiny.run(serialize(prepared.model), feeds(prepared, made, seed))


def assert_same_function(
    made: onnx.ModelProto, *, with_statistics: bool = False
) -> tuple[Prepared, Equalization]:
    prepared = prepared_of(made)
    before = outputs_of(prepared, made)
    observed = statistics_of(prepared, made) if with_statistics else None
    found = equalize(prepared, observed=observed)
    onnx.checker.check_model(ir.to_proto(prepared.model), full_check=True)
    for name, wanted in before.items():
        given = outputs_of(prepared, made)[name]
        np.testing.assert_allclose(given, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())
    return prepared, found


def uneven(*shape: int, seed: int = 0, axis: int = 0, spread: float = 1.5) -> NDArray[np.float32]:
    """Weights whose channels differ a thousandfold."""
    array = tiny.normal(*shape, seed=seed)
    factors = np.exp(spread * tiny.rng(seed + 50).standard_normal(shape[axis]))
    moved = np.moveaxis(array, axis, -1) * factors
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis), np.float32)


def pair(activation: list[Any], source: str, **constants: Any) -> onnx.ModelProto:
    """Two convolutions with something between ``a`` and ``source``."""
    return tiny.model(
        [
            tiny.node("Conv", "x w1 b1", "a", "first"),
            *activation,
            tiny.node("Conv", f"{source} w2", "y", "second"),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", None, None, None]},
        {
            "w1": uneven(8, 3, 1, 1),
            "b1": tiny.normal(8, seed=2),
            "w2": uneven(5, 8, 1, 1, seed=1, axis=1),
            **constants,
        },
    )


# ------------------------------------------------------------------- the function stays the same


@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("name", sorted(set(tiny.MODELS) - {"depthwise_relu6", "opset_9"}))
def test_what_a_model_without_clip_computes_stays(name: str, with_statistics: bool) -> None:
    assert_same_function(tiny.MODELS[name](), with_statistics=with_statistics)


BETWEEN: dict[str, tuple[list[Any], Arrays]] = {
    "nothing": ([tiny.node("Neg", "a", "r")], {}),
    "relu": ([tiny.node("Relu", "a", "r")], {}),
    "leaky": ([tiny.node("LeakyRelu", "a", "r", alpha=0.3)], {}),
    "prelu": (
        [tiny.node("PRelu", "a slope", "r")],
        {"slope": tiny.rng().uniform(0.1, 0.5, (8, 1, 1)).astype(np.float32)},
    ),
    "relu as Clip": (
        [tiny.node("Clip", "a zero", "r")],
        {"zero": np.array(0, np.float32)},
    ),
    "max pool": ([tiny.node("MaxPool", "a", "r", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "average pool": (
        [tiny.node("AveragePool", "a", "r", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        {},
    ),
    "global pool": ([tiny.node("GlobalAveragePool", "a", "r")], {}),
    "pad": (
        [tiny.node("Pad", "a pads", "r", mode="reflect")],
        {"pads": np.array([0, 0, 1, 2, 0, 0, 2, 1])},
    ),
    "resize": (
        [tiny.node("Resize", "a _ scales", "r", mode="linear")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "sum with itself": ([tiny.node("Relu", "a", "b"), tiny.node("Add", "a b", "r")], {}),
    "constant per channel": (
        [tiny.node("Relu", "a", "b"), tiny.node("Sub", "b k", "r")],
        {"k": tiny.normal(8, 1, 1, seed=9)},
    ),
    "factor per pixel": (
        [tiny.node("Relu", "a", "b"), tiny.node("Mul", "k b", "r")],
        {"k": tiny.normal(6, 6, seed=9)},
    ),
    "shuffle": (
        [
            tiny.node("Reshape", "a five", "b"),
            tiny.node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
            tiny.node("Reshape", "c four", "r"),
        ],
        {"five": np.array([-1, 2, 4, 6, 6]), "four": np.array([-1, 8, 6, 6])},
    ),
    "halves": (
        [
            tiny.node("Split", "a", "b c", axis=1),
            tiny.node("Slice", "a one eight axis", "d"),
            tiny.node("Relu", "c", "e"),
            tiny.node("Concat", "e b", "f", axis=1),
            tiny.node("Slice", "f zero one axis", "g"),
            tiny.node("Concat", "d g", "r", axis=1),
        ],
        {
            "zero": np.array([0]),
            "one": np.array([1]),
            "eight": np.array([8]),
            "axis": np.array([1]),
        },
    ),
    "side by side": ([tiny.node("Concat", "a a", "r", axis=3)], {}),
}


@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("between", BETWEEN)
def test_factors_pass(between: str, with_statistics: bool) -> None:
    nodes, constants = BETWEEN[between]
    made = pair(nodes, "r", **constants)
    _, found = assert_same_function(made, with_statistics=with_statistics)
    assert not np.allclose(found.divisors["a"], 1.0)


def test_flatten_repeats_a_channel_over_its_pixels() -> None:
    made = tiny.model(
        [
            tiny.node("Conv", "x w1", "a"),
            tiny.node("Relu", "a", "r"),
            tiny.node("Flatten", "r", "f"),
            tiny.node("Gemm", "f w2 b2", "y", alpha=0.5, beta=2.0),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 5]},
        {
            "w1": uneven(6, 3, 1, 1),
            "w2": tiny.normal(96, 5, seed=1),
            "b2": tiny.normal(5, seed=2),
        },
    )
    _, found = assert_same_function(made)
    assert not np.allclose(found.divisors["a"], 1.0)


def test_a_gate_does_not_stop_the_channels_that_it_gates() -> None:
    made = tiny.model(
        [
            tiny.node("Conv", "x w1", "a"),
            tiny.node("Relu", "a", "r"),
            tiny.node("GlobalAveragePool", "r", "p"),
            tiny.node("Conv", "p w3", "g"),
            tiny.node("Sigmoid", "g", "s"),
            tiny.node("Mul", "r s", "m"),
            tiny.node("Conv", "m w2", "y"),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 5, 4, 4]},
        {
            "w1": uneven(8, 3, 1, 1),
            "w2": tiny.normal(5, 8, 1, 1, seed=1),
            "w3": tiny.normal(8, 8, 1, 1, seed=2),
        },
    )
    _, found = assert_same_function(made)
    assert not np.allclose(found.divisors["a"], 1.0)
    np.testing.assert_array_equal(found.divisors["g"], 1.0)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_groups_and_transposed_convolutions(group: int, transposed: bool) -> None:
    shape = (8, 8 // group, 3, 3)
    middle = tiny.node("ConvTranspose" if transposed else "Conv", "r w2 b2", "c", group=group)
    made = tiny.model(
        [
            tiny.node("Conv", "x w1 b1", "a"),
            tiny.node("Relu", "a", "r"),
            middle,
            tiny.node("Conv", "c w3", "y"),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 4, None, None]},
        {
            "w1": uneven(8, 3, 1, 1),
            "b1": tiny.normal(8, seed=3),
            "w2": uneven(*shape, seed=1),
            "b2": tiny.normal(8, seed=4),
            "w3": tiny.normal(4, 8, 1, 1, seed=2)
            * np.float32([[[[50]]], [[[1]]], [[[1]]], [[[1]]]]),
        },
    )
    for with_statistics in (False, True):
        _, found = assert_same_function(made, with_statistics=with_statistics)
        assert not np.allclose(found.divisors["a"], 1.0)
        assert not np.allclose(found.divisors["c"], 1.0)


@st.composite
def chains(draw: st.DrawFn) -> onnx.ModelProto:
    """Convolutions, depthwise ones among them, with anything homogeneous between, and sums."""
    nodes, constants = [], {}
    width, source, residual = 3, "x", ""
    for index in range(draw(st.integers(2, 5))):
        depthwise = index > 0 and draw(st.booleans())
        count = width if depthwise else draw(st.integers(1, 6))
        seed = draw(st.integers(0, 999))
        shape = (count, 1, 3, 3) if depthwise else (count, width, 1, 1)
        constants[f"w{index}"] = uneven(*shape, seed=seed)
        bias = ""
        if draw(st.booleans()):
            bias = f" b{index}"
            constants[f"b{index}"] = tiny.normal(count, seed=seed)
        extra = {"group": count, "pads": [1, 1, 1, 1]} if depthwise else {}
        nodes.append(tiny.node("Conv", f"{source} w{index}{bias}", f"c{index}", **extra))
        source = f"c{index}"
        activation = draw(st.sampled_from(["", "Relu", "LeakyRelu", "Abs", "Neg"]))
        if activation:
            nodes.append(tiny.node(activation, source, f"r{index}"))
            source = f"r{index}"
        if residual and depthwise:
            nodes.append(tiny.node("Add", f"{source} {residual}", f"s{index}"))
            source = f"s{index}"
        residual, width = source if draw(st.booleans()) or not depthwise else "", count
    constants["last"] = uneven(2, width, 1, 1, seed=5)
    nodes.append(tiny.node("Conv", f"{source} last", "y"))
    return tiny.model(nodes, {"x": ["N", 3, 4, 4]}, {"y": ["N", 2, 4, 4]}, constants)


@settings(max_examples=25, deadline=None)
@given(made=chains(), with_statistics=st.booleans())
def test_chains_compute_the_same(made: onnx.ModelProto, with_statistics: bool) -> None:
    assert_same_function(made, with_statistics=with_statistics)


# ------------------------------------------------------------------------- equal ranges, no data


def row_ranges(array: NDArray[Any], axis: int) -> NDArray[Any]:
    others = tuple(i for i in range(array.ndim) if i != axis)
    return np.abs(array).max(axis=others)


def assert_proportional(one: NDArray[Any], other: NDArray[Any]) -> None:
    ratio = one / other
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0]), rtol=SETTLED)


def test_two_layers_have_equal_ranges() -> None:
    prepared, _ = assert_same_function(pair([tiny.node("Relu", "a", "r")], "r"))
    weights = weights_of(prepared)
    assert_proportional(row_ranges(weights["w1"], 0), row_ranges(weights["w2"], 1))


def test_two_layers_agree_with_the_closed_form() -> None:
    """Nagel et al. 2019: s = sqrt(r1 / r2), up to a factor for all channels."""
    made = pair([tiny.node("Relu", "a", "r")], "r")
    before = weights_of(prepared_of(made))
    _, found = assert_same_function(made)
    wanted = np.sqrt(row_ranges(before["w1"], 0) / row_ranges(before["w2"], 1))
    assert_proportional(found.divisors["a"], wanted)


def test_convolution_depthwise_convolution_agree_with_the_cube_root() -> None:
    """Seed semantics 6.4: all three ranges become the cube root of their product."""
    made = tiny.model(
        [
            tiny.node("Conv", "x w1 b1", "a"),
            tiny.node("Relu", "a", "r"),
            tiny.node("Conv", "r w2 b2", "c", group=8, pads=[1, 1, 1, 1]),
            tiny.node("Relu", "c", "q"),
            tiny.node("Conv", "q w3", "y"),
        ],
        {"x": ["N", 3, 6, 6]},
        {"y": ["N", 4, 6, 6]},
        {
            "w1": uneven(8, 3, 1, 1),
            "b1": tiny.normal(8, seed=3),
            "w2": uneven(8, 1, 3, 3, seed=1),
            "b2": tiny.normal(8, seed=4),
            "w3": tiny.normal(4, 8, 1, 1, seed=2),
        },
    )
    before = weights_of(prepared_of(made))
    prepared, _ = assert_same_function(made)
    after = weights_of(prepared)
    first, second, third = (
        row_ranges(after[name], axis) for name, axis in (("w1", 0), ("w2", 0), ("w3", 1))
    )
    assert_proportional(first, second)
    assert_proportional(second, third)
    product = [row_ranges(before[name], axis) for name, axis in (("w1", 0), ("w2", 0), ("w3", 1))]
    assert_proportional(first, np.cbrt(np.prod(product, axis=0)))


def test_matmul_with_a_bias_behind_is_a_layer() -> None:
    made = tiny.matmul_bias_3d()
    for tensor in made.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(uneven(6, 8, axis=1), "w1"))
    prepared, found = assert_same_function(made)
    weights, divisors = weights_of(prepared), found.divisors["m1"]
    assert_proportional(row_ranges(weights["w1"], 1), row_ranges(weights["w2"], 0))
    np.testing.assert_allclose(weights["b1"], tiny.normal(8, seed=1) / divisors, rtol=1e-6)


def test_layers_of_even_channels_are_left_alone() -> None:
    prepared = prepared_of(tiny.conv_bn_relu())
    blocks = [blocks_of(layer) for layer in find_channels(prepared.model.graph).layers]
    count = len(find_channels(prepared.model.graph).free)
    assert not unequal(count, blocks).any()
    before = weights_of(prepared)
    found = equalize(prepared)
    assert found.notes == ("equalization: no channel had to be rescaled",)
    for name, array in weights_of(prepared).items():
        np.testing.assert_array_equal(array, before[name])


def test_dead_channels_keep_their_factor() -> None:
    made = pair([tiny.node("Relu", "a", "r")], "r")
    for tensor in made.graph.initializer:
        array = np.array(onnx.numpy_helper.to_array(tensor))
        if tensor.name == "w1":
            array[2] = 0.0
        if tensor.name == "w2":
            array[:, 5] = 0.0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for with_statistics in (False, True):
        _, found = assert_same_function(made, with_statistics=with_statistics)
        assert np.isfinite(found.divisors["a"]).all()
        if not with_statistics:
            assert found.divisors["a"][2] == found.divisors["a"][5] == 1.0


def test_all_zeros_are_no_trouble() -> None:
    made = pair([tiny.node("Relu", "a", "r")], "r")
    for tensor in made.graph.initializer:
        array = np.zeros_like(onnx.numpy_helper.to_array(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for with_statistics in (False, True):
        _, found = assert_same_function(made, with_statistics=with_statistics)
        np.testing.assert_array_equal(found.divisors["a"], 1.0)


# ------------------------------------------------------------------- what must not be rescaled


def spoil(made: onnx.ModelProto, name: str, value: float) -> onnx.ModelProto:
    for tensor in made.graph.initializer:
        if tensor.name == name:
            array = np.array(onnx.numpy_helper.to_array(tensor))
            array.flat[0] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return made


def relu_pair(*more: Any, **constants: Any) -> onnx.ModelProto:
    return pair([tiny.node("Relu", "a", "r"), *more], "r", **constants)


def with_output(made: onnx.ModelProto, name: str) -> onnx.ModelProto:
    made.graph.output.append(tiny.info(name, None))
    return made


FIXED: dict[str, Callable[[], onnx.ModelProto]] = {
    "sigmoid": lambda: pair([tiny.node("Sigmoid", "a", "r")], "r"),
    "hidden in a swish": lambda: pair(
        [tiny.node("Sigmoid", "a", "s"), tiny.node("Mul", "a s", "r")], "r"
    ),
    "a graph output": lambda: with_output(relu_pair(), "r"),
    "an output in front of the Relu": lambda: with_output(relu_pair(), "a"),
    "another reader": lambda: with_output(relu_pair(tiny.node("Exp", "r", "e")), "e"),
    "NaN in the first layer": lambda: spoil(relu_pair(), "w1", float("nan")),
    "infinity in the second": lambda: spoil(relu_pair(), "w2", float("inf")),
    "infinity in the bias": lambda: spoil(relu_pair(), "b1", float("inf")),
    "weights that something else reads": lambda: with_output(
        relu_pair(tiny.node("Neg", "a", "n"), tiny.node("Conv", "n w2", "second_y")), "second_y"
    ),
    "a sum with the input": lambda: pair(
        [tiny.node("Conv", "x k", "i"), tiny.node("Softplus", "i", "j"),
         tiny.node("Add", "a j", "r")], "r", k=tiny.normal(8, 3, 1, 1, seed=5),
    ),
    "a divisor": lambda: pair(
        [tiny.node("Abs", "a", "b"), tiny.node("Add", "b k", "c"), tiny.node("Div", "one c", "r")],
        "r", k=np.ones((8, 1, 1), np.float32), one=np.ones(1, np.float32),
    ),
    "a product of two layers": lambda: pair(
        [tiny.node("Conv", "x k", "b"), tiny.node("Mul", "a b", "r")], "r",
        k=tiny.normal(8, 3, 1, 1, seed=5),
    ),
    "channels turned into samples": lambda: pair(
        [tiny.node("Reshape", "a ones", "b"), tiny.node("Relu", "b", "c"),
         tiny.node("Reshape", "c eights", "r")], "r",
        ones=np.array([-1, 1, 6, 6]), eights=np.array([-1, 8, 6, 6]),
    ),
    "one number added to all": lambda: pair(
        [tiny.node("Relu", "a", "b"), tiny.node("Add", "b k", "r")], "r",
        k=np.ones((1, 1, 1), np.float32),
    ),
    "a padding of ones": lambda: pair(
        [tiny.node("Pad", "a pads fill", "r")], "r",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), fill=np.array(1, np.float32),
    ),
    "a Clip that leaves out zero": lambda: pair(
        [tiny.node("Clip", "a low high", "r")], "r",
        low=np.array(1, np.float32), high=np.array(6, np.float32),
    ),
    "depth to space": lambda: pair(
        [tiny.node("DepthToSpace", "a", "d", blocksize=2), tiny.node("SpaceToDepth", "d", "r",
         blocksize=2)], "r",
    ),
}  # fmt: skip


@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("name", FIXED)
def test_channels_that_something_else_reads_stay(name: str, with_statistics: bool) -> None:
    made = FIXED[name]()
    prepared = prepared_of(made)
    before = weights_of(prepared)
    broken = any(word in name for word in ("NaN", "infinity"))
    observed = statistics_of(prepared, made) if with_statistics and not broken else None
    equalize(prepared, observed=observed)
    for tensor in ("w1", "b1"):
        np.testing.assert_array_equal(weights_of(prepared)[tensor], before[tensor])


def test_what_is_tied_to_something_fixed_is_fixed() -> None:
    for order in ((0, 1), (1, 0)):
        variables = Variables()
        some = [variables.new(2), variables.new(2)]
        variables.fix(some[order[0]][:1])
        variables.tie(some[0], some[1])
        assert not variables.any_free(np.array([some[0][0], some[1][0]]))
        assert variables.any_free(some[1])
        assert variables.free().tolist() == [False, False, True, False, False]


def test_weights_that_layers_share_stay() -> None:
    prepared = prepared_of(tiny.shared_weights())
    before = weights_of(prepared)
    equalize(prepared)
    np.testing.assert_array_equal(weights_of(prepared)["w"], before["w"])


def test_a_tensor_that_a_body_reads_stays() -> None:
    prepared = prepared_of(tiny.control_flow())
    assert not find_channels(prepared.model.graph).layers


def test_a_layer_that_stays_float_takes_factors_over() -> None:
    """Its own ranges do not count, so the other layer gets perfectly equal channels."""
    made = relu_pair()
    prepared = prepared_of(made)
    wanted = outputs_of(prepared, made)["y"]
    observed = statistics_of(prepared, made)
    spread = np.ptp(np.log(row_ranges(weights_of(prepared)["w1"], 0)))
    equalize(prepared, layers={"a"}, observed=observed)
    assert np.ptp(np.log(row_ranges(weights_of(prepared)["w1"], 0))) < spread / 2
    given = outputs_of(prepared, made)["y"]
    np.testing.assert_allclose(given, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


def test_only_what_changes_is_copied(tmp_path: Path) -> None:
    """Constants that are mapped from a file stay mapped."""
    made = relu_pair(tiny.node("Conv", "x w3", "z"), w3=tiny.normal(4, 3, 1, 1, seed=8))
    with_output(made, "z")
    onnx.save(
        made,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    prepared = prepare(load_model(tmp_path / "model.onnx"), 13)
    equalize(prepared)
    kinds = {
        name: isinstance(value.const_value, ir.ExternalTensor)
        for name, value in prepared.model.graph.initializers.items()
    }
    assert kinds == {"w1": False, "b1": False, "w2": False, "w3": True}


def test_names_and_nodes_stay() -> None:
    prepared = prepared_of(tiny.depthwise_relu6())
    graph = prepared.model.graph
    before = [
        (n.name, n.op_type, [v.name for v in n.inputs if v], dict(n.attributes)) for n in graph
    ]
    shapes = {name: array.shape for name, array in weights_of(prepared).items()}
    equalize(prepared, observed=statistics_of(prepared, tiny.depthwise_relu6()))
    after = [
        (n.name, n.op_type, [v.name for v in n.inputs if v], dict(n.attributes)) for n in graph
    ]
    assert after == before
    assert {name: array.shape for name, array in weights_of(prepared).items()} == shapes


# ------------------------------------------------------------------------------------- ReLU6


def clip_pair(bias: list[float]) -> onnx.ModelProto:
    return pair(
        [tiny.node("Clip", "a zero six", "r")],
        "r",
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
        b1=np.array(bias, np.float32),
    )


def relu6_statistics(high: list[float], clipped: list[float]) -> dict[str, ChannelStatistics]:
    reached = ChannelStatistics(
        low=np.zeros(8), high=np.array(high), square=np.ones(8), clipped=np.array(clipped)
    )
    source = ChannelStatistics(
        low=-np.ones(3), high=np.ones(3), square=np.ones(3), clipped=np.zeros(3)
    )
    return {"x": source, "r": reached}


def test_channels_that_use_the_bound_keep_their_factor() -> None:
    prepared = prepared_of(clip_pair([0.0] * 8))
    clipped = [0.0, 0.5, 0.02, 0.005, 0.0, 0.0, 0.0, 0.0]
    high = [3.0, 6.0, 6.0, 6.0, 1.5, 0.0, 4.5, 5.9]
    divisors = equalize(prepared, observed=relu6_statistics(high, clipped)).divisors["a"]
    np.testing.assert_array_equal(divisors[1:3], 1.0)
    reach = np.array(high) / 6.0
    assert (divisors >= reach - 1e-12).all()  # nothing that was seen is cut off earlier
    assert (divisors != 1.0).sum() >= 4


def test_what_was_seen_stays_exact_behind_a_clip() -> None:
    made = clip_pair([0.5] * 8)
    made.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(uneven(8, 3, 1, 1) * np.float32(0.1), "w1")
    )
    prepared = prepared_of(made)
    before = outputs_of(prepared, made, seed=1)  # one of the runs that the statistics come from
    observed = statistics_of(prepared, made)
    assert observed["r"].clipped.max() == 0.0
    assert observed["r"].high.min() < 6.0
    found = equalize(prepared, observed=observed)
    assert len(found.notes) == 1
    given, wanted = outputs_of(prepared, made, seed=1)["y"], before["y"]
    np.testing.assert_allclose(given, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


def test_without_statistics_a_clip_never_cuts_off_earlier_and_the_note_says_so() -> None:
    prepared = prepared_of(clip_pair([0.0] * 8))
    found = equalize(prepared)
    divisors = found.divisors["a"]
    assert divisors.min() >= 1.0
    assert divisors.max() > 1.5
    count, largest = int((divisors > 1.0).sum()), f"{divisors.max():.3g}"
    assert found.notes[1] == (
        f"equalization changes the float model: {count} channels in front of a Clip are cut off "
        f"up to {largest} times later; it is not known which of them reach it"
    )


def test_the_note_counts_channels_that_are_cut_off_later() -> None:
    prepared = prepared_of(clip_pair([0.0] * 8))
    found = equalize(prepared, observed=relu6_statistics([6.0] * 8, [0.005] * 8))
    moved = int((found.divisors["a"] > 1.0).sum())
    assert moved
    assert f"{moved} channels in front of a Clip are cut off" in found.notes[1]
    assert "they reach it in at most 1% of their values" in found.notes[1]


def test_both_bounds_of_a_clip_count() -> None:
    tensors = {"t": Watched(axis=1, bounds=(-2.0, 4.0))}
    values = np.array([[[-2.0, 0.0], [4.0, 4.0], [-1.0, 1.0]]], np.float32)
    found = observe(tensors, [{"t": values}])["t"]
    np.testing.assert_array_equal(found.clipped, [0.5, 1.0, 0.0])


# ------------------------------------------------------------------------------- least noise


def problem(made: onnx.ModelProto) -> tuple[Any, ...]:
    prepared = prepared_of(made)
    channels = find_channels(prepared.model.graph)
    blocks = [blocks_of(layer) for layer in channels.layers]
    count = len(channels.free)
    limits = np.full(count, 1e-3), np.full(count, 1e3)
    return channels.free, blocks, statistics_of(prepared, made), *limits


def uneven_residual() -> onnx.ModelProto:
    made = tiny.residual()
    for tensor in made.graph.initializer:
        if tensor.name in ("w0", "w1", "w2"):
            shape = tuple(tensor.dims)
            array = uneven(*shape, seed=len(tensor.name) + shape[-1])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return made


@pytest.mark.parametrize("make", [relu_pair, uneven_residual])
def test_nothing_nearby_has_less_noise(make: Callable[[], onnx.ModelProto]) -> None:
    free, blocks, observed, low, high = problem(make())
    best = least_noise(free, blocks, observed, low, high)
    level = noise_level(best, blocks, observed)
    assert level < noise_level(np.ones(len(free)), blocks, observed) - 1.0
    draw = tiny.rng(3)
    for size in (0.01, 0.1, 0.5):
        for _ in range(20):
            other = np.where(free, best * np.exp(size * draw.standard_normal(len(free))), 1.0)
            assert noise_level(other, blocks, observed) > level - 0.05  # dB


def test_the_noise_is_convex() -> None:
    free, blocks, observed, *_ = problem(uneven_residual())
    draw = tiny.rng(4)
    for _ in range(20):
        one, other = (np.where(free, np.exp(draw.standard_normal(len(free))), 1.0) for _ in "ab")
        ends = [noise_level(factors, blocks, observed) for factors in (one, other)]
        assert noise_level(np.sqrt(one * other), blocks, observed) <= np.mean(ends) + 1e-9


def test_the_noise_that_is_minimized_is_the_noise_of_rounding() -> None:
    """Of two sets of factors the one with the lower level has the smaller measured error."""
    made = relu_pair()
    free, blocks, observed, low, high = problem(made)
    found = []
    for factors in (np.ones(len(free)), least_noise(free, blocks, observed, low, high)):
        prepared = prepared_of(made)
        channels = find_channels(prepared.model.graph)
        divisors = {layer.node.outputs[0].name: factors[layer.outs] for layer in channels.layers}
        rescale(prepared, divisors)
        wanted = outputs_of(prepared, made)["y"]
        for name in ("w1", "w2"):
            value = prepared.model.graph.initializers[name]
            array = value.const_value.numpy()
            params = weight_parameters(array, INT8, None)
            value.const_value = ir.tensor(dequantize(quantize(array, params), params), name=name)
        found.append(sqnr(wanted, outputs_of(prepared, made)["y"]))
    assert found[1] > found[0] + 6.0


def test_one_weight_scale_serves_an_uneven_network_after_equalization() -> None:
    """Without statistics, too: conv, depthwise, conv with channels that differ a thousandfold."""
    made = relu_pair()
    results = []
    for equalized in (False, True):
        prepared = prepared_of(made)
        if equalized:
            equalize(prepared)
        wanted = outputs_of(prepared, made)["y"]
        for name in ("w1", "w2"):
            value = prepared.model.graph.initializers[name]
            array = value.const_value.numpy()
            params = weight_parameters(array, INT8, None)
            value.const_value = ir.tensor(dequantize(quantize(array, params), params), name=name)
        results.append(sqnr(wanted, outputs_of(prepared, made)["y"]))
    assert results[1] > results[0] + 3.0


def test_limits_hold() -> None:
    free, blocks, observed, low, high = problem(relu_pair())
    for factors in (
        least_noise(free, blocks, observed, low * 0 + 0.7, high * 0 + 1.3),
        equal_ranges(free, blocks, low * 0 + 0.7, high * 0 + 1.3),
    ):
        assert factors[free].min() >= 0.7 - 1e-12
        assert factors[free].max() <= 1.3 + 1e-12
        assert (factors[~free] == 1.0).all()


# --------------------------------------------------------------------------- statistics, storing


def test_statistics_do_not_depend_on_how_samples_are_batched() -> None:
    values = tiny.rng().standard_normal((12, 5, 4, 3)).astype(np.float32)
    tensors = {"t": Watched(axis=1, bounds=(-1.0, 1.5))}
    clipped = np.clip(values, -1.0, 1.5)
    whole = observe(tensors, [{"t": clipped}])["t"]
    parts = observe(tensors, [{"t": clipped[i : i + 3]} for i in range(0, 12, 3)])["t"]
    for name in ("low", "high", "square", "clipped"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)
    channels = np.moveaxis(clipped, 1, 0).reshape(5, -1).astype(np.float64)
    np.testing.assert_allclose(whole.square, (channels**2).mean(1), rtol=1e-6)
    np.testing.assert_array_equal(whole.low, channels.min(1))
    cut = (channels <= -1) | (channels >= 1.5)
    np.testing.assert_allclose(whole.clipped, cut.mean(1), rtol=1e-12)


def test_watched_are_the_inputs_of_layers_and_the_clips() -> None:
    """But not what only fixed channels touch: the sum is an output."""
    tensors = watched(prepared_of(tiny.depthwise_relu6()))
    assert tensors == {
        "s": Watched(axis=1),
        "r1": Watched(axis=1, bounds=(0.0, 6.0)),
        "r2": Watched(axis=1, bounds=(0.0, 6.0)),
    }
    assert watched(prepared_of(FIXED["sigmoid"]())) == {}


def test_stored_divisors_give_the_same_model() -> None:
    made = tiny.depthwise_relu6()
    prepared, again = prepared_of(made), prepared_of(made)
    found = equalize(prepared, observed=statistics_of(prepared, made))
    stored = {layer: np.array(one.tolist()) for layer, one in found.divisors.items()}
    rescale(again, stored)
    assert serialize(again.model) == serialize(prepared.model)


def test_divisors_of_another_model_are_refused() -> None:
    found = equalize(prepared_of(relu_pair()))
    with pytest.raises(ModelError, match="layer 'expand' has 12 channels, stored are none"):
        rescale(
            prepared_of(tiny.depthwise_relu6()),
            {**found.divisors, "s": np.ones(4)},
        )


def test_equalizing_is_repeatable() -> None:
    made = tiny.depthwise_relu6()
    models = []
    for _ in range(2):
        prepared = prepared_of(made)
        equalize(prepared, observed=statistics_of(prepared, made))
        models.append(serialize(prepared.model))
    assert models[0] == models[1]
