"""The float model in a runner, with the watched tensors as its outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.errors import PluginError
from ptq_core.graph.model import runnable, with_outputs
from ptq_core.graph.operators import dimensions
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Batch
from ptq_core.types import ModelInput, Runner, RunnerEntry

# Observed bytes of one run: small enough to stay in cache between inference and statistics.
_RUN_BYTES = 8 << 20
_LARGEST_BATCH = 32
_WORTH_DROPPING = 0.2  # of the bytes that are fetched


class Session:
    """The float model with the observed tensors as its outputs, and two sets of buffers for them.

    Args:
        model: the float model.
        outputs: the observed tensors, the model's inputs among them or not.
        inputs: of the model.
        runner: executes it.
        options: its options.
        row_bytes: observed bytes of a row as far as they are known from an earlier pass.

    Attributes:
        fixed_batch: the batch that the model demands, None where that is open.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str],
        inputs: Sequence[ModelInput],
        runner: Registered[RunnerEntry],
        options: Any,
        row_bytes: int = 0,
    ) -> None:
        self._model, self._inputs = model, inputs
        self._plugin, self._options = runner, options
        fed = {item.name for item in inputs}
        self._outputs = [name for name in outputs if name not in fed]
        self.fixed_batch = fixed_batch(inputs)
        self._together = may_batch(model, self._outputs, inputs)
        self._bytes: dict[str, int] = {}
        self.row_bytes = row_bytes
        self._open()

    def _open(self) -> None:
        self._buffers: list[dict[str, NDArray[Any]] | None] = [None, None]
        self._shapes: list[Any] = [None, None]
        self._runner: Runner | None = None
        if self._outputs:
            with (
                runnable(with_outputs(self._model, self._outputs)) as form,
                blame(self._plugin.record, "loading the model"),
            ):
                self._runner = self._plugin.entry.factory(form, self._options)

    def drop(self, names: Collection[str]) -> None:
        """Fetch these tensors no more, if that saves enough."""
        gone = sum(self._bytes.get(name, 0) for name in names)
        if gone > _WORTH_DROPPING * sum(self._bytes.values()):
            self._outputs = [name for name in self._outputs if name not in names]
            self._open()

    def reopened(self, names: Sequence[str]) -> Session:
        """A session for another pass, which gives these tensors."""
        return Session(
            self._model, names, self._inputs, self._plugin, self._options, self.row_bytes
        )

    def batch_size(self) -> int:
        """Rows of one run, from the observed bytes of a row; 1 until that is known."""
        if not self.row_bytes or not self._together:
            return 1
        return max(1, min(_LARGEST_BATCH, _RUN_BYTES // self.row_bytes))

    def run(self, batch: Batch, slot: int) -> Mapping[str, NDArray[Any]]:
        """The observed tensors, inputs included; valid until the slot, 0 or 1, is used again."""
        if self._runner is None:
            return batch.feeds
        shapes = {name: array.shape for name, array in batch.feeds.items()}
        out = self._buffers[slot] if self._shapes[slot] == shapes else None
        with blame(self._plugin.record, f"running {batch.names[0]}"):
            results = dict(self._runner.run(batch.feeds, out))
        missing = [name for name in self._outputs if name not in results]
        if missing:
            raise PluginError(f"{self._plugin.record} did not return '{missing[0]}'")
        self._buffers[slot], self._shapes[slot] = results, shapes
        self._bytes = {name: array.nbytes for name, array in results.items()}
        # never less than at first: what the runtime keeps inside does not shrink with the outputs
        row_bytes = sum(self._bytes.values()) // max(1, batch.rows)
        self.row_bytes = max(self.row_bytes, row_bytes)
        return {**results, **batch.feeds}


def fixed_batch(inputs: Sequence[ModelInput]) -> int | None:
    """The batch that the model demands, None where that is open."""
    first = {item.shape[0] for item in inputs if item.shape}
    fixed = first.pop() if len(first) == 1 else None
    return fixed if isinstance(fixed, int) else None


def may_batch(model: ir.Model, outputs: Sequence[str], inputs: Sequence[ModelInput]) -> bool:
    """Whether axis 0 is one and the same open batch axis of all inputs and observed tensors."""
    axes = {item.shape[0] if item.shape else None for item in inputs}
    if len(axes) != 1 or not isinstance(next(iter(axes)), str):
        return False
    batch = next(iter(axes))
    values = {value.name: value for node in model.graph for value in node.outputs}
    return all((dimensions(values[name]) or (None,))[0] == batch for name in outputs)
