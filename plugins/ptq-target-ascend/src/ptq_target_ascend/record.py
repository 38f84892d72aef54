"""The record of scales that AMCT's ``convert_model`` takes beside the float model."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ptq_target_ascend.layers import Layer


def record(layers: Iterable[Layer]) -> str:
    """A ``ScaleOffsetRecord`` as protobuf text.

    Its fields are those of AMCT's ``scale_offset_record_pytorch.proto``: scale and offset of a
    layer's activation (``_d``) and weights (``_w``, one for each output channel, or one).
    """
    return "".join(map(_entry, layers))


def _entry(layer: Layer) -> str:
    lines = [f"scale_d: {layer.input_scale!s}", f"offset_d: {layer.input_zero_point}"]
    lines += [f"scale_w: {scale!s}" for scale in layer.weight_scale]
    lines += ["offset_w: 0"] * len(layer.weight_scale)
    lines += ['act_type: "INT8"', 'wts_type: "INT8"']
    value = "".join(f"    {line}\n" for line in lines)
    key = json.dumps(layer.name, ensure_ascii=False)  # escapes as protobuf text does
    return f"record {{\n  key: {key}\n  value {{\n{value}  }}\n}}\n"
