"""What becomes of every node and every tensor, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ptq_core.target_types import FixedOutput
from ptq_core.types import QScheme

MAX_MIN = "MAX_MIN"

Decision = Literal["integer", "fused", "float", "guarded", "untouched", "weights", "dynamic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePlan:
    """What becomes of one node, and why.

    Attributes:
        name: how users address it.
        key: name of its first output, unique in the graph.
        decision: ``integer``: quantized; ``fused``: part of the integer node before it;
            ``float``: stays as it is; ``guarded``: stays float, protected from the runtime's own
            quantization; ``untouched``: handles shapes or indices, not activations, or has no
            weights; ``weights``: its weights are integers in the file, it computes in float;
            ``dynamic``: computes in integers, its activations are quantized while it runs.
    """

    name: str
    key: str
    op_type: str
    decision: Decision
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """An activation that becomes integer.

    Attributes:
        name: the tensor.
        source: the tensor whose parameters it takes: itself, or the one that movers (MaxPool,
            Reshape) have carried here.
        scheme: how its codes are.
        method: the calibrator that watches it; None where the device fixes its parameters.
        bounds: the interval of the Relu or Clip that produces it, which the range must fit into.
        fixed: parameters that the device demands.
        produced: an integer operator makes it, so that everybody reads the dequantized value;
            otherwise float readers keep reading the float one.
        softmax_axis: along which Softmax reads it, and nobody else does: what is so low in its row
            that Softmax makes zero of it does not count; None where it counts.
        masks: the sums that it is added into, each with the other operand or, of a constant, its
            largest number. Nobody else reads it, and Softmax alone reads the sums, or sums of them.
    """

    name: str
    source: str
    scheme: QScheme
    method: str | None
    produced: bool
    bounds: tuple[float, float] | None = None
    fixed: FixedOutput | None = None
    softmax_axis: int | None = None
    masks: tuple[tuple[str, str | float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightPlan:
    """A constant that becomes integer for one node.

    Attributes:
        node: key of the node that reads it.
        position: which of the node's inputs it is.
        tensor: the initializer.
        axis: the channel axis, None for one scale.
        bias: the initializer of the bias that goes with it, None where there is none.
        bias_node: key of the node that adds the bias, if that is not ``node`` itself.
    """

    node: str
    position: int
    tensor: str
    scheme: QScheme
    axis: int | None
    bias: str | None = None
    bias_node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantPlan:
    """A constant that is stored as integers, and is float where it is used.

    Attributes:
        tensor: the initializer.
        shape: its shape.
        axes: a scale for each index of these axes; empty for one scale.
        readers: the nodes that read it, as users address them.
        table: only Gather reads it, and its scales are of rows.
        group_size: consecutive weights along the inputs that share a scale, 0 for all of a channel.
        balanced: each input has a scale of its own besides.
        in_body: it belongs to the body of an If, Loop or Scan.
    """

    tensor: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    readers: tuple[str, ...]
    table: bool = False
    group_size: int = 0
    balanced: bool = False
    in_body: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every node with a decision; every tensor that becomes integer."""

    nodes: tuple[NodePlan, ...]
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    weights: tuple[WeightPlan, ...] = ()
    constants: tuple[ConstantPlan, ...] = ()
    warnings: tuple[str, ...] = ()

    def watched(self) -> dict[str, TensorPlan]:
        """The tensors whose ranges have to be calibrated."""
        return {
            name: tensor
            for name, tensor in self.tensors.items()
            if tensor.source == name and tensor.fixed is None
        }

    def count(self, decision: Decision) -> int:
        """How many nodes have this decision."""
        return sum(node.decision == decision for node in self.nodes)


def tally(lines: Iterable[str]) -> str:
    """The lines one after the other, equal ones once with their number, as messages have it."""
    return "; ".join(f"{count} x {line}" for line, count in Counter(lines).items())
