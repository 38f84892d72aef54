"""MatMul and Gemm whose activations are quantized while they run, against the formulas."""

from __future__ import annotations

from itertools import product as combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests import tiny_models as tiny
from tests.dynamic_checks import (
    FLOAT_LAYERS,
    STRATEGIES,
    before_and_after,
    both,
    close,
    decisions,
    dynamic,
    executed_operators,
    product,
    stored_operators,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine

K, N = 16, 24
LEADING: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "vector": ([], ()),
    "matrix": (["n"], (5,)),
    "sequence": (["n", "s"], (2, 5)),
    "heads": (["n", "h", "s"], (2, 3, 5)),
}


def tokens(*shape: int, seed: int = 7) -> NDArray[np.float32]:
    """Activations whose rows differ in size, as those of a transformer do; not around zero."""
    x = normal(*shape, seed=seed, scale=1.0) + np.float32(0.2)
    rows = np.exp(normal(*shape[:-1], 1, seed=seed + 1, scale=1.0)) if len(shape) > 1 else 1.0
    return np.asarray(x * rows, np.float32)


def single(leading: list[Any], weight: NDArray[np.float32]) -> onnx.ModelProto:
    return tiny.model(
        [node("MatMul", "x w", "y", "layer")],
        {"x": [*leading, K]},
        {"y": [*leading, N]},
        {"w": weight},
    )


# ------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rank", LEADING)
def test_a_product_is_what_the_formulas_say(strategy: str, rank: str, tmp_path: Path) -> None:
    symbols, shape = LEADING[rank]
    weight = normal(K, N)
    report = dynamic(single(symbols, weight), tmp_path, strategy)
    assert decisions(report) == {"layer": "dynamic"}
    x = tokens(*shape, K)
    (found,) = both(tmp_path, {"x": x})
    close(found, product(x, weight, strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(3, K, N), (2, 3, K, N), (1, K, N)])
def test_a_stack_of_weights(strategy: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Scales are of the last axis, for all matrices of the stack."""
    weight = normal(*shape)
    made = single(["n", *shape[:-2], "s"][-len(shape) + 1 :], weight)
    dynamic(made, tmp_path, strategy)
    x = tokens(*shape[:-2], 5, K)
    (found,) = both(tmp_path, {"x": x})
    close(found, product(x, weight, strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_transposed_table_is_seen_through(strategy: str, tmp_path: Path) -> None:
    weight = normal(N, K)
    made = tiny.model(
        [node("Transpose", "w", "t", "turn", perm=[1, 0]), node("MatMul", "x t", "y", "layer")],
        {"x": ["n", "s", K]}, {"y": ["n", "s", N]}, {"w": weight},
    )  # fmt: skip
    report = dynamic(made, tmp_path, strategy)
    assert decisions(report)["layer"] == "dynamic"
    x = tokens(2, 5, K)
    (found,) = both(tmp_path, {"x": x})
    close(found, product(x, weight.T, strategy))
    assert not FLOAT_LAYERS & set(executed_operators(tmp_path))


BIASES: dict[str, NDArray[np.float32] | None] = {
    "none": None,
    "vector": normal(N, seed=3, scale=1.0),
    "row": normal(1, N, seed=3, scale=1.0),
    "matrix": normal(5, N, seed=3, scale=1.0),
    "column": normal(5, 1, seed=3, scale=1.0),
    "scalar": np.asarray(0.7, np.float32),
    "given": normal(5, N, seed=3, scale=1.0),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("bias", BIASES)
def test_every_gemm(strategy: str, bias: str, tmp_path: Path) -> None:
    """All of transA, transB, alpha and beta in one model each, with this bias."""
    cases = list(combinations((0, 1), (0, 1), (1.0, -0.5), (1.0, 0.25, 0.0)))
    added = BIASES[bias]
    constants: dict[str, Any] = {"w0": normal(K, N), "w1": normal(N, K, seed=1)}
    inputs: dict[str, Any] = {"a0": [5, K], "a1": [K, 5]}
    if bias == "given":
        inputs["c"] = [5, N]
    elif added is not None:
        constants["c"] = added
    ends = " c" if added is not None else ""
    nodes = [
        node(
            "Gemm", f"a{a} w{b}{ends}", f"y{i}", f"gemm{i}",
            transA=a, transB=b, alpha=alpha, beta=beta,
        )
        for i, (a, b, alpha, beta) in enumerate(cases)
    ]  # fmt: skip
    made = tiny.model(nodes, inputs, {f"y{i}": [5, N] for i in range(len(cases))}, constants)
    report = dynamic(made, tmp_path, strategy)
    assert set(decisions(report).values()) == {"dynamic"}
    x = tokens(5, K)
    feeds = {"a0": x, "a1": np.ascontiguousarray(x.T)}
    if bias == "given" and added is not None:
        feeds["c"] = added
    found = both(tmp_path, feeds)
    for result, (_, b, alpha, beta) in zip(found, cases, strict=True):
        weight = constants["w1"].T if b else constants["w0"]
        wanted = alpha * product(x, weight, strategy)
        if added is not None:
            wanted = wanted + beta * added.astype(np.float64)
        close(result, wanted)
    assert not FLOAT_LAYERS & set(executed_operators(tmp_path))


def test_a_bias_times_zero_is_not_there(tmp_path: Path) -> None:
    """As in onnxruntime, which does not even look at it."""
    bias = np.full(N, np.inf, np.float32)
    made = tiny.model(
        [node("Gemm", "x w c", "y", "layer", beta=0.0)], {"x": ["n", K]}, {"y": ["n", N]},
        {"w": normal(K, N), "c": bias},
    )  # fmt: skip
    dynamic(made, tmp_path)
    x = tokens(5, K)
    (found,) = both(tmp_path, {"x": x})
    close(found, product(x, normal(K, N), "ALWC"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bias_behind_a_product_stays_float(strategy: str, tmp_path: Path) -> None:
    made = tiny.matmul_bias_3d()
    report = dynamic(made, tmp_path, strategy)
    assert decisions(report)["fc1"] == decisions(report)["fc2"] == "dynamic"
    x = tokens(2, 5, 6)
    (found,) = both(tmp_path, {"x": x})
    w1, w2, b1, b2 = normal(6, 8), normal(8, 4, seed=2), normal(8, seed=1), normal(4, seed=3)
    hidden = np.maximum(product(x, w1, strategy) + b1, 0).astype(np.float32)
    close(found, product(hidden, w2, strategy) + b2, 1e-4)  # the first sum's rounding is in it


# ------------------------------------------------------------------------------ how it is executed


def projections() -> onnx.ModelProto:
    """q, k and v, with and without bias, and one layer that reads something else."""
    return tiny.model(
        [
            *(node("MatMul", f"x w{one}", f"{one}", f"to_{one}") for one in "qkv"),
            node("Add", "q bq", "q_sum", "add_q"),
            node("Add", "bk k", "k_sum", "add_k"),
            node("Relu", "v", "r", "relu"),
            node("MatMul", "r wo", "m", "out"),
            node("Add", "m bo", "o", "add_o"),
        ],
        {"x": ["n", "s", K]},
        {name: ["n", "s", K] for name in ("q_sum", "k_sum", "o")},
        {
            **{f"w{one}": normal(K, K, seed=i) for i, one in enumerate("qkvo")},
            **{f"b{one}": normal(K, seed=i) for i, one in enumerate("qko")},
        },
    )


def test_one_scale_is_merged_with_its_bias(tmp_path: Path) -> None:
    """A single reader: DynamicQuantizeMatMul. Several: quantized once, and merged products."""
    dynamic(projections(), tmp_path, "ALWC")
    assert stored_operators(tmp_path)["DynamicQuantizeLinear"] == 2
    found = executed_operators(tmp_path)
    assert found["DynamicQuantizeMatMul"] == 1
    assert found["DynamicQuantizeLinear"] == 1
    assert found["MatMulIntegerToFloat"] == 3
    assert not {*FLOAT_LAYERS, "MatMulInteger", "Add", "Cast", "Mul"} & set(found), found
    for wanted, result in before_and_after(tmp_path, {"x": tokens(2, 5, K)}):
        assert cosine(wanted, result) > 0.999


@pytest.mark.parametrize("strategy", ["ACWC", "ACWL"])
def test_tokens_are_merged_products(strategy: str, tmp_path: Path) -> None:
    dynamic(projections(), tmp_path, strategy)
    assert stored_operators(tmp_path)["QuantizeLinear"] == 2
    found = executed_operators(tmp_path)
    assert found["MatMulIntegerToFloat"] == 4
    assert found["QuantizeLinear"] == found["ReduceMax"] == found["Reciprocal"] == 2
    assert not {*FLOAT_LAYERS, "MatMulInteger", "DequantizeLinear"} & set(found), found
    for wanted, result in before_and_after(tmp_path, {"x": tokens(2, 5, K)}):
        assert cosine(wanted, result) > 0.999


def test_tokens_are_better_where_their_sizes_differ(tmp_path: Path) -> None:
    """What they are for: a small token beside a large one keeps its digits."""
    x = tokens(2, 5, K)
    x[:, 0] *= 100
    errors = {}
    for strategy in STRATEGIES:
        dynamic(projections(), tmp_path, strategy)
        pairs = list(before_and_after(tmp_path, {"x": x}))
        errors[strategy] = max(1 - cosine(a[:, 1:], b[:, 1:]) for a, b in pairs)
    assert errors["ACWC"] < errors["ALWC"] / 100
    assert errors["ACWC"] < errors["ACWL"] < errors["ALWC"]
