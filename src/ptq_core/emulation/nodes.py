"""Single nodes, computed by a runner: what a device computes in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.emulation.steps import node_reads
from ptq_core.graph.operators import label
from ptq_core.plugins import Registered, blame
from ptq_core.types import Runner, RunnerEntry

Key = tuple[ir.Node, tuple[tuple[str, Any, int], ...]]


class FloatNodes:
    """Computes nodes of one model; the runner of a node is kept for the next sample.

    Args:
        model: which the nodes are of.
        runner: executes them.
        options: its options.
    """

    def __init__(self, model: ir.Model, runner: Registered[RunnerEntry], options: Any) -> None:
        self._opsets = [
            onnx.helper.make_opsetid(domain, version)
            for domain, version in model.graph.opset_imports.items()
        ]
        self._ir_version = model.ir_version
        self._runner, self._options = runner, options
        self._made: dict[Key, Runner] = {}

    def __call__(
        self,
        node: ir.Node,
        known: Mapping[str, NDArray[Any]],
        constants: Mapping[str, NDArray[Any]],
    ) -> dict[str, NDArray[Any]]:
        """The outputs of a node, by their names.

        Args:
            node: what to compute.
            known: what it reads.
            constants: which of that never changes.
        """
        names = dict.fromkeys(node_reads(node))
        fixed = {name: constants[name] for name in names if name in constants}
        feeds = {name: known[name] for name in names if name not in constants}
        outputs = [value.name for value in node.outputs if value.name]
        key = (node, tuple((name, one.dtype, one.ndim) for name, one in feeds.items()))
        with blame(self._runner.record, f"computing {label(node)} ({node.op_type})"):
            if key not in self._made:
                model = self._model(node, feeds, fixed, outputs)
                factory = self._runner.entry.faithful or self._runner.entry.factory
                self._made[key] = factory(model, self._options)
            results = self._made[key].run(feeds)
        return {name: np.asarray(results[name]) for name in outputs}

    def _model(
        self,
        node: ir.Node,
        arrays: Mapping[str, NDArray[Any]],
        constants: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
    ) -> bytes:
        helper = onnx.helper
        inputs = [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [f"d{index}_{axis}" for axis in range(array.ndim)],
            )
            for index, (name, array) in enumerate(arrays.items())
        ]
        graph = helper.make_graph(
            [ir.to_proto(node)],
            "node",
            inputs,
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [ir.to_proto(ir.tensor(array, name=name)) for name, array in constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=self._opsets, ir_version=self._ir_version or onnx.IR_VERSION
        )
        return bytes(model.SerializeToString())
