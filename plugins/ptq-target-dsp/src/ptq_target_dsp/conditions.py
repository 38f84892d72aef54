"""What the HTP computes only under conditions that a table of operators cannot state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ptq_core.api import NodeFacts


def keep_float(facts: NodeFacts) -> str | None:
    """Why the node is left out of the integers, None where it is not."""
    match facts.op_type:
        case "Resize":
            return _resize(facts)
        case "LayerNormalization":
            axis = facts.attributes.get("axis", -1)
            last = (-1,) if facts.input_shape is None else (-1, len(facts.input_shape) - 1)
            return None if axis in last else f"axis is {axis}, the HTP normalizes over the last one"
        case "MaxPool":
            return _dilated(facts)
        case "AveragePool":
            shapes = facts.input_shape, facts.output_shape
            if reaches_beyond(facts.attributes, *(shape or () for shape in shapes)):
                return "the HTP divides by a wrong count beyond the padding (ceil_mode)"
            return _dilated(facts)
    return None


def _dilated(facts: NodeFacts) -> str | None:
    spread = any(size != 1 for size in facts.attributes.get("dilations", ()))
    return f"the HTP has no {facts.op_type} with dilations" if spread else None


def _resize(facts: NodeFacts) -> str | None:
    if _text(facts.attributes, "mode", "nearest") != "nearest":
        return None
    sizes = facts.input_shape, facts.output_shape
    if None in sizes or any(dim is None for shape in sizes for dim in shape or ()):
        return "its sizes are not known, on which it depends what the HTP takes for nearest"
    for size, result in zip(facts.input_shape or (), facts.output_shape or (), strict=True):
        if not rounds_alike(facts.attributes, size or 0, result or 0):
            return "the HTP takes other elements for the nearest"
    return None


def reaches_beyond(
    attributes: Mapping[str, Any], before: Sequence[int | None], after: Sequence[int | None]
) -> bool:
    """Whether a window of a pool with ``ceil_mode`` ends behind the padding.

    Args:
        attributes: of the pool.
        before: shape of its input; what is not known counts as too small.
        after: of its output.
    """
    if not attributes.get("ceil_mode"):
        return False
    kernel = attributes["kernel_shape"]
    count = len(kernel)
    strides = attributes.get("strides", [1] * count)
    pads = attributes.get("pads", [0] * (2 * count))
    dilations = attributes.get("dilations", [1] * count)
    for axis in range(count):
        size, results = ((*shape, *[None] * (count + 2))[axis + 2] for shape in (before, after))
        if not size or not results:
            return True
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        if (results - 1) * strides[axis] + extent > size + pads[axis] + pads[axis + count]:
            return True
    return False


def rounds_alike(
    attributes: Mapping[str, Any], size: int, result: int, scale: float | None = None
) -> bool:
    """Whether ``Resize`` to the nearest takes the same elements of an axis on the HTP as in ONNX.

    Found by experiment: the HTP rounds halves up for ``half_pixel`` and ``align_corners``, down for
    ``pytorch_half_pixel``, and knows no other rounding but ``floor`` for ``asymmetric``, whatever
    ``nearest_mode`` says.

    Args:
        attributes: of the node.
        size: of the axis.
        result: size of the axis behind it.
        scale: as the model gives it, None for the ratio of the sizes, which the HTP uses.
    """
    if size == result and (scale is None or scale == 1.0):
        return True
    form = _text(attributes, "coordinate_transformation_mode", "half_pixel")
    rounding = _text(attributes, "nearest_mode", "round_prefer_floor")
    own = {
        "half_pixel": "round_prefer_ceil",
        "align_corners": "round_prefer_ceil",
        "pytorch_half_pixel": "round_prefer_floor",
        "asymmetric": "floor",
    }.get(form)
    if own is None or (form == "asymmetric" and rounding != "floor"):
        return False
    ratio = result / size
    wanted = _nearest(form, rounding, size, result, ratio if scale is None else scale)
    return wanted == _nearest(form, own, size, result, ratio)


def _nearest(form: str, rounding: str, size: int, result: int, scale: float) -> Sequence[int]:
    """The index of the element that each place of the result takes, by ONNX's definition."""
    round_to = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda x: math.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    }[rounding]
    places = (_place(form, index, size, result, scale) for index in range(result))
    return [min(max(round_to(place), 0), size - 1) for place in places]


def _place(form: str, index: int, size: int, result: int, scale: float) -> float:
    match form:
        case "asymmetric":
            return index / scale
        case "align_corners":
            return index * (size - 1) / (result - 1) if result > 1 else 0.0
        case "pytorch_half_pixel" if result <= 1:
            return 0.0
        case _:
            return (index + 0.5) / scale - 0.5


def _text(attributes: Mapping[str, Any], name: str, default: str) -> str:
    value = attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)
