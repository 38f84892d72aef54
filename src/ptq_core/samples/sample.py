"""What a sample is, and what the model demands of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.errors import ConfigError, DataError, Location, Problem, did_you_mean
from ptq_core.graph.operators import dimensions
from ptq_core.types import Layout, ModelInput

Feeds = dict[str, NDArray[Any]]

_TO_NCHW = (0, 3, 1, 2)  # axes of NHWC
_READ_NCHW = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization")
_CHANNELS = (1, 3)  # an axis of this length is taken for the channels of a picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample and the name that messages use for it."""

    name: str
    feeds: Feeds


@dataclass(kw_only=True)
class Samples:
    """Where samples come from.

    Attributes:
        open: starts reading from the first sample.
        count: how many there are, None where only reading tells.
        held_out: samples of the same kind that calibration does not see, for verification.
        notes: what the user should know; may grow while samples are read.
        warnings: likewise, more serious.
        skipped: what ``skip_bad`` left out, each with its reason.
    """

    open: Callable[[], Iterator[Sample]]
    count: int | None = None
    held_out: Callable[[], Iterator[Sample]] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def model_inputs(
    model: ir.Model,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    data_layout: Layout | None = None,
) -> tuple[ModelInput, ...]:
    """The inputs that have to be fed.

    Args:
        model: the model.
        shapes: shapes that the user fixed (``--inputShape``).
        data_layout: how 4-D buffers are laid out; None: as the model takes them.

    Raises:
        ConfigError: a fixed shape names no input or contradicts the model.
    """
    given = dict(shapes or {})
    names = [value.name or "" for value in model.graph.inputs]
    problems = [
        Problem(
            message=f"--inputShape: the model has no input '{name}'", hint=did_you_mean(name, names)
        )
        for name in given
        if name not in names
    ]
    inputs = []
    for value in model.graph.inputs:
        name = value.name or ""
        found = dimensions(value) or ()
        fixed = given.get(name)
        if fixed is not None and found:
            if len(fixed) != len(found) or any(
                isinstance(dim, int) and dim != want
                for dim, want in zip(found, fixed, strict=False)
            ):
                problems.append(
                    Problem(
                        message=f"--inputShape: input '{name}' has shape {shown(found)}, "
                        f"found {shown(fixed)}"
                    )
                )
            found = fixed
        layout = _layout_read(value) or layout_of(found)
        inputs.append(
            ModelInput(
                name=name,
                dtype=str(value.dtype.numpy()) if value.dtype is not None else "float32",
                shape=found,
                layout=layout,
                data_layout=data_layout or layout,
            )
        )
    if problems:
        raise ConfigError(problems=problems)
    return tuple(inputs)


def _layout_read(value: ir.Value) -> Layout | None:
    """NCHW or NHWC where the operators that read a 4-D input tell it."""
    if len(dimensions(value) or ()) != len(_TO_NCHW):
        return None
    found = {_layout_for(usage.node, usage.idx) for usage in value.uses()}
    return next(iter(found)) if len(found) == 1 else None


def _layout_for(node: ir.Node, position: int) -> Layout | None:
    """The layout of what a node reads there, None where it takes any."""
    if node.domain or position != 0:
        return None
    if node.op_type in _READ_NCHW:
        return "NCHW"
    order = node.attributes.get("perm")
    if node.op_type == "Transpose" and order and tuple(order.as_ints()) == _TO_NCHW:
        return "NHWC"
    return None


def layout_of(shape: Sequence[int | str | None]) -> Layout | None:
    """NCHW or NHWC where the channel count tells it, None where it does not."""
    if len(shape) != 4:
        return None
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first == last:
        return None
    return "NCHW" if first else "NHWC"


def shown(shape: Sequence[int | str | None]) -> str:
    """A shape as messages write it."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def check_array(array: NDArray[Any], item: ModelInput, where: str) -> NDArray[Any]:
    """The array, read-only, if it is one that the input takes.

    Raises:
        DataError: wrong shape, a type that cannot be converted without loss, NaN or infinity.
    """
    location = Location(file=where, tensor=item.name)
    if not isinstance(array, np.ndarray):
        raise DataError(f"expected an array, found {type(array).__name__}", location=location)
    fits = array.ndim == len(item.shape) and all(
        want is None
        or isinstance(want, str)
        or have == want
        or (i == 0 and have > 0 and (have == 1 or have % max(want, 1) == 0))
        for i, (have, want) in enumerate(zip(array.shape, item.shape, strict=False))
    )
    if not fits:
        raise DataError(
            f"has shape {shown(array.shape)}, the model takes {shown(item.shape)}",
            location=location,
        )
    wanted = np.dtype(item.dtype)
    if array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise DataError(f"is {array.dtype}, the model takes {wanted}", location=location)
        array = array.astype(wanted)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise DataError(
            f"has {bad} values that are NaN or infinite",
            location=location,
            hint="--skip-bad leaves such samples out",
        )
    view = array.view()
    view.flags.writeable = False
    return view
