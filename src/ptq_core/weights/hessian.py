"""How a layer's inputs go together: ``H = X^T X``, measured from calibration samples.

The squared error that a change D of the weights makes at the layer's output is, for every output
channel, ``d^T H d``: what error-compensating rounding minimizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.graph.operators import attribute

_POSITIONS = 512  # of a sample that are looked at: 256 do as well where there are 100 samples


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerInput:
    """How a layer gathers the inputs of one output.

    Attributes:
        inputs: numbers that one output channel multiplies by its weights.
        groups: of a Conv; each has inputs of its own.
        kernel: of a Conv, one number for each spatial axis; () for MatMul and Gemm.
        strides: likewise.
        pads: begins, then ends, as ONNX has them.
        dilations: likewise.
        same: ``SAME_UPPER`` or ``SAME_LOWER`` where the pads follow from the input's size.
        transposed: a Gemm that takes its input transposed.
    """

    inputs: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    same: str = ""
    transposed: bool = False


def layer_input(node: ir.Node, shape: tuple[int, ...]) -> LayerInput | None:
    """What :class:`Hessian` has to know of a node whose second input is a weight of this shape.

    None for what it cannot measure: ConvTranspose, batches of matrices, other operators.
    """
    match node.op_type:
        case "MatMul" if len(shape) == 2:
            return LayerInput(inputs=shape[0])
        case "Gemm":
            inputs = shape[1] if attribute(node, "transB", 0) else shape[0]
            return LayerInput(inputs=inputs, transposed=bool(attribute(node, "transA", 0)))
        case "Conv":
            kernel = shape[2:]
            auto = attribute(node, "auto_pad", "NOTSET")
            given = attribute(node, "pads", (0,) * (2 * len(kernel)))
            return LayerInput(
                inputs=math.prod(shape[1:]),
                groups=int(attribute(node, "group", 1)),
                kernel=kernel,
                strides=attribute(node, "strides", (1,) * len(kernel)),
                pads=(0,) * (2 * len(kernel)) if auto == "VALID" else given,
                dilations=attribute(node, "dilations", (1,) * len(kernel)),
                same=auto if auto.startswith("SAME") else "",
            )
        case _:
            return None


class Hessian:
    """Sums up ``X^T X`` over samples, in float32: groups times inputs times inputs numbers.

    Args:
        layer: whose.
        positions: of a sample that are looked at, chosen at random, the same each time.
    """

    def __init__(self, layer: LayerInput, positions: int = _POSITIONS) -> None:
        self._layer, self._positions = layer, positions
        self._sum = np.zeros((layer.groups, layer.inputs, layer.inputs), np.float32)
        self._count = 0

    def add(self, values: NDArray[Any]) -> None:
        """Take in the layer's input for some samples: [N, C, ...] for Conv, else [..., K]."""
        if self._layer.kernel:
            samples = [_patches(sample, self._layer, self._positions) for sample in values]
        elif self._layer.transposed:
            samples = [values]
        elif values.ndim <= 2:
            samples = [values.reshape(-1, self._layer.inputs).T]
        else:
            rows = values.reshape(len(values), -1, self._layer.inputs)
            chosen = _chosen(rows.shape[1], self._positions)
            samples = [rows[:, chosen].reshape(-1, self._layer.inputs).T]
        for sample in samples:
            columns = np.asarray(sample, np.float32).reshape(*self._sum.shape[:2], -1)
            self._count += columns.shape[2]
            self._sum += columns @ columns.swapaxes(1, 2)

    def matrix(self) -> NDArray[np.float64]:
        """The mean of ``x x^T``, [groups, inputs, inputs]; zeros where nothing was added."""
        return self._sum.astype(np.float64) / max(1, self._count)


def _patches(sample: NDArray[Any], layer: LayerInput, positions: int) -> NDArray[Any]:
    """What a Conv multiplies at some of its outputs, [channels, taps, positions]."""
    size, rank = list(sample.shape[1:]), len(layer.kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel, layer.dilations, strict=True)]
    begins, ends = list(layer.pads[:rank]), list(layer.pads[rank:])
    if layer.same:
        outputs = [-(-n // s) for n, s in zip(size, layer.strides, strict=True)]
        total = [
            max(0, (o - 1) * s + r - n)
            for o, s, r, n in zip(outputs, layer.strides, reach, size, strict=True)
        ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        begins, ends = (less, more) if layer.same == "SAME_UPPER" else (more, less)
    edges = [(0, 0), *zip(begins, ends, strict=True)]
    padded = np.pad(sample, edges) if any(map(any, edges)) else sample
    outputs = [
        (n - r) // s + 1 for n, r, s in zip(padded.shape[1:], reach, layer.strides, strict=True)
    ]
    chosen = np.unravel_index(_chosen(math.prod(outputs), positions), outputs)
    corners = [at * s for at, s in zip(chosen, layer.strides, strict=True)]
    flat = padded.reshape(len(padded), -1)
    taps = [
        np.ravel_multi_index(
            [c + k * d for c, k, d in zip(corners, tap, layer.dilations, strict=True)],
            padded.shape[1:],
        )
        for tap in np.ndindex(layer.kernel)
    ]
    return np.stack([flat.take(tap, axis=1) for tap in taps], axis=1)


def _chosen(count: int, at_most: int) -> NDArray[np.int64]:
    """Some of ``count`` positions. At random: regular steps would meet few columns of a picture."""
    if count <= at_most:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, at_most, replace=False))
