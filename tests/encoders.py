"""An encoder of texts in two forms, in small, with channels that are far larger than the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tests import tiny_models as tiny
from tests.decoders import LAYERS, VOCABULARY, WIDTH, attention, constants, dense, residual
from tests.tiny_models import Arrays, Shape, node

LENGTH, OUTLIERS = 12, (3, 17)


def encoder(*, pre: bool = False, batch: Shape = ("N",), outliers: float = 20.0) -> onnx.ModelProto:
    """Normalization behind each sum as in BERT, or (``pre``) in front of each block."""
    nodes = [node("Gather", "table ids", "embedded", "embedding")]
    source = "embedded"
    for layer in range(LAYERS):
        block = f"self{layer}"
        if pre:
            nodes += [
                _norm(f"{block}_in", source, block),
                *attention(block, f"{block}_in", f"{block}_in", cached=False)[:-2],
            ]
            nodes.append(node("Add", f"{source} {block}_o", f"{block}_out", f"{block}_add"))
            nodes.append(_norm(f"wide{layer}", f"{block}_out", f"down{layer}"))
        else:
            nodes += attention(block, source, source, cached=False)
        given = f"wide{layer}" if pre else f"{block}_out"
        nodes += [
            *dense(f"up{layer}", given, f"up{layer}_w"),
            node("Relu", f"up{layer}", f"act{layer}", f"act{layer}_relu"),
            *dense(f"down{layer}", f"act{layer}", f"down{layer}_w"),
        ]
        source = f"down{layer}_out"
        if pre:
            text = f"{block}_out down{layer}"
            nodes.append(node("Add", text, source, f"down{layer}_add"))
        else:
            nodes += residual(f"down{layer}", f"{block}_out", f"down{layer}")
    nodes.append(_norm("y", source, "last"))
    used = {name for one in nodes for name in one.input}
    ones = {"last_gamma": np.ones(WIDTH, np.float32), "last_beta": np.zeros(WIDTH, np.float32)}
    made = {name: array for name, array in {**constants(), **ones}.items() if name in used}
    _enlarge(made, outliers)
    ids = tiny.info("ids", [*batch, LENGTH], TensorProto.INT64)
    return tiny.model(nodes, [ids], {"y": [*batch, LENGTH, WIDTH]}, made)


def _norm(result: str, source: str, name: str) -> Any:
    text = f"{source} {name}_gamma {name}_beta"
    return node("LayerNormalization", text, result, f"{result}_norm", axis=-1)


def _enlarge(made: Arrays, factor: float) -> None:
    """A few channels of what is normalized; what reads them has small weights for them."""
    for name, array in made.items():
        if name.endswith("_gamma") and name != "last_gamma":
            array[list(OUTLIERS)] = factor
        if name.endswith(("_wq", "_wk", "_wv")) or name.startswith("up"):
            array[list(OUTLIERS)] /= factor / 2
        if name.endswith("_wo") or (name.startswith("down") and name.endswith("_w")):
            array *= 6  # beside the residual, which stays float


def texts(count: int, *, seed: int = 0, rows: int = 1) -> list[Arrays]:
    draw = tiny.rng(seed)
    return [{"ids": draw.integers(VOCABULARY, size=(rows, LENGTH))} for _ in range(count)]


def full(method: str = "MAX_MIN", *, skip: tuple[str, ...] = (), **keys: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"quant_type": "FULL_QUANT"}
    if skip:
        common["skip_quant_node"] = list(skip)
    return {
        "common_quant_param": common,
        "full_quant_param": {"activation_quant_method": method, **keys},
    }


def graph_of(path: Path) -> bytes:
    """All but the metadata, where the config is."""
    return bytes(onnx.load(path).graph.SerializeToString(deterministic=True))
