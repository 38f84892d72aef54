"""ptq: post-training quantization for ONNX, a small core with plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptq_core.archive import load
    from ptq_core.python import calibrate, check, compare, quantize

__version__ = "0.1.0"

__all__ = ["__version__", "calibrate", "check", "compare", "load", "quantize"]


def __getattr__(name: str) -> Any:
    # onnx and numpy come with the first use, so that `ptq --help` need not wait for them
    if name in ("calibrate", "check", "compare", "quantize"):
        from ptq_core import python

        return getattr(python, name)
    if name == "load":
        from ptq_core.archive import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
