"""Dynamic quantization of numbers, shapes and models at the edge of what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ptq_core.errors import InputError, NumericError
from tests import tiny_models as tiny
from tests.dynamic_checks import (
    STRATEGIES,
    before_and_after,
    both,
    close,
    decisions,
    dynamic,
    product,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, run, session

K, N = 16, 24


def single(weight: Any, opset: int = tiny.OPSET, ir_version: int = 8) -> onnx.ModelProto:
    return tiny.model(
        [node("MatMul", "x w", "m", "layer"), node("Add", "m b", "y", "bias")],
        {"x": ["n", "s", K]}, {"y": ["n", "s", N]}, {"w": weight, "b": normal(N, seed=3)},
        opset=opset, ir_version=ir_version,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_zeros_give_the_bias(strategy: str, tmp_path: Path) -> None:
    dynamic(single(normal(K, N)), tmp_path, strategy)
    x = np.zeros((2, 5, K), np.float32)
    np.testing.assert_array_equal(*next(iter(before_and_after(tmp_path, {"x": x}))))
    x[0, 1] = normal(K, seed=5)
    (found,) = both(tmp_path, {"x": x})
    bias = normal(N, seed=3)
    np.testing.assert_array_equal(found[1], np.broadcast_to(bias, found[1].shape))
    close(found, product(x, normal(K, N), strategy) + bias)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows(strategy: str, tmp_path: Path) -> None:
    """An empty batch, and an empty sequence, as the float model."""
    if strategy != "ALWC" and not _reduces_no_rows(tmp_path):
        pytest.skip("this onnxruntime's ReduceMax gives no rows a wrong shape")
    dynamic(single(normal(K, N)), tmp_path, strategy)
    for shape in ((0, 5, K), (2, 0, K)):
        for wanted, found in before_and_after(tmp_path, {"x": np.zeros(shape, np.float32)}):
            assert wanted.shape == found.shape == (*shape[:2], N)


def _reduces_no_rows(tmp_path: Path) -> bool:
    """Whether the largest value of each of no rows has the shape that ONNX asks for (not 1.23)."""
    reduce = node("ReduceMax", "x", "y", "reduce", axes=[-1], keepdims=1)
    made = tiny.model([reduce], {"x": ["n", K]}, {"y": ["n", 1]}, {})
    (found,) = run(tiny.save(made, tmp_path, "reduce.onnx"), {"x": np.zeros((0, K), np.float32)})
    return found.shape == (0, 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [1e-35, 1e-25, 1e-10, 1.0, 1e10, 1e30])
def test_any_magnitude(strategy: str, size: float, tmp_path: Path) -> None:
    made = tiny.model(
        [node("MatMul", "x w", "y", "layer")], {"x": ["n", K]}, {"y": ["n", N]},
        {"w": normal(K, N)},
    )  # fmt: skip
    dynamic(made, tmp_path, strategy)
    x = np.asarray(normal(5, K, seed=5) * np.float32(size))
    for wanted, found in before_and_after(tmp_path, {"x": x}):
        assert np.isfinite(found).all()
        if size >= 1e-28 or strategy == "ALWC":
            assert cosine(wanted / size, found / size) > 0.999
        else:  # below the smallest magnitude of a token
            assert np.abs(found).max() <= 1e-29


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_of_any_magnitude_beside_each_other(strategy: str, tmp_path: Path) -> None:
    dynamic(single(normal(K, N)), tmp_path, strategy)
    x = normal(1, 4, K, seed=5) * np.array([0, 1e-20, 1, 1e20], np.float32)[:, None]
    (found,) = both(tmp_path, {"x": x})
    assert np.isfinite(found).all()
    close(found, product(x, normal(K, N), strategy) + normal(N, seed=3))
    if strategy != "ALWC":
        for row, wanted in zip(found[0], product(x, normal(K, N), strategy)[0], strict=True):
            close(row, wanted + normal(N, seed=3))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("what", ["zeros", "ones", "a zero column", "a small column"])
def test_weights_without_spread(strategy: str, what: str, tmp_path: Path) -> None:
    weight = {"zeros": np.zeros, "ones": np.ones}.get(what, lambda *_: normal(K, N))((K, N), "f4")
    if "column" in what:
        weight[:, 3] *= 0 if "zero" in what else 1e-7
    made = tiny.model(
        [node("MatMul", "x w", "y", "layer")], {"x": ["n", K]}, {"y": ["n", N]}, {"w": weight}
    )
    dynamic(made, tmp_path, strategy)
    x = normal(5, K, seed=5)
    (found,) = both(tmp_path, {"x": x})
    close(found, product(x, weight, strategy))
    if what == "a zero column":
        assert (found[:, 3] == 0).all()
    if what == "a small column" and strategy != "ACWL":
        close(found[:, 3], product(x, weight, strategy)[:, 3])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    weight = normal(K, N)
    weight[1, 2] = value
    with pytest.raises((NumericError, InputError), match="'w'"):
        dynamic(single(weight), tmp_path)
    assert not (tmp_path / "out.onnx").exists()


# ---------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 18, 20, 21, 23, 24, 25])
def test_every_opset(strategy: str, opset: int, tmp_path: Path) -> None:
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this onnx knows opset {onnx.defs.onnx_opset_version()} and older ones")
    made = single(normal(K, N), opset, ir_version=4 if opset < 11 else 10)
    dynamic(made, tmp_path, strategy)
    (version,) = (one.version for one in onnx.load(tmp_path / "out.onnx").opset_import)
    assert version == max(opset, 13)
    x = normal(2, 5, K, seed=5)
    (found,) = both(tmp_path, {"x": x})
    close(found, product(x, normal(K, N), strategy) + normal(N, seed=3))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_float16_model_is_widened(strategy: str, tmp_path: Path) -> None:
    half = np.float16
    made = tiny.model(
        [node("MatMul", "x w", "m", "layer"), node("Add", "m b", "y", "bias")],
        [tiny.info("x", ["n", K], TensorProto.FLOAT16)],
        [tiny.info("y", ["n", N], TensorProto.FLOAT16)],
        {"w": normal(K, N).astype(half), "b": normal(N).astype(half)},
    )
    report = dynamic(made, tmp_path, strategy)
    assert any("widened" in one for one in report.notes)
    assert decisions(report)["layer"] == "dynamic"
    proto = onnx.load(tmp_path / "out.onnx")
    assert {one.type.tensor_type.elem_type for one in (*proto.graph.input, *proto.graph.output)} \
        <= {TensorProto.FLOAT16, TensorProto.FLOAT}  # fmt: skip
    kind = {TensorProto.FLOAT16: half, TensorProto.FLOAT: np.float32}[
        proto.graph.input[0].type.tensor_type.elem_type
    ]
    x = normal(5, K, seed=5)
    (wanted,) = run(tmp_path / "model.onnx", {"x": x.astype(half)})
    (found,) = run(tmp_path / "out.onnx", {"x": x.astype(kind)})
    assert cosine(wanted, found) > 0.9995


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_activations_of_unknown_rank(strategy: str, tmp_path: Path) -> None:
    """The number of axes is known only when the model runs."""
    made = tiny.model(
        [
            node("Reshape", "x shape", "r", "any_rank"),
            node("MatMul", "r w", "p", "layer"),
            node("Reshape", "p flat", "y", "back"),
        ],
        [tiny.info("x", ["n"]), tiny.info("shape", ["rank"], TensorProto.INT64)],
        {"y": ["m"]},
        {"w": normal(K, N), "flat": np.array([-1])},
    )
    shapes = [(K,), (3, K), (2, 3, K)]
    data = [
        {"x": np.ones(int(np.prod(shape)), np.float32), "shape": np.array(shape)}
        for shape in shapes
    ]
    report = dynamic(made, tmp_path, strategy, data=data)
    assert decisions(report)["layer"] == "dynamic"
    for shape in shapes:
        x = normal(*shape, seed=5)
        (found,) = both(tmp_path, {"x": x.ravel(), "shape": np.array(shape)})
        close(found, product(x, normal(K, N), strategy).ravel())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shapes_stay_open(strategy: str, tmp_path: Path) -> None:
    made = single(normal(K, N))
    dynamic(made, tmp_path, strategy)
    proto = onnx.load(tmp_path / "out.onnx")
    assert list(proto.graph.input) == list(made.graph.input)
    assert list(proto.graph.output) == list(made.graph.output)
    one = session(tmp_path / "out.onnx")
    for shape in ((1, 1, K), (1, 40, K), (7, 3, K)):
        x = normal(*shape, seed=5)
        (found,) = one.run(None, {"x": x})
        close(found, product(x, normal(K, N), strategy) + normal(N, seed=3))


def test_an_output_that_is_read_again_and_a_layer_that_is_one(tmp_path: Path) -> None:
    """Names of outputs stay, where the layer itself gives one and where others read it as well."""
    made = tiny.model(
        [
            node("MatMul", "x w1", "a", "first"),
            node("MatMul", "a w2", "b", "second"),
            node("Gemm", "b w3 c", "d", "third"),
        ],
        {"x": ["n", K]},
        {"a": ["n", K], "b": ["n", K], "d": ["n", K]},
        {f"w{i}": normal(K, K, seed=i) for i in (1, 2, 3)} | {"c": normal(K)},
    )
    for strategy in STRATEGIES:
        dynamic(made, tmp_path, strategy)
        assert [one.name for one in onnx.load(tmp_path / "out.onnx").graph.output] == [*"abd"]
        for wanted, found in before_and_after(tmp_path, {"x": normal(5, K, seed=5)}):
            assert cosine(wanted, found) > 0.999


def test_names_that_are_taken_already(tmp_path: Path) -> None:
    taken = ["x_quantized", "x_scale", "w_quantized", "y_integer", "y_real", "y_product",
             "ptq_middle", "ptq_token_scale", "x_magnitude", "x_tokens"]  # fmt: skip
    made = tiny.model(
        [
            *(node("Relu", "x" if i == 0 else taken[i - 1], one, f"{one}_node")
              for i, one in enumerate(taken)),
            node("MatMul", "x w", "y", "layer"),
            node("MatMul", f"{taken[-1]} w", "z", "other"),
        ],
        {"x": ["n", K]}, {"y": ["n", N], "z": ["n", N]}, {"w": normal(K, N)},
    )  # fmt: skip
    for strategy in STRATEGIES:
        dynamic(made, tmp_path, strategy)
        x = normal(5, K, seed=5)
        found = both(tmp_path, {"x": x})
        close(found[0], product(x, normal(K, N), strategy))
        close(found[1], product(np.maximum(x, 0), normal(K, N), strategy))
