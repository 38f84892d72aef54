"""Layers in any order: what comes out stays close, and nothing is left in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny_models as tiny
from tests.dynamic_checks import (
    STRATEGIES,
    before_and_after,
    dynamic,
    executed_operators,
    stored_operators,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine


@st.composite
def chains(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """MatMul, Gemm, Add and Relu in any order, of any widths."""
    width = first = draw(st.integers(4, 24))
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    source = "x"
    kinds = draw(st.lists(st.sampled_from(["MatMul", "Gemm", "Add", "Relu"]), max_size=5))
    for index, kind in enumerate([*kinds, draw(st.sampled_from(["MatMul", "Gemm"]))]):
        target, scale = f"t{index}", float(width) ** -0.5
        if kind == "Relu":
            nodes.append(node("Relu", source, target, f"n{index}"))
        elif kind == "Add":
            constants[f"b{index}"] = normal(width, seed=index, scale=0.1)
            nodes.append(node("Add", f"{source} b{index}", target, f"n{index}"))
        else:
            after = draw(st.integers(8, 32))
            turned = int(kind == "Gemm" and draw(st.booleans()))
            shape = (after, width) if turned else (width, after)
            constants[f"w{index}"] = normal(*shape, seed=index, scale=scale)
            ends, attributes = f"{source} w{index}", {"transB": 1} if turned else {}
            if kind == "Gemm" and draw(st.booleans()):
                constants[f"b{index}"] = normal(after, seed=index, scale=0.1)
                ends += f" b{index}"
            nodes.append(node(kind, ends, target, f"n{index}", **attributes))
            width = after
        source = target
    return tiny.model(nodes, {"x": ["n", first]}, {source: ["n", width]}, constants), first


@settings(
    max_examples=20, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(chains(), st.sampled_from(STRATEGIES))
def test_any_chain_stays_close(tmp_path: Path, chain: Any, strategy: str) -> None:
    made, width = chain
    report = dynamic(made, tmp_path, strategy)
    layers = [one for one in report.plan.nodes if one.op_type in ("MatMul", "Gemm")]
    assert all(one.decision == "dynamic" for one in layers)
    assert stored_operators(tmp_path)["Gemm"] == 0
    for wanted, found in before_and_after(tmp_path, {"x": normal(16, width, seed=9, scale=1.0)}):
        if np.abs(wanted).max() > 0:
            assert cosine(wanted, found) > 0.99
    assert not {"MatMul", "Gemm", "FusedMatMul"} & set(executed_operators(tmp_path))
