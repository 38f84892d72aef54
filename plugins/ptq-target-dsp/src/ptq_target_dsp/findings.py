"""What the HTP computes wrongly, in integers and in float, without a word; for ``ptq check``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from ptq_core.api import Finding
from ptq_target_dsp.conditions import reaches_beyond, rounds_alike

_CLOSE = 1e-6  # of a scale in float32


def find(model: bytes | Path) -> Iterator[Finding]:
    """The findings of a quantized model, in the order of its nodes."""
    if isinstance(model, Path):
        graph = onnx.load(model, load_external_data=False).graph
    else:
        graph = shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    constants = {one.name: one for one in graph.initializer if not one.external_data}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Resize":
            yield from _resize(node, shapes, constants)
        if node.op_type == "AveragePool":
            yield from _average(node, shapes)


def _resize(
    node: onnx.NodeProto, shapes: dict[str, list[int]], constants: dict[str, onnx.TensorProto]
) -> Iterator[Finding]:
    attributes = _attributes(node)
    before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    if not before or len(before) != len(after) or 0 in (*before, *after):
        return
    ratios = np.divide(after, before)
    scales = ratios
    if len(node.input) > 2 and node.input[2] in constants:
        given = numpy_helper.to_array(constants[node.input[2]]).astype(np.float64)
        scales = given if given.size == len(ratios) else ratios
    if attributes.get("mode", b"nearest") == b"nearest":
        rows = zip(before, after, scales, strict=True)
        if all(rounds_alike(attributes, *row) for row in rows):
            return
        yield Finding(
            code="DSP-RESIZE-NEAREST",
            severity="error",
            node=node.name,
            message="Resize takes other elements for the nearest on the HTP than in ONNX",
            because="the HTP rounds in its own way, whatever nearest_mode says; in float, too",
            fix="export it with coordinate_transformation_mode = asymmetric and nearest_mode = "
            "floor, or half_pixel and round_prefer_ceil",
        )
    elif np.abs(scales - ratios).max() > _CLOSE:
        yield Finding(
            code="DSP-RESIZE-SCALE",
            severity="error",
            node=node.name,
            message=f"Resize has the scales {_shown(scales)}, its sizes are as {_shown(ratios)}",
            because="the HTP knows the sizes only, and interpolates in other places",
            fix="export it with sizes instead of scales",
        )


def _average(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> Iterator[Finding]:
    before, after = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    if before and after and reaches_beyond(_attributes(node), before, after):
        yield Finding(
            code="DSP-POOL-CEIL",
            severity="error",
            node=node.name,
            message="a window of AveragePool reaches beyond the padding (ceil_mode = 1)",
            because="the HTP divides by a wrong count there; in float, too",
            fix="export it with ceil_mode = 0 and padding at the end",
        )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _shown(numbers: np.ndarray[Any, Any]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)
