"""A quantized model, looked at: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper


def load(model: bytes | Path) -> ModelProto:
    """The model; weights in files of their own are left there."""
    if isinstance(model, Path):
        return onnx.load(model, load_external_data=False)
    return onnx.load_from_string(model)


class Graph:
    """The main graph of a model by tensors' names.

    Attributes:
        constants: initializers.
        producer: the node that makes a tensor.
        readers: the nodes that read a tensor, each with the position of the input.
    """

    def __init__(self, model: ModelProto) -> None:
        self.constants = {one.name: one for one in model.graph.initializer}
        self.producer: dict[str, NodeProto] = {}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                self.readers[name].append((node, position))
            for name in node.output:
                self.producer[name] = node
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t

    def array(self, name: str) -> NDArray[np.generic] | None:
        """The value of a constant; None for others, and for what lies in a file of its own."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, or one behind Q and DQ."""
        while name not in self.constants:
            node = self.producer.get(name)
            if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                return False
            name = node.input[0]
        return True
