"""NNCF's ONNX backend as its guide shows it, with its fast or its accurate bias correction.

It corrects biases that are there, so that BatchNormalization, which it leaves as it is, keeps it
from its best. ``folded`` lets onnxruntime fold the float model first.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # a benchmark reports to nobody: no telemetry

import nncf
import onnx
import onnxruntime
from samples import arguments

SETTINGS = ("default", "accurate", "folded", "folded accurate")


def main() -> None:
    path, samples, output, setting = arguments(SETTINGS)
    quantized = nncf.quantize(
        folded(path) if "folded" in setting else onnx.load(path),
        nncf.Dataset(samples.names, samples.read),
        subset_size=len(samples.names),
        fast_bias_correction="accurate" not in setting,
    )
    onnx.save(quantized, output)


def folded(path: Path) -> onnx.ModelProto:
    """The float model after onnxruntime's basic optimizations, which are standard ONNX."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


if __name__ == "__main__":
    main()
