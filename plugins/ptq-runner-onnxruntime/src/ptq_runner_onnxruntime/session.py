"""One onnxruntime session behind the runner's protocol."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_EXTERNAL = {
    "session.optimized_model_external_initializers_file_name": "optimized.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
_WARNINGS_OFF = 3  # errors only: the user's model may warn hundreds of times


class OnnxRuntime:
    """Runs a model; outputs are written into the caller's arrays where their shapes fit.

    Args:
        model: its bytes, or its file.
        threads: of one inference; 0 is one for each core.
        optimize: let onnxruntime rewrite the graph; without, it computes what the file says.
    """

    def __init__(self, model: bytes | Path, *, threads: int = 0, optimize: bool = True) -> None:
        self._source = model
        self._optimize = optimize
        self._session = onnxruntime.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            _options(threads, optimize=optimize),
            providers=["CPUExecutionProvider"],
        )
        _give_back_memory()
        self._outputs = [out.name for out in self._session.get_outputs()]

    def run(
        self, feeds: Mapping[str, NDArray[Any]], /, out: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """All outputs of one run.

        Binding an output to an existing array saves the allocation and, more, the page faults of
        fresh memory on every run.
        """
        if not out or set(out) != set(self._outputs):
            return self._run(feeds)
        binding = self._session.io_binding()
        held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in held.items():
            binding.bind_cpu_input(name, array)
        for name, array in out.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except RuntimeError:  # a shape that depends on the data does not fit; else it fails again
            return self._run(feeds)
        return dict(out)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self._outputs, self._session.run(None, dict(feeds)), strict=True))

    def executed_model(self) -> bytes | None:
        """The graph after onnxruntime's optimizations; needs the model as bytes."""
        if isinstance(self._source, Path) or not self._optimize:
            return None
        with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
            path = Path(folder) / "optimized.onnx"
            options = _options(1)
            options.optimized_model_filepath = str(path)
            # decoded weights may exceed what one protobuf holds
            for key, value in _EXTERNAL.items():
                options.add_session_config_entry(key, value)
            onnxruntime.InferenceSession(self._source, options, providers=["CPUExecutionProvider"])
            return path.read_bytes()


def _give_back_memory() -> None:
    """Return what making a session has freed, twice the model's size, to the system.

    The C library keeps it otherwise, and what calibration needs comes on top.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _options(threads: int, *, optimize: bool = True) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _WARNINGS_OFF
    # threads that spin while they wait take the cores from those that read and take statistics
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
