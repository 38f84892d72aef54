"""The steps that executing a quantized model consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantized:
    """What codes stand for: ``scale * (code - zero_point)``, along ``axis`` where that is set.

    Attributes:
        codes: the tensor.
        scale: float32, rank 0 where ``axis`` is None.
        zero_point: of the codes' type.
        axis: that the scales are for.
    """

    codes: str
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest code of the type."""
        found: Any = ml_dtypes.iinfo(self.zero_point.dtype)  # type: ignore[no-untyped-call]
        return int(found.min), int(found.max)

    def centered(self, codes: NDArray[Any]) -> NDArray[np.int32]:
        """Codes minus zero points."""
        zero_point = self._along_axis(self.zero_point.astype(np.int32), codes.ndim)
        return np.asarray(codes.astype(np.int32) - zero_point, np.int32)

    def decoded(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """The reals of codes, as DequantizeLinear defines it."""
        reals = self.centered(codes).astype(np.float32) * self._along_axis(self.scale, codes.ndim)
        return np.asarray(reals, np.float32)

    def encoded(self, reals: NDArray[Any]) -> NDArray[Any]:
        """The codes of reals, as QuantizeLinear defines it."""
        low, high = self.limits
        steps = np.rint(np.asarray(reals, np.float32) / self._along_axis(self.scale, reals.ndim))
        codes = steps + self._along_axis(self.zero_point.astype(np.float32), reals.ndim)
        return np.asarray(np.clip(codes, low, high)).astype(self.zero_point.dtype)

    def _along_axis(self, parameter: NDArray[Any], rank: int) -> NDArray[Any]:
        if self.axis is None:
            return parameter
        shape = [1] * rank
        shape[self.axis] = -1
        return np.asarray(parameter.reshape(shape))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Float:
    """A node that is computed in float, or on what is no activation."""

    node: ir.Node


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decode:
    """A DequantizeLinear with constant parameters."""

    quantized: Quantized
    output: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encode:
    """A QuantizeLinear with constant parameters of the whole tensor."""

    source: str
    quantized: Quantized


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """A linear operator in integers, with what the device merges into it.

    Attributes:
        node: the operator.
        left: its first operand.
        right: its weights, or its other activation.
        bias: real values for each channel, None where there is none.
        exact_bias: it comes as int32 codes and is added to the sums; else to their real values.
        bounds: into which merged activations put the real result.
        result: the codes of the result, None where it is float.
        output: the float result.
    """

    node: ir.Node
    left: Quantized
    right: Quantized
    bias: NDArray[np.float64] | None = None
    exact_bias: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)
    result: Quantized | None = None
    output: str


Step = Float | Decode | Encode | Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A quantized activation, or an output of the model.

    Attributes:
        name: as users know the tensor, which is the float model's name for it.
        quantized: its codes; None where it is real.
        tensor: the tensor in the quantized model.
        output: of the model.
    """

    name: str
    quantized: Quantized | None
    tensor: str
    output: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """The steps in their order.

    Attributes:
        steps: only those that an output needs.
        constants: tensors that no sample changes.
        outputs: of the model.
        watched: what there is to compare.
    """

    steps: tuple[Step, ...]
    constants: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    watched: tuple[Watched, ...]


def reads(step: Step) -> Iterator[str]:
    """The tensors that a step needs."""
    match step:
        case Float():
            yield from node_reads(step.node)
        case Decode():
            yield step.quantized.codes
        case Encode():
            yield step.source
        case Layer():
            yield step.left.codes
            yield step.right.codes


def makes(step: Step) -> Iterator[str]:
    """The tensors that a step gives."""
    match step:
        case Float():
            yield from (value.name for value in step.node.outputs if value.name)
        case Decode():
            yield step.output
        case Encode():
            yield step.quantized.codes
        case Layer():
            yield step.output if step.result is None else step.result.codes


def node_reads(node: ir.Node) -> Iterator[str]:
    """The tensors that a node needs: its inputs, and what its bodies read of the graph around."""
    yield from (value.name for value in node.inputs if value is not None and value.name)
    for body in _bodies(node):
        for inner in body.all_nodes():
            for value in inner.inputs:
                if value is None or not value.name:
                    continue
                producer = value.producer()
                owner = value.graph if producer is None else producer.graph
                if owner is node.graph:
                    yield value.name


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            yield attr.as_graph()
        elif attr.type == ir.AttributeType.GRAPHS:
            yield from attr.as_graphs()
