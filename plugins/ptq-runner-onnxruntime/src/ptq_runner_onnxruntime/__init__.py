"""The default runner: onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptq_core.api import Runner, RunnerEntry, hookimpl

ptq_api_version = (1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Keys of ``[runner.onnxruntime]``.

    Attributes:
        threads: of one inference; 0 lets onnxruntime choose (one per core).
    """

    threads: int = 0


def _make(model: bytes | Path, options: Options) -> Runner:
    from ptq_runner_onnxruntime.session import OnnxRuntime  # imports onnxruntime

    return OnnxRuntime(model, threads=options.threads)


def _make_faithful(model: bytes | Path, options: Options) -> Runner:
    from ptq_runner_onnxruntime.session import OnnxRuntime

    return OnnxRuntime(model, threads=options.threads, optimize=False)


@hookimpl
def ptq_runners() -> Iterator[RunnerEntry]:
    """Offer onnxruntime."""
    yield RunnerEntry(
        name="onnxruntime",
        summary="onnxruntime's CPU kernels",
        factory=_make,
        faithful=_make_faithful,
        options=Options,
        aliases=("ORT",),
    )
