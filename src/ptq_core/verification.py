"""Look at the result before handing it over: valid, loadable, close, and really integer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ptq_core.arithmetic import cosine, sqnr
from ptq_core.errors import Location, ModelError, PtqError
from ptq_core.planning import Plan
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Sample
from ptq_core.types import Runner, RunnerEntry

# Operators that a layer with dynamic quantization must not end up as.
_FLOAT_LAYERS = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "LSTM"}
)

# Operators that compute with integers and may still give a float result, by parts of their names.
_INTEGER_KERNELS = (
    "QLinear", "QGemm", "Integer", "QAttention", "QuantizeLinear", "DequantizeLinear",
    "Reshape",  # computes nothing; onnxruntime puts it around a QGemm with more than two axes
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputCheck:
    """How close one output of the quantized model is to the float model's.

    Attributes:
        name: the output.
        cosine: mean over the samples.
        worst_cosine: the smallest.
        sqnr: signal to quantization noise in dB over all samples together.
    """

    name: str
    cosine: float
    worst_cosine: float
    sqnr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What verification found.

    Attributes:
        outputs: closeness, for each float output.
        samples: how many samples were compared.
        held_out: calibration did not see them.
        executed: operators of the graph that the runtime really executes, with their counts; empty
            where the runner cannot tell.
        unexpected: nodes that the plan has in integers and the runtime runs in float.
    """

    outputs: tuple[OutputCheck, ...] = ()
    samples: int = 0
    held_out: bool = False
    executed: Mapping[str, int] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()

    @property
    def cosine(self) -> float | None:
        """The smallest mean cosine of all outputs; None where nothing was compared."""
        return min((output.cosine for output in self.outputs), default=None)


def check_model(model: bytes | Path, original: Path) -> None:
    """Raise an error if the ONNX checker refuses the quantized model.

    Raises:
        ModelError: it refuses the float model, too, and for the same reason.
        PtqError: it does not: that is a defect of ptq.
    """
    found = _refusal(model)
    if found is None:
        return
    before = _refusal(original)
    if before is not None and before.splitlines()[0] == found.splitlines()[0]:
        raise ModelError(
            f"is not valid ONNX: {found}",
            location=Location(file=str(original)),
            hint="export it again; `onnx.checker.check_model` says the same of it",
        )
    raise PtqError(
        f"the quantized model is not valid ONNX, nothing was written: {found}",
        hint="this is a defect of ptq or of a target plugin",
    )


def _refusal(model: bytes | Path) -> str | None:
    """What the ONNX checker says against a model."""
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip() or type(error).__name__
    return None


def verify(
    original: bytes | Path,
    quantized: bytes | Path,
    plan: Plan,
    samples: Iterable[Sample],
    runner: Registered[RunnerEntry],
    options: Any,
    *,
    held_out: bool = False,
) -> Verification:
    """Compare the quantized model with the float one on a few samples.

    Raises:
        PluginError: the runner cannot load one of them.
    """
    with blame(runner.record, "loading the quantized model"):
        after = runner.entry.factory(quantized, options)
    with blame(runner.record, "loading the float model"):
        before = runner.entry.factory(original, options)
    collected: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    count = 0
    for sample in samples:
        with blame(runner.record, f"running {sample.name}"):
            wanted, found = before.run(sample.feeds), after.run(sample.feeds)
        count += 1
        for name, array in wanted.items():
            if array.dtype.kind == "f":
                collected.setdefault(name, []).append((array, found[name]))
    executed, unexpected = _executed(after, plan, runner)
    return Verification(
        outputs=tuple(_check(name, pairs) for name, pairs in collected.items()),
        samples=count,
        held_out=held_out,
        executed=executed,
        unexpected=unexpected,
    )


def _check(name: str, pairs: list[tuple[NDArray[Any], NDArray[Any]]]) -> OutputCheck:
    cosines = [cosine(wanted, found) for wanted, found in pairs]
    wanted, found = (
        np.concatenate([one.ravel() for one in side]) for side in zip(*pairs, strict=True)
    )
    return OutputCheck(
        name=name,
        cosine=float(np.mean(cosines)),
        worst_cosine=min(cosines),
        sqnr=sqnr(wanted, found),
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attr in node.attribute:
            for body in (attr.g, *attr.graphs):
                yield from _nodes(body)


def _executed(
    session: Runner, plan: Plan, runner: Registered[RunnerEntry]
) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """Operators of the executed graph, and planned integer nodes that are float in it."""
    with blame(runner.record, "showing the executed graph"):
        form = session.executed_model()
    if form is None:
        return {}, ()
    nodes = list(_nodes(onnx.load_from_string(form).graph))
    counts = Counter(node.op_type for node in nodes)
    by_output = {node.key: node.name for node in plan.nodes if node.decision == "integer"}
    by_output |= {
        name: by_output.get(name, name) for name, tensor in plan.tensors.items() if tensor.produced
    }
    # emission calls an output's float value so, the output being what comes behind
    made = {output for node in nodes for output in node.output}
    by_output = {
        f"{output}_float" if f"{output}_float" in made else output: name
        for output, name in by_output.items()
    }
    unexpected = [
        by_output[output]
        for node in nodes
        if not any(part in node.op_type for part in _INTEGER_KERNELS)
        for output in node.output
        if output in by_output
    ]
    # emission calls the product before a bias or a factor so
    dynamic = {
        f"{node.key}{ending}": node.name
        for node in plan.nodes
        if node.decision == "dynamic"
        for ending in ("", "_product", "_scaled")
    }
    unexpected += [
        dynamic[output]
        for node in nodes
        if node.op_type in _FLOAT_LAYERS
        for output in node.output
        if output in dynamic
    ]
    return dict(counts.most_common()), tuple(dict.fromkeys(unexpected))
