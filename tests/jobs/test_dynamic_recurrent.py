"""Recurrent layers: LSTM in integers, GRU and RNN with integers in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from ptq_core import quantize
from tests import tiny_models as tiny
from tests.dynamic_checks import (
    STRATEGIES,
    before_and_after,
    decisions,
    dynamic,
    executed_operators,
    planned,
    stored_bytes,
    stored_operators,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, reasons, run, weights

STEPS, BATCH, WIDTH, STATE = 6, 3, 16, 24
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = np.array([6, 2, 4], np.int32)


def recurrent(
    kind: str = "LSTM", direction: str = "forward", *extra: str, **attributes: Any
) -> onnx.ModelProto:
    """``extra``: "bias", "lengths", "states", "peepholes"."""
    count, gates = (2 if direction == "bidirectional" else 1), GATES[kind]
    constants = {
        "w": normal(count, gates * STATE, WIDTH, scale=0.2),
        "r": normal(count, gates * STATE, STATE, seed=1, scale=0.2),
    }
    inputs: list[Any] = [tiny.info("x", ["steps", BATCH, WIDTH])]
    places = ["x", "w", "r", "_", "_", "_", "_", "_"]
    if "bias" in extra:
        constants["b"] = normal(count, 2 * gates * STATE, seed=2)
        places[3] = "b"
    if "lengths" in extra:
        inputs.append(tiny.info("lengths", [BATCH], TensorProto.INT32))
        places[4] = "lengths"
    if "states" in extra:
        for position, name in ((5, "h0"), (6, "c0")):
            inputs.append(tiny.info(name, [count, BATCH, STATE]))
            places[position] = name
    if "peepholes" in extra:
        constants["p"] = normal(count, 3 * STATE, seed=3)
        places[7] = "p"
    if kind != "LSTM":
        places = places[:6]
    while places[-1] == "_":
        places.pop()
    ends = {"y": ["steps", count, BATCH, STATE], "h": [count, BATCH, STATE]}
    if kind == "LSTM":
        ends["c"] = [count, BATCH, STATE]
    return tiny.model(
        [node(kind, " ".join(places), " ".join(ends), "layer", hidden_size=STATE,
              direction=direction, **attributes)],
        inputs, ends, constants,
    )  # fmt: skip


def feeds_of(made: onnx.ModelProto) -> dict[str, Any]:
    known: dict[str, Any] = {
        "x": normal(STEPS, BATCH, WIDTH, seed=5, scale=1.0),
        "lengths": LENGTHS,
        "h0": normal(2, BATCH, STATE, seed=6, scale=0.5),
        "c0": normal(2, BATCH, STATE, seed=7, scale=0.5),
    }
    found = {}
    for one in made.graph.input:
        array = known[one.name]
        if one.name in ("h0", "c0"):
            array = array[: one.type.tensor_type.shape.dim[0].dim_value]
        found[one.name] = array
    return found


def close_to_float(made: onnx.ModelProto, folder: Path, least: float = 0.999) -> None:
    for wanted, found in before_and_after(folder, feeds_of(made)):
        assert wanted.shape == found.shape
        assert cosine(wanted, found) > least


FORMS: list[tuple[str, ...]] = [
    (),
    ("bias",),
    ("bias", "lengths"),
    ("bias", "states"),
    ("states",),
    ("bias", "peepholes"),
    ("bias", "lengths", "states", "peepholes"),
]


@pytest.mark.parametrize("extra", FORMS, ids="+".join)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_every_lstm(direction: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    made = recurrent("LSTM", direction, *extra)
    samples = [feeds_of(made)]
    for strategy in STRATEGIES:
        report = dynamic(made, tmp_path, strategy, data=samples)
        assert decisions(report) == {"layer": "dynamic"}
        assert executed_operators(tmp_path) == {"DynamicQuantizeLSTM": 1}
        close_to_float(made, tmp_path, 0.999 if strategy != "ACWL" else 0.998)
        stored = weights(report)
        assert set(stored) == {"w", "r"}
        assert {one.scale.size for one in stored.values()} == {
            1 if strategy == "ACWL" else 4 * STATE
        }
    proto = onnx.load(tmp_path / "out.onnx")
    (layer,) = proto.graph.node
    assert layer.domain == "com.microsoft"
    assert {one.domain for one in proto.opset_import} == {"", "com.microsoft"}
    assert list(proto.graph.input) == list(made.graph.input)
    assert list(proto.graph.output) == list(made.graph.output)


def test_attributes_are_kept(tmp_path: Path) -> None:
    given: dict[str, Any] = {"activations": ["Sigmoid", "Relu", "Tanh"], "clip": 0.2}
    made = recurrent("LSTM", "forward", "bias", **given)
    dynamic(made, tmp_path)
    close_to_float(made, tmp_path)
    found = run(tmp_path / "out.onnx", feeds_of(made))
    for name in given:  # each of them matters
        others = {key: value for key, value in given.items() if key != name}
        tiny.save(recurrent("LSTM", "forward", "bias", **others), tmp_path)
        assert cosine(run(tmp_path / "model.onnx", feeds_of(made))[0], found[0]) < 0.995


def test_only_some_outputs(tmp_path: Path) -> None:
    """The last state, or the sequence, is all that is read."""
    for kept, names in (("h", "_ h"), ("y", "y"), ("c", "_ _ c")):
        made = recurrent("LSTM", "forward", "bias")
        made.graph.node[0].output[:] = ["" if one == "_" else one for one in names.split()]
        ends = [one for one in made.graph.output if one.name == kept]
        del made.graph.output[:]
        made.graph.output.extend(ends)
        dynamic(made, tmp_path)
        close_to_float(made, tmp_path)


def test_batch_first_stays_float(tmp_path: Path) -> None:
    """onnxruntime itself cannot run it on a CPU: the plan is all that can be looked at."""
    made = tiny.model(
        [
            node("LSTM", "x w r", "y", "layer", hidden_size=STATE, layout=1),
            node("MatMul", "x v", "z", "dense"),
        ],
        {"x": [BATCH, STEPS, WIDTH]},
        {"y": [BATCH, STEPS, 1, STATE], "z": [BATCH, STEPS, 8]},
        {
            "w": normal(1, 4 * STATE, WIDTH),
            "r": normal(1, 4 * STATE, STATE),
            "v": normal(WIDTH, 8),
        },
    )
    report = planned(made, tmp_path)
    assert decisions(report)["dense"] == "dynamic"
    assert decisions(report)["layer"] == "weights"
    assert reasons(report)["layer"] == (
        "layout is 1, the integer form needs 0; its weights are integers in the file"
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_layers_share_weights(strategy: str, tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("LSTM", "x w r b", "y", "first", hidden_size=STATE),
            node("Squeeze", "y one", "s", "squeeze"),
            node("LSTM", "s v r b", "z", "second", hidden_size=STATE, direction="reverse"),
            node("LSTM", "s v r b", "q", "third", hidden_size=STATE),
        ],
        {"x": ["steps", BATCH, WIDTH]},
        {"z": ["steps", 1, BATCH, STATE], "q": ["steps", 1, BATCH, STATE]},
        {
            "w": normal(1, 4 * STATE, WIDTH, scale=0.2),
            "v": normal(1, 4 * STATE, STATE, seed=4, scale=0.2),
            "r": normal(1, 4 * STATE, STATE, seed=1, scale=0.2),
            "b": normal(1, 8 * STATE, seed=2),
            "one": np.array([1]),
        },
    )
    dynamic(made, tmp_path, strategy)
    assert stored_operators(tmp_path)["DynamicQuantizeLSTM"] == 3
    integers = [
        one for one in onnx.load(tmp_path / "out.onnx").graph.initializer
        if one.data_type == TensorProto.INT8 and np.prod(one.dims) > 4 * STATE
    ]  # fmt: skip
    assert len(integers) == 3
    close_to_float(made, tmp_path)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_what_has_no_integer_form_is_small_in_the_file(
    kind: str, direction: str, tmp_path: Path
) -> None:
    made = recurrent(kind, direction, "bias")
    report = dynamic(made, tmp_path)
    assert decisions(report) == {"layer": "weights"}
    assert reasons(report)["layer"] == (
        f"the target has no {kind} with activations quantized while running; "
        "its weights are integers in the file"
    )
    assert executed_operators(tmp_path) == {kind: 1}
    numbers = sum(one.size for one in weights(report).values())
    assert numbers == (2 if direction[0] == "b" else 1) * GATES[kind] * STATE * (WIDTH + STATE)
    rest = stored_bytes(tmp_path, "model.onnx") - 4 * numbers
    parameters = 8 * sum(one.scale.size for one in weights(report).values())
    assert stored_bytes(tmp_path) < numbers + parameters + rest + 1000
    close_to_float(made, tmp_path)


def test_an_lstm_whose_weights_are_computed(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Mul", "k factor", "w", "make"),
            node("LSTM", "x w r", "y", "layer", hidden_size=STATE),
            node("MatMul", "x v", "z", "dense"),
        ],
        {"x": ["steps", BATCH, WIDTH], "factor": [1]},
        {"y": ["steps", 1, BATCH, STATE], "z": ["steps", BATCH, 40]},
        {
            "k": normal(1, 4 * STATE, WIDTH),
            "r": normal(1, 4 * STATE, STATE),
            "v": normal(WIDTH, 40),
        },
    )
    report = dynamic(made, tmp_path)
    assert decisions(report)["layer"] == "weights"
    assert reasons(report)["layer"].startswith("its weights are not constant")
    feeds = {"x": normal(STEPS, BATCH, WIDTH, seed=5), "factor": np.ones(1, np.float32)}
    for wanted, found in before_and_after(tmp_path, feeds):
        assert cosine(wanted, found) > 0.999


TARGET = """
name = "ONLY_PRODUCTS"
summary = "no recurrent layers in integers"
activation = { dtype = "uint8", symmetric = false }
weight = { dtype = "int8", symmetric = true, narrow_range = true }
dynamic_operators = ["MatMul"]
[operators.MatMul]
quantize = "always"
"""


def test_a_target_without_recurrent_layers_says_so(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(TARGET)
    made = recurrent("LSTM", "forward", "bias")
    made.graph.node.append(node("MatMul", "x v", "z", "dense"))
    made.graph.output.append(tiny.info("z", ["steps", BATCH, 40]))
    made.graph.initializer.append(numpy_helper.from_array(normal(WIDTH, 40), "v"))
    report = planned(made, tmp_path, target=str(file))
    assert decisions(report) == {"layer": "weights", "dense": "dynamic"}
    assert reasons(report)["layer"].startswith(
        "the target has no LSTM with activations quantized while running"
    )
    quantize(tmp_path / "model.onnx", tmp_path / "out.onnx", dynamic="ALWC", target=str(file))
    assert {one.domain for one in onnx.load(tmp_path / "out.onnx").opset_import} == {""}
    close_to_float(made, tmp_path)
