"""The fallback runner: the reference implementation in the onnx package. Exact, and slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptq_core.api import Runner, RunnerEntry, hookimpl

ptq_api_version = (1, 0)

_QUANTIZED_OPSET = 19  # the oldest whose DequantizeLinear onnx.reference can evaluate


class Reference:
    """onnx.reference behind the runner's protocol."""

    def __init__(self, model: bytes | Path) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        proto = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
        opset = next((one.version for one in proto.opset_import if not one.domain), 1)
        quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
        if quantized and opset < _QUANTIZED_OPSET:
            proto = onnx.version_converter.convert_version(proto, _QUANTIZED_OPSET)
        self._evaluator = ReferenceEvaluator(proto)
        self._outputs = [output.name for output in proto.graph.output]

    def run(
        self, feeds: Mapping[str, Any], /, out: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """All outputs of one run; ``out`` is not used."""
        return dict(zip(self._outputs, self._evaluator.run(None, dict(feeds)), strict=True))

    def executed_model(self) -> bytes | None:
        """None: it executes the model as it is."""
        return None


def _make(model: bytes | Path, options: object) -> Runner:
    return Reference(model)


@hookimpl
def ptq_runners() -> Iterator[RunnerEntry]:
    """Offer the reference runner."""
    yield RunnerEntry(
        name="reference", summary="the onnx package's own evaluator; slow", factory=_make
    )
