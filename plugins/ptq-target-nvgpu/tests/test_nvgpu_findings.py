"""What `ptq check` finds by NVGPU's own code: weights apart from their layers, slow layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core import quantize
from ptq_core.api import Finding
from ptq_target_nvgpu import ptq_targets
from tests import tiny_models as tiny

(ENTRY,) = ptq_targets()


def found(made: onnx.ModelProto) -> list[Finding]:
    assert ENTRY.check is not None
    return list(ENTRY.check(made.SerializeToString()))


def scale(name: str) -> dict[str, Any]:
    return {f"{name}_s": np.array(0.1, np.float32), f"{name}_z": np.array(0, np.int8)}


def quantized(name: str, source: str) -> list[Any]:
    """Q and DQ of an activation; the result is called ``NAME_dq``."""
    return [
        tiny.node("QuantizeLinear", f"{source} {name}_s {name}_z", f"{name}_q"),
        tiny.node("DequantizeLinear", f"{name}_q {name}_s {name}_z", f"{name}_dq"),
    ]


def layer(op_type: str, weight: tuple[int, ...], between: list[Any], **given: Any) -> Any:
    """A quantized layer; ``between`` leads from the weights' DQ, w_dq, to w."""
    data, result = given.pop("shapes")
    nodes = [
        *quantized("x", "x"),
        tiny.node("DequantizeLinear", "w_codes w_s w_z", "w_dq"),
        *between,
        tiny.node(op_type, f"x_dq {given.pop('reads', 'w')}", "y", "layer", **given),
    ]
    constants = {
        "w_codes": np.ones(weight, np.int8), **scale("x"), **scale("w"),
        "shape": np.array(weight[::-1], np.int64),
    }  # fmt: skip
    return tiny.model(nodes, {"x": data}, {"y": result}, constants)


MATRIX = {"shapes": (["N", 32], ["N", 16])}


@pytest.mark.parametrize(
    ("between", "path"),
    [
        ([tiny.node("Transpose", "w_dq", "w", "turn")], "Transpose 'turn'"),
        (
            [
                tiny.node("Reshape", "w_dq shape", "w_r", "shaped"),
                tiny.node("Identity", "w_r", "w", "same"),
            ],
            "Reshape 'shaped', Identity 'same'",
        ),
    ],
)
def test_weights_that_are_moved_behind_their_dequantization(between: list[Any], path: str) -> None:
    (one,) = found(layer("MatMul", (16, 32), between, **MATRIX))
    assert (one.code, one.severity, one.node, one.tensor) == (
        "W-DQ-NOT-ADJACENT",
        "warning",
        "layer",
        "w",
    )
    assert path in one.message
    assert one.because
    assert one.fix


def test_weights_at_their_layer_are_fine() -> None:
    assert not found(layer("MatMul", (32, 16), [], reads="w_dq", **MATRIX))
    assert not found(layer("Gemm", (16, 32), [], reads="w_dq", transB=1, **MATRIX))


def test_moved_activations_are_no_weights() -> None:
    """Attention transposes what it multiplies."""
    nodes = [
        *quantized("x", "x"),
        *quantized("k", "x"),
        tiny.node("Transpose", "k_dq", "kt", perm=[1, 0]),
        tiny.node("MatMul", "x_dq kt", "y", "scores"),
    ]
    made = tiny.model(nodes, {"x": [8, 32]}, {"y": [8, 8]}, {**scale("x"), **scale("k")})
    assert not found(made)


def test_layers_that_are_faster_in_float() -> None:
    shapes = ([1, 6, 4, 4], [1, 12, 4, 4])
    (one,) = found(layer("Conv", (12, 6, 1, 1), [], reads="w_dq", shapes=shapes))
    assert (one.code, one.severity, one.node) == ("N-CHANNELS", "warning", "layer")
    assert "6 input and 12 output channels" in one.message
    (one,) = found(layer("MatMul", (32, 16), [], reads="w_dq", shapes=([1, 32], [1, 16])))
    assert one.code == "N-CHANNELS"
    assert "[1, 16]" in one.message


def test_the_first_layer_may_have_few_input_channels() -> None:
    shapes = ([1, 3, 4, 4], [1, 8, 4, 4])
    assert not found(layer("Conv", (8, 3, 1, 1), [], reads="w_dq", shapes=shapes))


def test_layers_in_float_are_no_matter() -> None:
    assert not found(tiny.residual())


def test_our_own_files_are_clean(tmp_path: Path) -> None:
    made = tiny.model(
        [
            tiny.node("Conv", "x w0", "c0", "conv0"),
            tiny.node("Conv", "c0 w1", "c1", "few"),
            tiny.node("Flatten", "c1", "f", "flatten"),
            tiny.node("Gemm", "f w2", "y", "classifier", transB=1),
        ],
        {"x": ["N", 3, 4, 4]},
        {"y": ["N", 5]},
        {
            "w0": tiny.normal(16, 3, 1, 1),
            "w1": tiny.normal(4, 16, 4, 4, seed=1),
            "w2": tiny.normal(5, 4, seed=2),
        },
    )
    draw = np.random.default_rng(0)
    data = [draw.standard_normal((1, 3, 4, 4)).astype(np.float32) for _ in range(4)]
    quantize(tiny.save(made, tmp_path), tmp_path / "q.onnx", data=data, target="NVGPU")
    assert ENTRY.check is not None
    assert not list(ENTRY.check(tmp_path / "q.onnx"))
