"""What is constant in a model: tensors, and the parameters of its Q/DQ nodes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.emulation.steps import Decode, Encode, Quantized
from ptq_core.graph import operators as ops

_DOMAINS = frozenset({*ops.DEFAULT_DOMAINS, "com.microsoft"})


class Parameters:
    """Reads constants.

    Attributes:
        constants: tensors by their names; grows with what is computed from them.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.constants: dict[str, NDArray[Any]] = {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The array of a constant, None for anything else."""
        return None if value is None else self.constants.get(value.name or "")

    def decode(self, node: ir.Node) -> Decode | None:
        """The step that a DequantizeLinear of integers is; None for any other node."""
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            return None
        found = self._quantized(node, node.inputs[0])
        return None if found is None else Decode(quantized=found, output=node.outputs[0].name or "")

    def encode(self, node: ir.Node) -> Encode | None:
        """The step that a QuantizeLinear of a whole tensor to integers is; None for any other."""
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            return None
        found = self._quantized(node, node.outputs[0])
        if found is None or found.axis is not None:
            return None
        return Encode(source=node.inputs[0].name or "", quantized=found)

    def _quantized(self, node: ir.Node, codes: ir.Value) -> Quantized | None:
        if node.domain not in _DOMAINS or ops.attribute(node, "block_size", 0):
            return None
        scale = self.constant(node.inputs[1])
        given = node.inputs[2] if len(node.inputs) > 2 else None
        zero_point = self.constant(given)
        if scale is None or scale.dtype != np.float32 or (given is not None and zero_point is None):
            return None
        if not (np.isfinite(scale) & (scale > 0)).all():  # only ONNX itself says what comes of it
            return None
        if zero_point is None:
            kind = self._code_type(node)
            if kind is None:
                return None
            zero_point = np.zeros(scale.shape, kind)
        if not _is_integer(zero_point.dtype):
            return None
        axis = None
        if scale.size == 1:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
        else:
            axis = int(ops.attribute(node, "axis", 1))
        return Quantized(codes=codes.name or "", scale=scale, zero_point=zero_point, axis=axis)

    def _code_type(self, node: ir.Node) -> Any:
        """The type of codes where no zero point tells it."""
        if node.op_type == "QuantizeLinear":
            asked = int(ops.attribute(node, "output_dtype", 0))
            return ir.DataType(asked).numpy() if asked else np.dtype(np.uint8)
        codes = node.inputs[0]
        array = self.constant(codes)
        if array is not None:
            return array.dtype
        producer = None if codes is None else codes.producer()
        encode = None if producer is None else self.encode(producer)
        return None if encode is None else encode.quantized.zero_point.dtype


def _is_integer(kind: Any) -> bool:
    """Whether this is a type of integers, those of few bits among them."""
    try:
        ml_dtypes.iinfo(kind)  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    return True
