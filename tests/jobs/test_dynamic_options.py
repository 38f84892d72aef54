"""What is quantized only when asked for: products of two activations, and convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from ptq_core.errors import InputError
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
    planned,
    rounded_weights,
    whole,
)
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, reasons, run

K = 32


# ------------------------------------------------------------------------------------- attention


def scores() -> onnx.ModelProto:
    """A projection, and the product of the result with another activation."""
    return tiny.model(
        [
            node("MatMul", "x w", "q", "to_q"),
            node("MatMul", "q k", "s", "scores"),
            node("Softmax", "s", "p", "softmax"),
            node("MatMul", "p v", "y", "context"),
        ],
        {"x": ["n", 5, K], "k": ["n", K, "m"], "v": ["n", "m", 8]},
        {"q": ["n", 5, K], "s": ["n", 5, "m"], "y": ["n", 5, 8]},
        {"w": normal(K, K)},
    )


FEEDS = {
    "x": normal(2, 5, K, seed=5, scale=1.0),
    "k": normal(2, K, 7, seed=6, scale=1.0),
    "v": normal(2, 7, 8, seed=7, scale=1.0),
}
SAMPLES = [FEEDS]


def test_two_activations_are_quantized_when_asked_for(tmp_path: Path) -> None:
    report = dynamic(scores(), tmp_path, attention=True, data=SAMPLES)
    assert {decisions(report)[one] for one in ("to_q", "scores", "context")} == {"dynamic"}
    assert reasons(report)["scores"] == "both activations one scale each, while running"
    q, s, y = both(tmp_path, FEEDS)
    close(s, whole(q) @ whole(FEEDS["k"]))
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    close(y, whole(p.astype(np.float32)) @ whole(FEEDS["v"]), 0.01)  # a step of p, at most
    found = executed_operators(tmp_path)
    assert not FLOAT_LAYERS & set(found)
    for wanted, result in before_and_after(tmp_path, FEEDS):
        assert cosine(wanted, result) > 0.999


def test_a_product_with_itself(tmp_path: Path) -> None:
    """One DynamicQuantizeLinear for both operands."""
    made = tiny.model(
        [node("MatMul", "x x", "y", "square")], {"x": ["n", K, K]}, {"y": ["n", K, K]}
    )
    dynamic(made, tmp_path, attention=True)
    x = normal(2, K, K, seed=5, scale=1.0)
    (found,) = both(tmp_path, {"x": x})
    close(found, whole(x) @ whole(x))
    kinds = [one.op_type for one in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 1


def test_two_activations_stay_float_otherwise(tmp_path: Path) -> None:
    report = dynamic(scores(), tmp_path, data=SAMPLES)
    assert decisions(report)["scores"] == "float"
    assert "attention = true" in reasons(report)["scores"]
    for strategy in ("ACWL", "ACWC"):
        report = dynamic(scores(), tmp_path, strategy, attention=True, data=SAMPLES)
        assert decisions(report)["context"] == "float"
        assert reasons(report)["context"] == (
            f"multiplies two activations, for which {strategy} has no form; ALWC has"
        )


def test_a_constant_first_operand_stays_float(tmp_path: Path) -> None:
    made = scores()
    made.graph.node.append(node("MatMul", "a v", "z", "mix"))
    made.graph.initializer.append(numpy_helper.from_array(normal(6, 7), "a"))
    made.graph.output.append(tiny.info("z", ["n", 6, 8]))
    for attention in (False, True):
        report = dynamic(made, tmp_path, attention=attention, data=SAMPLES)
        assert decisions(report)["mix"] == "float"
        assert reasons(report)["mix"] == "the constant is its first operand"


def test_two_constants(tmp_path: Path) -> None:
    """Preparation folds them, or the plan says so; the result is right in any case."""
    made = scores()
    made.graph.node.append(node("MatMul", "a w", "z", "constants"))
    made.graph.initializer.append(numpy_helper.from_array(normal(6, K), "a"))
    made.graph.output.append(tiny.info("z", [6, K]))
    report = dynamic(made, tmp_path, data=SAMPLES)
    assert decisions(report).get("constants", "float") == "float"
    close(both(tmp_path, FEEDS)[-1], run(tmp_path / "model.onnx", FEEDS)[-1])


# ----------------------------------------------------------------------------------- convolutions

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    # shape of the input, of the weights, attributes
    "plain": ((2, 6, 9, 8), (8, 6, 3, 3), {}),
    "pointwise": ((2, 6, 9, 8), (8, 6, 1, 1), {}),
    "strides": ((2, 6, 9, 8), (8, 6, 3, 3), {"strides": [2, 1]}),
    "pads": ((2, 6, 9, 8), (8, 6, 3, 3), {"pads": [1, 0, 2, 1]}),
    "same_upper": ((2, 6, 9, 8), (8, 6, 4, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ((2, 6, 9, 8), (8, 6, 4, 4), {"auto_pad": "SAME_LOWER"}),
    "valid": ((2, 6, 9, 8), (8, 6, 3, 3), {"auto_pad": "VALID"}),
    "groups": ((2, 6, 9, 8), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "dilations": ((2, 6, 9, 8), (8, 6, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "kernel_shape": ((2, 6, 9, 8), (8, 6, 3, 2), {"kernel_shape": [3, 2]}),
    "one_axis": ((2, 6, 20), (8, 6, 5), {"pads": [2, 2], "strides": [2]}),
    "three_axes": ((1, 3, 5, 6, 7), (4, 3, 2, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
}


def convolution(
    case: str, bias: NDArray[np.float32] | None, weight: NDArray[np.float32]
) -> onnx.ModelProto:
    shape, _, attributes = CASES[case]
    spatial = [f"s{i}" for i in range(len(shape) - 2)]
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    return tiny.model(
        [node("Conv", "x w" + (" b" if bias is not None else ""), "y", "conv", **attributes)],
        {"x": ["n", *shape[1:]]}, {"y": ["n", weight.shape[0], *spatial]}, constants,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_convolution(case: str, with_bias: bool, strategy: str, tmp_path: Path) -> None:
    """The float operator on activations and weights that are rounded beforehand is the oracle."""
    shape, kernel, _ = CASES[case]
    weight = normal(*kernel)
    bias = normal(kernel[0], seed=3, scale=1.0) if with_bias else None
    report = dynamic(convolution(case, bias, weight), tmp_path, strategy, convolution=True)
    assert decisions(report) == {"conv": "dynamic"}
    x = normal(*shape, seed=5, scale=1.0) + np.float32(0.3)
    (found,) = both(tmp_path, {"x": x})
    rounded = rounded_weights(weight, None if strategy == "ACWL" else 0).astype(np.float32)
    tiny.save(convolution(case, bias, rounded), tmp_path)
    (wanted,) = run(tmp_path / "model.onnx", {"x": whole(x).astype(np.float32)})
    close(found, wanted)
    assert executed_operators(tmp_path)["ConvInteger"] == 1
    assert not FLOAT_LAYERS & set(executed_operators(tmp_path))


def test_shared_weights_of_convolutions(tmp_path: Path) -> None:
    report = dynamic(tiny.shared_weights(), tmp_path, convolution=True)
    assert decisions(report)["first"] == decisions(report)["second"] == "dynamic"
    for wanted, found in before_and_after(tmp_path, tiny.feeds(tiny.shared_weights())):
        assert cosine(wanted, found) > 0.99


def test_convolutions_stay_float_by_default(tmp_path: Path) -> None:
    report = dynamic(tiny.conv_bn_relu(), tmp_path)
    assert decisions(report)["conv1"] == "float"
    assert "convolution = true" in reasons(report)["conv1"]
    assert decisions(report)["classifier"] == "dynamic"
    (warning,) = (one for one in report.warnings if "convolutions" in one)
    assert warning.startswith("1080 of 1140 weights belong to convolutions")
    for wanted, found in before_and_after(tmp_path, tiny.feeds(tiny.conv_bn_relu())):
        assert cosine(wanted, found) > 0.999


def test_nothing_but_convolutions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to quantize while running") as caught:
        dynamic(tiny.residual(), tmp_path)
    assert "convolution = true" in str(caught.value)
    assert "--bits 8" in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("strategy", ["ALWC", "ACWC"])
def test_every_tiny_model(name: str, strategy: str, tmp_path: Path) -> None:
    made = tiny.MODELS[name]()
    report = _quantized(made, tmp_path, strategy)
    if report is None:
        return
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    if name != "half":  # its inputs are widened
        for wanted, found in before_and_after(tmp_path, tiny.feeds(made)):
            assert cosine(wanted, found) > 0.98


def _quantized(made: onnx.ModelProto, folder: Path, strategy: str) -> Any:
    """None where the plan has nothing, which it says."""
    try:
        return dynamic(made, folder, strategy, convolution=True, attention=True)
    except InputError as error:
        assert "nothing to quantize while running" in str(error)  # noqa: PT017 - some are that small
        assert not (folder / "out.onnx").exists()
        return None


def test_the_plan_tells_the_same(tmp_path: Path) -> None:
    report = planned(tiny.conv_bn_relu(), tmp_path, convolution=True)
    assert set(decisions(report).values()) == {"dynamic", "untouched"}
    assert report.files == []
