"""The files beside the quantized model: for the compiler, for AMCT, and the compiler's command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from ptq_core.api import Deployment, ExtraFile
from ptq_target_ascend.atc import command
from ptq_target_ascend.deploy import serialized, to_deploy
from ptq_target_ascend.layers import find_layers
from ptq_target_ascend.record import record


def lower(model: bytes | Path, deployment: Deployment) -> Iterator[ExtraFile]:
    """The files, for a model that ptq has quantized.

    Where only the weights are quantized, the model itself is what the compiler takes, and its
    command is the only file.

    Raises:
        ValueError: the device has no form for something in the model, or cannot be told its sizes.
    """
    proto = load(model)
    layers = find_layers(proto)
    name = f"{deployment.name}_deploy.onnx" if layers else f"{deployment.name}.onnx"
    script = command(name, deployment, getattr(deployment.options, "chip", None))
    if layers:
        text = record(layers)
        yield ExtraFile(
            name=name,
            content=serialized(to_deploy(proto, layers)),
            summary="for Ascend's compiler ATC",
        )
        yield ExtraFile(
            name=f"{deployment.name}_record.txt",
            content=text.encode(),
            summary="scales, for AMCT's convert_model",
        )
    yield ExtraFile(
        name=f"{deployment.name}_atc.sh",
        content=script.encode(),
        summary="compiles it with ATC",
    )


def load(model: bytes | Path) -> onnx.ModelProto:
    """The model with all its constants; nothing is checked, as no checker knows Ascend's form."""
    return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
