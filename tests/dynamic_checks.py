"""What tests of dynamic quantization share: how to do it, and its formulas in NumPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ptq_core import quantize
from ptq_core.config import config_from_values
from ptq_core.jobs import Report, Settings, plan_job
from ptq_core.plugins import discover
from tests import tiny_models as tiny
from tests.weight_checks import executed, operators, run

STRATEGIES = ("ALWC", "ACWC", "ACWL")
FLOAT_LAYERS = {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "LSTM"}

Real = NDArray[np.float32]


def sections(
    strategy: str = "ALWC", *, skip: Iterable[str] = (), smoothing: bool = False, **keys: Any
) -> dict[str, dict[str, Any]]:
    """The config of dynamic quantization; without smoothing, samples change nothing."""
    common: dict[str, Any] = {"quant_type": "DYNAMIC_QUANT"}
    if skip:
        common["skip_quant_node"] = list(skip)
    return {
        "common_quant_param": common,
        "dynamic_quant_param": {"quant_strategy": strategy, "smoothing": smoothing, **keys},
    }


def dynamic(
    made: onnx.ModelProto | Path,
    folder: Path,
    strategy: str = "ALWC",
    *,
    data: Iterable[Any] | None = None,
    settings: Settings | None = None,
    name: str = "out.onnx",
    **given: Any,
) -> Report:
    """Quantize a model into ``folder / "out.onnx"``; nothing planned may run in float."""
    path = made if isinstance(made, Path) else tiny.save(made, folder)
    config = sections(strategy, **given)
    report = quantize(path, folder / name, config=config, data=data, settings=settings)
    assert report.verification is not None
    if len(report.files) == 1:  # a runtime shows what it executes of a model in one piece
        assert report.verification.executed
    assert not report.verification.unexpected, report.verification.unexpected
    return report


def planned(made: onnx.ModelProto, folder: Path, target: str | None = None, **given: Any) -> Report:
    """Only the plan."""
    config = config_from_values(sections(**given), has_data=False, target=target)
    return plan_job(tiny.save(made, folder), config, discover())


def decisions(report: Report) -> dict[str, str]:
    return {one.name: one.decision for one in report.plan.nodes}


def both(folder: Path, feeds: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Results of the quantized model; optimizing it must not change them by more than a step."""
    plain, fast = (run(folder / "out.onnx", feeds, optimized=flag) for flag in (False, True))
    for one, other in zip(plain, fast, strict=True):
        assert one.shape == other.shape
        close(one, other)
    return fast


def before_and_after(
    folder: Path, feeds: Mapping[str, NDArray[Any]]
) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    return zip(run(folder / "model.onnx", feeds), both(folder, feeds), strict=True)


def executed_operators(folder: Path) -> Counter[str]:
    return operators(executed(folder / "out.onnx", folder).graph)


def stored_operators(folder: Path) -> Counter[str]:
    return operators(onnx.load(folder / "out.onnx").graph)


def stored_bytes(folder: Path, name: str = "out.onnx") -> int:
    return (folder / name).stat().st_size


def close(found: NDArray[Any], wanted: NDArray[Any], tolerance: float = 1e-5) -> None:
    """Equal to the last bits of float32, which runtimes add up in orders of their own."""
    size = float(np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * size)


IDS = {"ids": np.arange(10).reshape(2, 5)}


def config_file(folder: Path, text: str, name: str = "dynamic_quant.cfg") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# --------------------------------------------------------------------------- formulas, in NumPy


def whole(x: Real) -> NDArray[np.float64]:
    """What DynamicQuantizeLinear makes of an activation: uint8, zero in the range, half to even."""
    low, high = np.float32(min(x.min(), 0.0)), np.float32(max(x.max(), 0.0))
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255)
    return (codes - zero_point).astype(np.float64) * float(scale)


def by_rows(x: Real) -> NDArray[np.float64]:
    """A token each: symmetric with 127 steps, half to even; a row of zeros stays zeros."""
    largest = np.abs(x).max(axis=-1, keepdims=True).astype(np.float64)
    steps = np.where(largest > 0, largest / 127, 1.0)
    return np.clip(np.rint(x / steps), -127, 127) * steps


def rounded_weights(w: Real, axis: int | None) -> NDArray[np.float64]:
    """int8 without -128, symmetric: a scale for each index of an axis, or one."""
    others = None if axis is None else tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    largest = np.abs(w).max(axis=others, keepdims=True).astype(np.float64)
    steps = np.where(largest > 0, largest / 127, 1.0)
    ratio = w / steps
    codes = np.trunc(ratio + np.copysign(0.5, ratio))
    return np.clip(codes, -127, 127) * steps


def product(x: Real, w: Real, strategy: str) -> NDArray[np.float64]:
    """``x @ w`` as the strategy computes it, in double."""
    activations = whole(x) if strategy == "ALWC" else by_rows(x)
    weights = rounded_weights(w, None if strategy == "ACWL" else w.ndim - 1)
    return np.asarray(activations @ weights)
