"""The command that compiles the model for the NPU, as a small shell script.

ATC is the compiler of CANN's toolkit. A model that varies on the device is compiled for listed
sizes: of the batch, of pictures, or of any dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from ptq_core.api import Deployment

Shape: TypeAlias = tuple[int, ...]

_ONNX = 5  # ATC's number for ONNX
_MOST_PROFILES = 100  # that ATC compiles; the fewest are 2
_SERIES = ("310B", "310P", "910", "910B", "910_93")  # several chips each, which ATC tells apart
_PICTURE = (2, 3)  # height and width in NCHW


def command(model: str, deployment: Deployment, chip: str | None = None) -> str:
    """A script that compiles ``model``, a file beside it.

    Args:
        model: name of the file.
        deployment: shapes and sizes.
        chip: the NPU; None, or a series: the script asks for it.

    Raises:
        ValueError: more sizes than ATC compiles.
    """
    shapes, notes = dict(deployment.shapes), []
    sizes = list(dict.fromkeys(deployment.profiles))
    if len(sizes) > _MOST_PROFILES:
        raise ValueError(
            f"dynamic_dims lists {len(sizes)} sizes, ATC compiles at most {_MOST_PROFILES}: "
            "list fewer"
        )
    axes = _profiled_axes(shapes, sizes)
    options = _profiles(shapes, axes, sizes)
    if len(sizes) == 1:  # ATC wants two at least; one size is no dynamic model
        shapes = {name: _with_size(shape, axes, sizes[0]) for name, shape in shapes.items()}
        notes.append(f"dynamic_dims lists one size only, {sizes[0]}: the model is fixed to it.")
        axes, options = (), ["--input_format=NCHW"]
    variables, shape_text = _shapes(shapes, axes)
    call = [
        f"atc --framework={_ONNX}",
        f'--model="{_quoted(model)}"',
        f'--output="{_quoted(deployment.name)}"',
        '--soc_version="$SOC_VERSION"',
        *([f'--input_shape="{shape_text}"'] if shape_text else []),
        *options,
        '"$@"',
    ]
    lines = [
        "#!/bin/sh",
        "# Compiles the model for an Ascend NPU with ATC, of CANN's toolkit; makes an .om file.",
        "# Further options of atc may follow the name of this script.",
        *(f"# {note}" for note in notes),
        "set -e",
        'cd "$(dirname "$0")"',
        _chip(chip),
        *variables,
        " \\\n  ".join(call),
    ]
    return "\n".join(lines) + "\n"


def _chip(chip: str | None) -> str:
    """A line that sets ``SOC_VERSION``, or stops with what has to be said."""
    ask = "set it to the chip, such as {}; npu-smi info names it"
    if chip is None:
        return f"SOC_VERSION=${{SOC_VERSION:?{ask.format('Ascend310P3')}}}"
    short = re.sub("^ascend", "", chip, flags=re.IGNORECASE).upper()
    if short in _SERIES:
        hint = ask.format(f"Ascend{short}1")
        return f"SOC_VERSION=${{SOC_VERSION:?Ascend{short} is a series: {hint}}}"
    return f"SOC_VERSION=${{SOC_VERSION:-Ascend{short}}}"


def _varying(shape: Shape) -> Shape:
    return tuple(axis for axis, size in enumerate(shape) if size < 0)


def _profiled_axes(shapes: Mapping[str, Shape], sizes: list[Shape]) -> Shape:
    """The dimensions that the sizes belong to; they are the same in all inputs that vary."""
    found = (_varying(shape) for shape in shapes.values() if sizes)
    return next((axes for axes in found if axes and len(axes) == len(sizes[0])), ())


def _with_size(shape: Shape, axes: Shape, size: Shape) -> Shape:
    if _varying(shape) != axes:
        return shape
    given = dict(zip(axes, size, strict=True))
    return tuple(given.get(axis, dim) for axis, dim in enumerate(shape))


def _profiles(shapes: Mapping[str, Shape], axes: Shape, sizes: list[Shape]) -> list[str]:
    """ATC's options for the sizes of the varying dimensions."""
    if axes == (0,):
        listed = ",".join(str(size[0]) for size in sizes)
        return ["--input_format=NCHW", f'--dynamic_batch_size="{listed}"']
    if axes == _PICTURE:
        listed = ";".join(",".join(map(str, size)) for size in sizes)
        return ["--input_format=NCHW", f'--dynamic_image_size="{listed}"']
    if not axes:
        return ["--input_format=NCHW"]
    # a value for each -1, of one input after the other
    inputs = sum(_varying(shape) == axes for shape in shapes.values())
    listed = ";".join(",".join(map(str, size * inputs)) for size in sizes)
    return ["--input_format=ND", f'--dynamic_dims="{listed}"']


def _shapes(shapes: Mapping[str, Shape], axes: Shape) -> tuple[list[str], str]:
    """Lines for dimensions whose size nobody said, and the text of all shapes."""
    lines, texts = [], []
    for number, (name, shape) in enumerate(shapes.items()):
        dims = list(map(str, shape))
        for axis in () if axes and _varying(shape) == axes else _varying(shape):
            variable = f"SIZE_{number}_{axis}"
            ask = f"set it to the size of dimension {axis} of the input {_plain(name)}"
            lines.append(f"{variable}=${{{variable}:?{ask}}}")
            dims[axis] = f"${variable}"
        texts.append(f"{_quoted(name)}:{','.join(dims)}")
    return lines, ";".join(texts)


def _quoted(text: str) -> str:
    """Text between double quotes, as a shell leaves it alone."""
    return re.sub(r'([$`"\\])', r"\\\1", text)


def _plain(text: str) -> str:
    """Text without what a shell would read as its own."""
    return re.sub(r"[^\w./:-]", "_", text)
