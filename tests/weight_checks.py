"""What tests of weight quantization share: how to do it, and what becomes of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ptq_core import quantize
from ptq_core.jobs import Report, Settings, StoredWeight
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

Section = Mapping[str, Any]


def sections(
    bits: int,
    *,
    common: Section | None = None,
    weight: Section | None = None,
    mixed: Section | None = None,
    **others: Section,
) -> dict[str, dict[str, Any]]:
    """The config of weight quantization, without the threshold on channels."""
    given = {"quant_type": "WEIGHT_QUANT", "bit_num": bits, "min_quant_weight_channel": 0}
    found = {"common_quant_param": {**given, **(common or {})}}
    if weight:
        found["weight_quant_param"] = dict(weight)
    if mixed:
        found["mixed_bit_weight_quant_param"] = dict(mixed)
    return found | {name: dict(section) for name, section in others.items()}


def shrink(
    made: onnx.ModelProto | Path,
    folder: Path,
    bits: int,
    *,
    data: Iterable[Any] | None = None,
    settings: Settings | None = None,
    name: str = "out.onnx",
    **given: Any,
) -> Report:
    """Quantize the weights of a model into ``folder / "out.onnx"``."""
    path = made if isinstance(made, Path) else tiny.save(made, folder)
    config = sections(bits, **given)
    return quantize(path, folder / name, config=config, data=data, settings=settings)


def weights(report: Report) -> dict[str, StoredWeight]:
    return {one.tensor: one for one in report.weights}


def reasons(report: Report) -> dict[str, str]:
    return {one.name: one.reason for one in report.plan.nodes}


def session(content: bytes | Path, *, optimized: bool = True, keep: Path | None = None) -> Any:
    """The model in onnxruntime, with nothing but what everybody has."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimized:
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    given = content if isinstance(content, bytes) else str(content)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def executed(content: bytes | Path, folder: Path) -> onnx.ModelProto:
    """The model as onnxruntime executes it."""
    session(content, keep=folder / "executed.onnx")
    return onnx.load(folder / "executed.onnx")


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes there are of each type, bodies included."""
    found = Counter(one.op_type for one in graph.node)
    for one in graph.node:
        for attribute in one.attribute:
            if attribute.HasField("g"):
                found += operators(attribute.g)
    return found


def run(path: Path, feeds: Mapping[str, NDArray[Any]], *, optimized: bool = True) -> list[Any]:
    return list(session(path, optimized=optimized).run(None, dict(feeds)))


def decoded(
    path: Path, names: Iterable[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Tensors of the main graph, such as decoded weights, as onnxruntime computes them."""
    proto, wanted = onnx.load(path), list(names)
    del proto.graph.output[:]
    proto.graph.output.extend(tiny.info(name, None) for name in wanted)
    found = [
        session(proto.SerializeToString(), optimized=optimized).run(wanted, dict(feeds))
        for optimized in (False, True)
    ]
    for plain, folded in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, folded)
    return dict(zip(wanted, found[0], strict=True))


def cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    a, b = (np.asarray(one, np.float64).ravel() for one in (first, second))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def network(width: int = 32) -> onnx.ModelProto:
    """A table, and the feed-forward part of a transformer."""
    return tiny.model(
        [
            node("Gather", "table ids", "e", "embedding"),
            node("MatMul", "e w1", "m", "up"),
            node("Add", "m b1", "a", "up_bias"),
            node("Relu", "a", "r", "relu"),
            node("MatMul", "r w2", "y", "down"),
        ],
        [tiny.info("ids", ["N", 5], onnx.TensorProto.INT64)],
        {"y": ["N", 5, 32]},
        {
            "table": normal(100, width),
            "w1": normal(width, 64, seed=1),
            "b1": normal(64, seed=2),
            "w2": normal(64, 32, seed=3),
        },
    )
