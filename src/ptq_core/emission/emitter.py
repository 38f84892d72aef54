"""Makes the nodes and constants of a quantized graph, each constant once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import QParams, quantize
from ptq_core.graph.constants import new_constant
from ptq_core.graph.names import Names


class Emitter:
    """Makes nodes and constants, each constant once, under names that the model does not use."""

    def __init__(self, model: ir.Model, parameters: Mapping[str, QParams]) -> None:
        self.graph = model.graph
        self.parameters = parameters
        self.name = Names(model).free
        self._constants: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._weights: dict[tuple[str, bytes], ir.Value] = {}
        self._codes: dict[tuple[str, bytes], ir.Value] = {}

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A new constant, called so or nearly so."""
        return new_constant(self.graph, self.name(name), array)

    def scale_and_zero_point(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        """The two constants of these parameters, called after ``name``."""
        if name not in self._constants:
            self._constants[name] = (
                self.initializer(f"{name}_scale", params.scale),
                self.initializer(f"{name}_zero_point", params.zero_point),
            )
        return self._constants[name]

    def dequantize(
        self, name: str, codes: ir.Value, scale: ir.Value, zero_point: ir.Value, axis: int | None
    ) -> ir.Node:
        """A DequantizeLinear that is not in the graph yet."""
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        node = ir.node(
            "DequantizeLinear",
            [codes, scale, zero_point],
            attributes,
            name=self.name(f"{name}_dequantize"),
        )
        node.outputs[0].name = self.name(f"{name}_dequantized")
        node.outputs[0].dtype = ir.DataType.FLOAT
        node.outputs[0].shape = codes.shape
        return node

    def constant(
        self, name: str, array: NDArray[Any], params: QParams, scale: NDArray[np.float32]
    ) -> ir.Value:
        """The dequantized value of a constant; the same for every node that shares it.

        Codes are made with ``params``; they stand for multiples of ``scale``.
        """
        token = (name, _token(params) + scale.tobytes())
        if token not in self._weights:
            codes = self._stored_codes(name, array, params)
            scale_value = self.initializer(f"{name}_scale", scale)
            zero_point = self.initializer(f"{name}_zero_point", params.zero_point)
            node = self.dequantize(name, codes, scale_value, zero_point, params.axis)
            self._prepend(node)
            self._weights[token] = node.outputs[0]
        return self._weights[token]

    def _stored_codes(self, name: str, array: NDArray[Any], params: QParams) -> ir.Value:
        token = (name, _token(params))
        if token not in self._codes:
            self._codes[token] = self.initializer(f"{name}_quantized", quantize(array, params))
        return self._codes[token]

    def bias(self, name: str, codes: NDArray[Any], scale: NDArray[Any]) -> ir.Value:
        """The dequantized value of an int32 bias."""
        stored = self.initializer(f"{name}_quantized", codes)
        scale_value = self.initializer(f"{name}_scale", scale)
        zero_point = self.initializer(f"{name}_zero_point", np.zeros(scale.shape, np.int32))
        node = self.dequantize(name, stored, scale_value, zero_point, 0 if scale.ndim else None)
        self._prepend(node)
        return node.outputs[0]

    def _prepend(self, node: ir.Node) -> None:
        first = next(iter(self.graph))
        self.graph.insert_before(first, node)


def _token(params: QParams) -> bytes:
    return params.scale.tobytes() + params.zero_point.tobytes() + str(params.axis).encode()
