"""Tables that stay integers, and weights that several nodes read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import tiny_models as tiny
from tests.dynamic_checks import (
    STRATEGIES,
    before_and_after,
    both,
    close,
    decisions,
    dynamic,
    product,
    stored_operators,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, executed, reasons, run, weights

ROWS, K, N = 200, 32, 48
IDS = np.array([[3, 199, 0], [-1, 17, 3]])


def embedding(
    *nodes: Any, axis: int = 0, opset: int = tiny.OPSET, outputs: Any = None, **constants: Any
) -> onnx.ModelProto:
    """A table, and what is behind it."""
    return tiny.model(
        [node("Gather", "table ids", "e", "look_up", axis=axis), *nodes],
        [tiny.info("ids", ["n", 3], TensorProto.INT64)],
        {"e": ["n", 3, K] if axis == 0 else [ROWS, "n", 3], **(outputs or {})},
        {"table": normal(ROWS, K), **constants},
        opset=opset,
    )


def int8_in_memory(folder: Path) -> list[str]:
    """Tensors that Gathers read in the graph that is executed."""
    graph = executed(folder / "out.onnx", folder).graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    return [
        TensorProto.DataType.Name(kinds[one.input[0]])
        for one in graph.node
        if one.op_type == "Gather" and one.input[0] in kinds
    ]


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_are_read_as_integers(strategy: str, opset: int, tmp_path: Path) -> None:
    made = embedding(
        node("MatMul", "e w", "y", "layer"),
        opset=opset, w=normal(K, N, seed=1), outputs={"y": ["n", 3, N]},
    )  # fmt: skip
    report = dynamic(made, tmp_path, strategy)
    assert decisions(report) == {"look_up": "weights", "layer": "dynamic"}
    assert "INT8" in int8_in_memory(tmp_path)
    table = weights(report)["table"]
    assert table.scale.size == ROWS
    found, _ = both(tmp_path, {"ids": IDS})
    rows = normal(ROWS, K)[IDS]
    assert np.abs(found - rows).max() <= 0.51 * table.scale.max()  # half a step, each row's own
    for wanted, result in before_and_after(tmp_path, {"ids": IDS}):
        assert cosine(wanted, result) > 0.9995


def test_a_table_of_columns_is_decoded_when_loaded(tmp_path: Path) -> None:
    """A scale for each column does not go with a row: the file is small, memory is not."""
    made = embedding(
        node("Transpose", "e", "t", "turn", perm=[1, 2, 0]), node("MatMul", "t w", "y", "layer"),
        axis=1, w=normal(ROWS, N, seed=2), outputs={"y": ["n", 3, N]},
    )  # fmt: skip
    report = dynamic(made, tmp_path)
    assert decisions(report)["look_up"] == "weights"
    kinds = {one.data_type for one in onnx.load(tmp_path / "out.onnx").graph.initializer
             if np.prod(one.dims) == ROWS * K}  # fmt: skip
    assert kinds == {TensorProto.INT8}
    for wanted, found in before_and_after(tmp_path, {"ids": IDS % K}):
        assert cosine(wanted, found) > 0.9995


def test_small_tables_stay_float(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Gather", "kinds ids", "k", "look_kinds"),
            node("Gather", "line ids", "l", "look_line"),
            node("MatMul", "k w", "y", "layer"),
        ],
        [tiny.info("ids", ["n"], TensorProto.INT64)],
        {"y": ["n", N], "l": ["n"]},
        {"kinds": normal(2, K), "line": normal(500), "w": normal(K, N)},
    )
    report = dynamic(made, tmp_path)
    assert decisions(report) == {
        "look_kinds": "float",
        "look_line": "untouched",
        "layer": "dynamic",
    }
    assert reasons(report)["look_kinds"].startswith("quantizing would save no bytes: 256 as float")
    assert stored_operators(tmp_path)["Gather"] == 2
    wanted, found = (
        run(tmp_path / one, {"ids": np.array([1, 0])})[1] for one in ("model.onnx", "out.onnx")
    )
    np.testing.assert_array_equal(wanted, found)


# ------------------------------------------------------------------------------- several readers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_layers_share_weights_that_are_stored_once(strategy: str, tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("MatMul", "x w", "a", "first"),
            node("Relu", "a", "r", "relu"),
            node("MatMul", "r w", "b", "second"),
            node("Gemm", "r w", "c", "third", alpha=0.5),
            node("Gemm", "r w", "d", "turned", transB=1),
        ],
        {"x": ["n", K]},
        {name: ["n", K] for name in "bcd"},
        {"w": normal(K, K)},
    )
    report = dynamic(made, tmp_path, strategy)
    assert {name for name, kind in decisions(report).items() if kind == "dynamic"} == {
        "first", "second", "third", "turned",
    }  # fmt: skip
    codes = [one for one in onnx.load(tmp_path / "out.onnx").graph.initializer
             if list(one.dims) == [K, K]]  # fmt: skip
    assert len(codes) == 2  # and the transposed ones
    x = normal(5, K, seed=5)
    found = both(tmp_path, {"x": x})
    hidden = np.maximum(product(x, normal(K, K), strategy), 0).astype(np.float32)
    close(found[0], product(hidden, normal(K, K), strategy), 1e-4)
    close(found[1], 0.5 * product(hidden, normal(K, K), strategy), 1e-4)
    close(found[2], product(hidden, normal(K, K).T, strategy), 1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_that_something_reads_as_float(strategy: str, tmp_path: Path) -> None:
    """A layer takes their codes, the other one the float constant: both are in the file."""
    made = tiny.model(
        [
            node("MatMul", "x w", "a", "layer"),
            node("Mul", "x2 w", "b", "scale"),
        ],
        {"x": ["n", K], "x2": [K, N]},
        {"a": ["n", N], "b": [K, N]},
        {"w": normal(K, N)},
    )
    report = dynamic(made, tmp_path, strategy)
    assert decisions(report)["layer"] == "dynamic"
    feeds = {"x": normal(5, K, seed=5), "x2": normal(K, N, seed=6)}
    found = both(tmp_path, feeds)
    close(found[0], product(feeds["x"], normal(K, N), strategy))
    np.testing.assert_array_equal(found[1], feeds["x2"] * normal(K, N))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("head", ["transposed", "gemm", "columns"])
def test_a_table_that_is_weights_of_a_layer(head: str, strategy: str, tmp_path: Path) -> None:
    """Rows are its channels if the layer multiplies by the transposed table, and stored once."""
    if head == "columns":
        nodes = [node("Softmax", "p", "s", "softmax"), node("MatMul", "s table", "y", "layer")]
        width = K
    elif head == "gemm":
        nodes = [node("Reshape", "e rows", "f", "flat"),
                 node("Gemm", "f table", "g", "layer", transB=1),
                 node("Softmax", "g", "y", "softmax")]  # fmt: skip
        width = ROWS
    else:
        nodes = [node("Transpose", "table", "t", "turn", perm=[1, 0]),
                 node("MatMul", "e t", "m", "layer"),
                 node("Softmax", "m", "y", "softmax")]  # fmt: skip
        width = ROWS
    made = tiny.model(
        [node("Gather", "table ids", "e", "look_up"), *nodes],
        [tiny.info("ids", ["n", 3], TensorProto.INT64), tiny.info("p", ["n", 3, ROWS])],
        {"e": ["n", 3, K], "y": ["m", width] if head == "gemm" else ["n", 3, width]},
        {"table": normal(ROWS, K), "rows": np.array([-1, K])},
    )
    report = dynamic(made, tmp_path, strategy)
    assert decisions(report)["layer"] == "dynamic"
    tables = [TensorProto.DataType.Name(one.data_type)
              for one in onnx.load(tmp_path / "out.onnx").graph.initializer
              if np.prod(one.dims) == ROWS * K]  # fmt: skip
    if head == "columns" and strategy != "ACWL":
        assert decisions(report)["look_up"] == "float"
        assert "scales of another axis" in reasons(report)["look_up"]
        assert sorted(tables) == ["FLOAT", "INT8"]
    else:
        assert decisions(report)["look_up"] == "weights"
        assert tables == ["INT8"]
        assert weights(report)["table"].readers == ("look_up", "layer")
    feeds = {"ids": IDS, "p": normal(2, 3, ROWS, seed=8, scale=1.0)}
    for wanted, found in before_and_after(tmp_path, feeds):
        assert cosine(wanted, found) > 0.999


def test_a_table_that_something_reads_as_float_stays_float(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Gather", "table ids", "e", "look_up"),
            node("Transpose", "table", "t", "turn", perm=[1, 0]),
            node("MatMul", "e t", "m", "layer"),
            node("ReduceSum", "table", "sum", "total"),
        ],
        [tiny.info("ids", ["n", 3], TensorProto.INT64)],
        {"m": ["n", 3, ROWS], "sum": [1, 1]},
        {"table": normal(ROWS, K)},
    )
    report = dynamic(made, tmp_path)
    assert decisions(report)["layer"] == "dynamic"
    assert decisions(report)["look_up"] == "float"
    assert reasons(report)["look_up"] == "'table' is also read by nodes that stay float"
    for wanted, found in before_and_after(tmp_path, {"ids": IDS}):
        assert cosine(wanted, found) > 0.999


def test_a_transposed_table_that_is_an_output(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Gather", "table ids", "e", "look_up"),
            node("Transpose", "table", "t", "turn", perm=[1, 0]),
            node("MatMul", "e t", "m", "layer"),
        ],
        [tiny.info("ids", ["n", 3], TensorProto.INT64)],
        {"m": ["n", 3, ROWS], "t": [K, ROWS]},
        {"table": normal(ROWS, K)},
    )
    dynamic(made, tmp_path)
    _, found = both(tmp_path, {"ids": IDS})
    np.testing.assert_array_equal(found, normal(ROWS, K).T)


def test_equal_names_in_two_branches_are_not_mixed_up(tmp_path: Path) -> None:
    """A name is unique in its body only."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        return helper.make_graph(
            [node("MatMul", "x w", f"{name}_m", f"{name}_layer"),
             node("MatMul", f"{name}_m {name}_v", f"{name}_y", f"{name}_other")],
            name, [], [tiny.info(f"{name}_y", None)],
            [numpy_helper.from_array(normal(K, K, seed=seed), "w"),
             numpy_helper.from_array(normal(K, K, seed=seed + 1), f"{name}_v")],
        )  # fmt: skip

    made = tiny.model(
        [node("If", "flag", "y", "if", then_branch=branch("a", 0), else_branch=branch("b", 5))],
        [tiny.info("x", [3, K]), tiny.info("flag", [], TensorProto.BOOL)],
        {"y": [3, K]},
    )
    report = dynamic(made, tmp_path)
    assert decisions(report)["a_other"] == decisions(report)["b_other"] == "dynamic"
    assert reasons(report)["b_layer"] == "another body of the model has a constant 'w', too"
    for flag in (True, False):
        feeds = {"x": normal(3, K, seed=5), "flag": np.array(flag)}
        for wanted, found in before_and_after(tmp_path, feeds):
            assert cosine(wanted, found) > 0.999
