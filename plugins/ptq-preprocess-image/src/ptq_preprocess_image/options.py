"""The keys of ``[data_preprocess_param]`` that say how a picture becomes a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MAX_SIZE = 65535  # the upper end of every size key's documented range


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions:
    """What is done to a picture, in this order: colour, normalize, resize, centre crop.

    A key left out leaves its step out; without ``normalize_*`` the values are the raw 0 to 255.

    Attributes:
        image_to_format: channel order; None leaves the decoder's, which is BGR.
        normalize_mean: subtracted, one number per channel; zeros where only the other is given.
        normalize_std: divided by, one number per channel; ones where only the other is given.
        resize_width: width after resizing.
        resize_height: height after resizing.
        resize_method: interpolation, without antialiasing.
        center_crop_width: width of the part that is kept.
        center_crop_height: height of the part that is kept.

    Raises:
        ValueError: with every contradiction between the keys.
    """

    image_to_format: Literal["RGB", "GRAY", "BGR"] | None = None
    normalize_mean: tuple[float, ...] | None = None
    normalize_std: tuple[float, ...] | None = None
    resize_width: int | None = None
    resize_height: int | None = None
    resize_method: Literal["LINEAR", "NEAREST", "CUBIC"] | None = None
    center_crop_width: int | None = None
    center_crop_height: int | None = None

    def __post_init__(self) -> None:
        problems = [
            *self._incomplete("resize_width", "resize_height", "resize_method"),
            *self._incomplete("center_crop_width", "center_crop_height"),
            *self._bad_sizes(),
            *self._bad_vectors(),
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def channels(self) -> int:
        """How many channels the sample has."""
        return 1 if self.image_to_format == "GRAY" else 3

    @property
    def resize(self) -> tuple[int, int] | None:
        """Height and width after resizing, None where that is not asked for."""
        if self.resize_height is None or self.resize_width is None:
            return None
        return self.resize_height, self.resize_width

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width of the part that is kept, None where that is not asked for."""
        if self.center_crop_height is None or self.center_crop_width is None:
            return None
        return self.center_crop_height, self.center_crop_width

    def _incomplete(self, *keys: str) -> list[str]:
        given = [key for key in keys if getattr(self, key) is not None]
        missing = [key for key in keys if key not in given]
        if not given or not missing:
            return []
        verb = "is" if len(given) == 1 else "are"
        return [f"{' and '.join(given)} {verb} given without {' and '.join(missing)}"]

    def _bad_sizes(self) -> list[str]:
        problems = []
        for key in ("resize_width", "resize_height", "center_crop_width", "center_crop_height"):
            size = getattr(self, key)
            if size is not None and not 1 <= size <= MAX_SIZE:
                problems.append(f"{key} is {size}, it has to be within 1 and {MAX_SIZE}")
        for side in ("width", "height"):
            size, crop = getattr(self, f"resize_{side}"), getattr(self, f"center_crop_{side}")
            if size is not None and crop is not None and crop > size:
                problems.append(f"center_crop_{side} = {crop} is more than resize_{side} = {size}")
        return problems

    def _bad_vectors(self) -> list[str]:
        problems = []
        for key in ("normalize_mean", "normalize_std"):
            vector = getattr(self, key)
            if vector is None:
                continue
            if len(vector) != self.channels:
                colour = self.image_to_format or "BGR (image_to_format is not set)"
                problems.append(
                    f"{key} has {len(vector)} values, {colour} has {self.channels} channel(s): "
                    f"give one value per channel"
                )
            if not all(math.isfinite(value) for value in vector):
                problems.append(f"{key} = {list(vector)} holds a number that is not finite")
        if self.normalize_std is not None and any(value <= 0 for value in self.normalize_std):
            problems.append(
                f"normalize_std = {list(self.normalize_std)} divides by zero or by a negative "
                f"number: a standard deviation is more than 0"
            )
        return problems
