"""TensorRT's calibration cache, from the scales in a quantized model."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from onnx import ModelProto

from ptq_core.api import Deployment, ExtraFile
from ptq_target_nvgpu.graph import Graph, load

# TensorRT 8.6.1, the last before calibration was deprecated, and what trtexec's calibrator is.
HEADER = "TRT-8601-EntropyCalibration2"


def calibration_caches(model: bytes | Path, deployment: Deployment) -> Iterator[ExtraFile]:
    """The file ``NAME.calib_cache``; none where no activation is quantized (weights only).

    Where channels were rescaled it is for this file's tensors, not for the float model's.

    The first line names TensorRT's version and algorithm; then a line for each tensor with the
    bits of its float32 scale in hexadecimal, the highest first. A name with a line break cannot be
    written, so that tensor has none, which TensorRT takes as float.

    Source   TensorRT's sampleINT8, README, "Calibration file": ``data: 3c008912``.
    """
    scales = activation_scales(load(model))
    if not scales:
        return
    lines = [HEADER]
    lines += [
        f"{tensor}: {struct.pack('>f', scale).hex()}"
        for tensor, scale in scales.items()
        if len(tensor.splitlines()) == 1
    ]
    own = ", not for the float model: channels were rescaled" if deployment.rescaled else ""
    yield ExtraFile(
        name=f"{deployment.name}.calib_cache",
        content=("\n".join(lines) + "\n").encode(),
        summary=f"the activations' scales as TensorRT's calibration cache{own}",
    )


def activation_scales(model: ModelProto) -> Mapping[str, float]:
    """The scale of each activation that is quantized, by its name, in the order of the file."""
    graph = Graph(model)
    found: dict[str, float] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in graph.constants:
            continue
        scale = graph.array(node.input[1])
        if scale is not None and scale.size == 1:
            found.setdefault(node.input[0], float(scale.reshape(-1)[0]))
    return found
