"""Where in the model accuracy is lost: the noise in every quantized tensor, node by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ptq_core.arithmetic import sqnr
from ptq_core.graph.model import runnable, with_outputs
from ptq_core.graph.operators import key
from ptq_core.planning import Plan
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Sample
from ptq_core.types import Runner, RunnerEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeError:
    """How much of a node's result is noise in the quantized model.

    Attributes:
        name: the node.
        op_type: its operator.
        sqnr: of its result, in dB.
        lost: dB that were still there in the worst of its inputs.
    """

    name: str
    op_type: str
    sqnr: float
    lost: float


def node_errors(
    floats: ir.Model,
    quantized: ir.Model,
    plan: Plan,
    samples: Sequence[Sample],
    runner: Registered[RunnerEntry],
    options: Any,
) -> tuple[NodeError, ...]:
    """The integer nodes, those first in which most accuracy is lost.

    The first layers are measured against what rounding the model's input leaves.
    """
    known = {value.name for node in quantized.graph for value in node.outputs}
    rounded = {name: f"{name}_dequantized" for name in plan.tensors}
    rounded = {name: after if after in known else name for name, after in rounded.items()}
    made_by = {value.name: node for node in floats.graph for value in node.outputs}
    wanted = _watch(floats, [name for name in rounded if name in made_by], runner, options)
    found = _watch(quantized, list(rounded.values()), runner, options)
    ratios: dict[str, list[float]] = {}
    for sample in samples:
        with blame(runner.record, f"running {sample.name}"):
            before = {**sample.feeds, **wanted.run(sample.feeds)}
            after = found.run(sample.feeds)
        for name, quantized_name in rounded.items():
            if quantized_name in after:
                ratios.setdefault(name, []).append(sqnr(before[name], after[quantized_name]))
    level = {name: float(np.mean(values)) for name, values in ratios.items()}
    decisions = {node.key: node for node in plan.nodes}
    errors = []
    for name, own in level.items():
        if not plan.tensors[name].produced:
            continue
        node = made_by[name]
        while decisions[key(node)].decision == "fused":  # an activation or bias: to its operator
            node = next(made_by[v.name] for v in node.inputs if v is not None and v.name in made_by)
        before_it = [level[source] for source in _sources(node, level, made_by)]
        errors.append(
            NodeError(
                name=decisions[key(node)].name,
                op_type=node.op_type,
                sqnr=own,
                lost=min(before_it, default=own) - own,
            )
        )
    return tuple(sorted(errors, key=lambda error: -error.lost))


def _sources(
    node: ir.Node, level: Mapping[str, float], made_by: Mapping[str | None, ir.Node]
) -> Iterator[str]:
    """The measured tensors that the node computes from, looked up through float nodes."""
    waiting, seen = list(node.inputs), set()
    while waiting:
        value = waiting.pop()
        if value is None or value.name is None or value.name in seen:
            continue
        seen.add(value.name)
        if value.name in level:
            yield value.name
        elif value.name in made_by:
            waiting += made_by[value.name].inputs


def _watch(
    model: ir.Model, names: Sequence[str], runner: Registered[RunnerEntry], options: Any
) -> Runner:
    """A runner for the model that returns these tensors."""
    with runnable(with_outputs(model, names)) as form, blame(runner.record, "loading the model"):
        return runner.entry.factory(form, options)
