"""What has to be known about pictures; it is asked for, never guessed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from ptq_core.errors import InputError, Problem

if TYPE_CHECKING:
    from ptq_core.types import ModelInput

T = TypeVar("T")

_LARGEST = 65535
_SIZE = re.compile(r"(\d{1,5})\s*[xX]\s*(\d{1,5})")
_USUAL = 224  # for an example where the model leaves its size open


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFlags:
    """What the command line says about pictures; as written, None where it says nothing."""

    mean: str | None = None
    std: str | None = None
    color: str | None = None
    resize: str | None = None
    resize_method: str | None = None
    center_crop: str | None = None

    def given(self) -> list[str]:
        """The flags that were given, by their names on the command line."""
        names = [one.name for one in dataclasses.fields(self) if getattr(self, one.name)]
        return [f"--{name.replace('_', '-')}" for name in names]


def picture_values(flags: PictureFlags, item: ModelInput, *, ask: bool) -> dict[str, Any]:
    """The keys of ``[data_preprocess_param]`` for pictures.

    Args:
        flags: the flags.
        item: the input that the pictures fill.
        ask: ask on the terminal for what is missing.

    Raises:
        InputError: everything that is missing or wrong, at once.
    """
    channels, height, width = _size_of(item)
    color = flags.color or ("GRAY" if channels == 1 else "RGB")
    length = 1 if color == "GRAY" else 3
    missing: list[str] = []
    problems: list[Problem] = []

    def read(flag: str, text: str | None, parse: Callable[[str], T], question: str) -> T | None:
        if text is None and ask:
            return _prompt(question, parse)
        if text is None:
            missing.append(flag)
            return None
        try:
            return parse(text)
        except ValueError as error:
            problems.append(Problem(message=f"{flag} {text}: {error}"))
            return None

    def vector(text: str) -> list[float]:
        return _vector(text, length)

    no_size = flags.resize is None and flags.center_crop is None
    if ask and (flags.mean is None or flags.std is None or no_size):
        typer.echo(f"How was the model trained? {_described(item)}")
    values: dict[str, Any] = {"image_to_format": color}
    values["normalize_mean"] = read(
        "--mean",
        flags.mean,
        vector,
        "mean, for values from 0 to 255 (such as 127.5 or 124,116,104)",
    )
    values["normalize_std"] = read("--std", flags.std, vector, "standard deviation")
    if flags.resize is not None or no_size:
        flag = "--resize (or --center-crop)" if no_size else "--resize"
        size = read(flag, flags.resize, parse_size, "resize pictures to (such as 256x224)")
        values |= {
            "resize_width": size[0] if size else None,
            "resize_height": size[1] if size else None,
            "resize_method": flags.resize_method or "LINEAR",
        }
    elif flags.resize_method is not None:
        problems.append(Problem(message="--resize-method has no effect without --resize"))
    if flags.center_crop is not None:
        crop = read("--center-crop", flags.center_crop, parse_size, "")
        values |= {
            "center_crop_width": crop[0] if crop else None,
            "center_crop_height": crop[1] if crop else None,
        }
    if missing:
        example = f"--mean 127.5 --std 127.5 --resize {width or _USUAL}x{height or _USUAL}"
        text = f"pictures have to be prepared as in training; missing: {', '.join(missing)}"
        hint = f"for example {example}. {_described(item)}"
        problems.insert(0, Problem(message=text, hint=hint))
    if problems:
        raise InputError(problems=problems)
    return values


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from ``WxH``; ValueError if it is none."""
    found = _SIZE.fullmatch(text.strip())
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(1 <= side <= _LARGEST for side in size):
        raise ValueError(f"expected WIDTHxHEIGHT, each from 1 to {_LARGEST}")
    return size


def _vector(text: str, length: int) -> list[float]:
    """One number for each channel; a single one stands for all."""
    parts = text.strip().removeprefix("[").removesuffix("]").split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("expected numbers with commas between")
    if len(numbers) not in (1, length):
        raise ValueError(f"expected one number, or {length}, found {len(numbers)}")
    return numbers * length if len(numbers) == 1 else numbers


def _prompt(question: str, parse: Callable[[str], T]) -> T:
    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error  # typer asks again

    answer: T = typer.prompt(question, value_proc=convert)
    return answer


def _size_of(item: ModelInput) -> tuple[int | None, int | None, int | None]:
    """Channels, height and width, each None where the model leaves it open."""
    if len(item.shape) != 4:
        return None, None, None
    _, *rest = (dim if isinstance(dim, int) else None for dim in item.shape)
    if item.layout == "NHWC":
        return rest[2], rest[0], rest[1]
    return rest[0], rest[1], rest[2]


def _described(item: ModelInput) -> str:
    shape = ", ".join("any" if dim is None else str(dim) for dim in item.shape)
    channels, height, width = _size_of(item)
    text = f"Input '{item.name}' takes [{shape}]"
    if item.layout is not None:
        text += f", {channels} channels of {width or 'any'}x{height or 'any'} (width x height)"
    return text
