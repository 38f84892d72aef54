"""Qualcomm's HTP library, which the package onnxruntime-qnn has for Linux on x86-64.

It compiles models as for the device, and computes them as the device does.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime

_PROVIDER = "QNNExecutionProvider"


def missing() -> str:
    """Why models cannot be run there; "" where they can."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        return "onnxruntime-qnn is not installed"
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        return f"onnxruntime {onnxruntime.__version__} takes no providers from other packages"
    return ""


def open_htp(model: bytes | Path, *, strict: bool = True) -> Any:
    """A session on the HTP; ``strict``: it is refused where one node is left to the CPU.

    Without it, the conversions at inputs and outputs run on the CPU, as by default.
    """
    import onnxruntime_qnn

    if not _devices():
        library = onnxruntime_qnn.get_library_path()
        onnxruntime.register_execution_provider_library(_PROVIDER, library)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", str(int(strict)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    given = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "htp_graph_finalization_optimization_mode": "0",  # the fastest to compile
    }
    options.add_provider_for_devices(_devices(), given)
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options)


def on_cpu(session: Any) -> Counter[str]:
    """The operators that are not on the HTP."""
    return Counter(
        node.op_type
        for graph in session.get_provider_graph_assignment_info()
        for node in graph.get_nodes()
        if graph.ep_name != _PROVIDER
    )


def open_reference(model: bytes | Path) -> Any:
    """A session that computes what the file says, every conversion as it stands."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )


def _devices() -> list[Any]:
    return [one for one in onnxruntime.get_ep_devices() if one.ep_name == _PROVIDER]
