"""Dynamic quantization of a decoder that writes token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import decoders
from tests import tiny_models as tiny
from tests.decoders import LAYERS, VOCABULARY, WIDTH
from tests.dynamic_checks import (
    FLOAT_LAYERS,
    STRATEGIES,
    decisions,
    dynamic,
    executed_operators,
    stored_bytes,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, executed, session

PER_LAYER = 10  # layers with weights: two attentions of four, two of the feed-forward network


def decoded(folder: Path, *, optimized: bool = True) -> tuple[list[float], float]:
    """Cosine of the logits at every step, and how many of the tokens are the same."""
    wanted = decoders.greedy(session(folder / "model.onnx"))
    best = [one[:, -1:].argmax(-1) for one in wanted]
    found = decoders.greedy(session(folder / "out.onnx", optimized=optimized), forced=best)
    assert [one.shape for one in found] == [one.shape for one in wanted]
    same = np.mean([(a[:, -1:].argmax(-1) == b).all() for a, b in zip(found, best, strict=True)])
    return [cosine(a, b) for a, b in zip(wanted, found, strict=True)], float(same)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_whole_decode_with_a_growing_cache(strategy: str, tmp_path: Path) -> None:
    made = decoders.decoder()
    report = dynamic(made, tmp_path, strategy)
    kinds = decisions(report)
    assert kinds["embedding"] == "weights"
    layers = [name for name, kind in kinds.items() if kind == "dynamic"]
    assert len(layers) == LAYERS * PER_LAYER + 1
    assert {name for name in kinds if "_scores_matmul" in name or "_context_matmul" in name} == {
        name for name, kind in kinds.items() if kind == "float"
    }
    for optimized in (False, True):
        cosines, same = decoded(tmp_path, optimized=optimized)
        assert min(cosines) > 0.998
        assert same >= 0.8  # where two tokens are nearly as good, the other one may win


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_free_decode_is_the_same(strategy: str, tmp_path: Path) -> None:
    """Nobody forces the tokens: the first ones agree, and every step runs."""
    dynamic(decoders.decoder(), tmp_path, strategy)
    wanted, found = (
        [one[:, -1].argmax(-1) for one in decoders.greedy(session(tmp_path / name), 12)]
        for name in ("model.onnx", "out.onnx")
    )
    np.testing.assert_array_equal(wanted[:3], found[:3])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_interfaces_stay(strategy: str, tmp_path: Path) -> None:
    made = decoders.decoder()
    dynamic(made, tmp_path, strategy)
    proto = onnx.load(tmp_path / "out.onnx")
    assert list(proto.graph.input) == list(made.graph.input)
    assert list(proto.graph.output) == list(made.graph.output)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_products_of_a_decoder_are_integers(strategy: str, tmp_path: Path) -> None:
    """Only scores and context, which multiply two activations, are left in float."""
    dynamic(decoders.decoder(), tmp_path, strategy)
    found = executed_operators(tmp_path)
    float_layers = sum(found[kind] for kind in FLOAT_LAYERS)
    assert float_layers == 2 * 2 * LAYERS
    integer = (
        found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] + found["MatMulInteger"]
    )
    assert integer == LAYERS * PER_LAYER + 1
    if strategy == "ALWC":
        # q, k and v of one activation, k and v of the encoder's states in both layers
        assert found["DynamicQuantizeLinear"] == LAYERS + 1
        assert found["MatMulIntegerToFloat"] == LAYERS * 3 + LAYERS * 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_tied_table_is_stored_once(strategy: str, tmp_path: Path) -> None:
    """One tensor of int8 serves the embedding and the head, in the file and in memory."""
    made = decoders.decoder()
    report = dynamic(made, tmp_path, strategy)
    graph = onnx.load(tmp_path / "out.onnx").graph
    tables = [one for one in graph.initializer if np.prod(one.dims) == WIDTH * VOCABULARY]
    assert [one.data_type for one in tables] == [TensorProto.INT8]
    gathers = {one.input[0] for one in graph.node if one.op_type == "Gather"}
    assert tables[0].name in gathers
    floats = sum(
        int(np.prod(one.dims)) for one in graph.initializer if one.data_type == TensorProto.FLOAT
    )
    wanted = sum(array.nbytes for array in decoders.constants().values() if array.ndim == 2) / 4
    assert sum(
        numpy_helper.to_array(one).nbytes
        for one in graph.initializer
        if one.data_type in (TensorProto.INT8, TensorProto.UINT8)
    ) == pytest.approx(wanted, rel=0.08)  # zero points besides
    names = stored_bytes(tmp_path, "model.onnx") - sum(
        array.nbytes for array in decoders.constants().values()
    )
    assert stored_bytes(tmp_path) < wanted + 4 * floats + 5 * names
    (table,) = (one for one in report.weights if one.tensor == "table")
    assert {"embedding", "head"} <= set(table.readers)


def test_a_merged_decoder(tmp_path: Path) -> None:
    """Layers in both bodies of an If share weights, which are stored once."""
    made = decoders.merged()
    for strategy in STRATEGIES:
        report = dynamic(made, tmp_path, strategy)
        kinds = decisions(report)
        assert sum(kind == "dynamic" for kind in kinds.values()) == 2 * (LAYERS * PER_LAYER + 1)
        assert kinds["embedding"] == kinds["first_embedding"] == "weights"
        cosines, _ = decoded(tmp_path)
        assert min(cosines) > 0.998
        graph = onnx.load(tmp_path / "out.onnx").graph
        bodies = [at.g for one in graph.node for at in one.attribute if at.HasField("g")]
        everything = [one for each in (graph, *bodies) for one in each.initializer]
        codes = [
            one for one in everything if one.data_type == TensorProto.INT8 and len(one.dims) > 1
        ]
        assert len(codes) == LAYERS * PER_LAYER + 1
        float_layers = sum(
            one.op_type in FLOAT_LAYERS
            for outer in executed(tmp_path / "out.onnx", tmp_path).graph.node
            for at in outer.attribute
            for one in at.g.node
        )
        assert float_layers == 2 * 2 * 2 * LAYERS
        assert list(onnx.load(tmp_path / "out.onnx").graph.output) == list(made.graph.output)


def test_a_layer_in_a_loop(tmp_path: Path) -> None:
    """A body with an activation of its own, and one of the main graph that is read inside."""
    body = helper.make_graph(
        [
            node("MatMul", "state w", "m", "inner"),
            node("MatMul", "x w", "k", "outer_data"),
            node("Add", "m k", "a", "add"),
            node("Tanh", "a", "next", "tanh"),
            node("Identity", "going", "still", "identity"),
        ],
        "body",
        [
            tiny.info("i", [], TensorProto.INT64),
            tiny.info("going", [], TensorProto.BOOL),
            tiny.info("state", [3, 48]),
        ],
        [tiny.info("still", [], TensorProto.BOOL), tiny.info("next", [3, 48])],
        [numpy_helper.from_array(normal(48, 48, scale=0.1), "w")],
    )
    made = tiny.model(
        [
            node("Loop", "trips yes x", "l", "loop", body=body),
            node("MatMul", "x v", "z", "outside"),
            node("Add", "l z", "y", "sum"),
        ],
        {"x": [3, 48]},
        {"y": [3, 48]},
        {"trips": np.array(3), "yes": np.array(True), "v": normal(48, 48, seed=3, scale=0.1)},
    )
    for strategy in STRATEGIES:
        report = dynamic(made, tmp_path, strategy)
        kinds = decisions(report)
        assert kinds["inner"] == kinds["outer_data"] == kinds["outside"] == "dynamic"
        feeds = {"x": normal(3, 48, seed=5, scale=1.0)}
        wanted, found = (
            session(tmp_path / name).run(None, feeds)[0] for name in ("model.onnx", "out.onnx")
        )
        assert cosine(wanted, found) > 0.999
