"""Nodes that the user keeps in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ptq_core.errors import ConfigError
from tests import tiny_models as tiny
from tests.dynamic_checks import before_and_after, decisions, dynamic, stored_bytes
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, reasons

ROWS, K, N = 200, 32, 48
IDS = np.array([[3, 199, 0], [-1, 17, 3]])


def network() -> onnx.ModelProto:
    return tiny.model(
        [
            node("Gather", "table ids", "e", "look_up"),
            node("MatMul", "e w1", "m1", "block/first"),
            node("MatMul", "m1 w2", "m2", "block/second"),
            node("MatMul", "m2 w3", "y", "head"),
        ],
        [tiny.info("ids", ["n", 3], TensorProto.INT64)],
        {"y": ["n", 3, N]},
        {"table": normal(ROWS, K), "w1": normal(K, K), "w2": normal(K, K), "w3": normal(K, N)},
    )


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["head"], {"look_up", "block/first", "block/second"}),
        (["block/*"], {"look_up", "head"}),
        (["m1", "look_up"], {"block/second", "head"}),
        (["type:MatMul"], {"look_up"}),
        (["TYPE:gather"], {"block/first", "block/second", "head"}),
    ],
)
def test_what_is_skipped_stays_float(skip: list[str], left: set[str], tmp_path: Path) -> None:
    report = dynamic(network(), tmp_path, skip=skip)
    kinds = decisions(report)
    assert {name for name, kind in kinds.items() if kind != "float"} == left
    for name, kind in kinds.items():
        if kind == "float":
            assert "skip_quant_node" in reasons(report)[name]
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert {one.name for one in graph.node} >= {name for name in kinds if name not in left}
    for wanted, found in before_and_after(tmp_path, {"ids": IDS}):
        assert cosine(wanted, found) > 0.999


def test_a_name_that_is_unknown_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'haed' matches no node") as caught:
        dynamic(network(), tmp_path, skip=["haed"])
    assert "head" in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_bytes_in_the_file(tmp_path: Path) -> None:
    dynamic(network(), tmp_path)
    numbers = ROWS * K + 2 * K * K + K * N
    floats = 4 * (ROWS + 2 * K + N)
    assert numbers < stored_bytes(tmp_path) < numbers + floats + 5000
