"""From the bytes of a picture to a sample in the model's own shape, layout and element type.

The order of the steps is fixed and is part of the meaning of the keys: colour, normalize in
float32, resize in float32, centre crop. Colour and normalize change each pixel by itself, a crop
and a NEAREST resize only pick pixels; the two kinds commute bit for bit, so picking is done first.
LINEAR and CUBIC mix pixels and keep their place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from ptq_core.api import ModelInput
from ptq_preprocess_image.options import ImageOptions

Pixels: TypeAlias = NDArray[np.uint8]
Values: TypeAlias = NDArray[np.float32]
Size: TypeAlias = tuple[int, int]  # height, width

_INTERPOLATION = {
    "LINEAR": cv2.INTER_LINEAR,
    "NEAREST": cv2.INTER_NEAREST,
    "CUBIC": cv2.INTER_CUBIC,
}
_FROM_BGR = {"RGB": cv2.COLOR_BGR2RGB, "GRAY": cv2.COLOR_BGR2GRAY}
_DTYPES = ("float32", "float16", "float64", "uint8")
_CHANNEL_AXIS = {"NCHW": 1, "NHWC": 3}


class ImageReader:
    """Reads pictures for one input of the model.

    Raises:
        ValueError: with every reason why no picture can fill this input.
    """

    def __init__(self, model_input: ModelInput, options: ImageOptions) -> None:
        if len(model_input.shape) != 4:
            raise ValueError(
                f"input '{model_input.name}' has shape {_dims(model_input.shape)}; a picture "
                f"fills four dimensions (batch, channels, height, width): give NPY or BIN files"
            )
        layout, problems = _find_layout(model_input, options)
        if layout is not None:
            problems += _channel_problems(model_input, layout, options)
            final = options.crop or options.resize
            problems += _size_problems(model_input, layout, options, final)
        problems += _other_problems(model_input, options)
        if layout is None or problems:
            raise ValueError("; ".join(problems))
        self._input = model_input
        self._layout = layout
        self._options = options
        self._table = normalization_table(options)
        # Pictures are read in a thread beside the inference; OpenCV's own threads would take
        # cores from it, and one picture is too small to gain anything.
        cv2.setNumThreads(1)

    def read(self, path: Path, /) -> NDArray[Any]:
        """The sample in this file, batch axis included.

        Raises:
            ValueError: no picture, a truncated one, or not of the size that the model takes.
            OSError: the file cannot be read.
        """
        values = preprocess(decode(path), self._options, self._table)
        size = (values.shape[0], values.shape[1])
        if problems := _size_problems(self._input, self._layout, self._options, size):
            raise ValueError("; ".join(problems))
        return arrange(values, self._layout, self._input.dtype)


def decode(path: Path) -> Pixels:
    """The picture in a file as 8-bit BGR [height, width, 3].

    Alpha is dropped, gray is expanded, 16 bits become 8, the EXIF orientation is applied.

    Raises:
        ValueError: empty, truncated, or no format that OpenCV knows.
    """
    data = path.read_bytes()  # and not cv2.imread, which cannot open every non-ASCII path
    if not data:
        raise ValueError("the file is empty, a picture was expected")
    if kind := truncated(data):
        raise ValueError(f"truncated {kind}: the file ends before the picture does")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        reason = error.err or str(error).strip()
        raise ValueError(f"not a decodable image: OpenCV says '{reason}'") from error
    if pixels is None:
        start = data[:4].hex(" ")
        raise ValueError(f"not a decodable image: {len(data)} bytes that start with {start}")
    return np.asarray(pixels, np.uint8)


_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")  # none of those without a length
_PNG_CHUNK_FRAME = 12  # length, type and checksum, four bytes each


def truncated(data: bytes) -> str | None:
    """The format of a picture whose end is missing, None where it is there or cannot be told.

    Decoders fill what is missing of a JPEG with gray, and of a PNG with black, without an error.
    The walk goes from segment to segment, so the end of an embedded thumbnail is not mistaken
    for the picture's, and bytes behind the end (a phone's video) do no harm.
    """
    if data[:3] == b"\xff\xd8\xff":
        position = 2
        while marker := _JPEG_MARKER.search(data, position):
            if marker[1] == b"\xd9":
                return None
            position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        position = 8
        while position + _PNG_CHUNK_FRAME <= len(data):
            if data[position + 4 : position + 8] == b"IEND":
                return None
            position += _PNG_CHUNK_FRAME + int.from_bytes(data[position : position + 4], "big")
        return "PNG"
    return None


def normalization_table(options: ImageOptions) -> Values:
    """``(x - mean) / std`` in float32 for every pixel value x, [1, 256] or [1, 256, 3].

    A picture has 256 values per channel: looking them up is exact, and several times as fast as
    computing them.
    """
    x = np.arange(256, dtype=np.float32)[:, None]
    mean = np.array(options.normalize_mean or (0,) * options.channels, np.float32)
    std = np.array(options.normalize_std or (1,) * options.channels, np.float32)
    table = (x - mean) / std
    return table.reshape((1, 256) if options.channels == 1 else (1, 256, 3))


def preprocess(pixels: Pixels, options: ImageOptions, table: Values) -> Values:
    """A BGR picture after colour, normalize, resize and crop: [height, width(, 3)].

    Raises:
        ValueError: the crop is larger than the picture.
    """
    if options.resize_method in {"LINEAR", "CUBIC"}:
        return _crop(_resize(_normalize(_colour(pixels, options), table), options), options)
    return _normalize(_colour(_crop(_resize(pixels, options), options), options), table)


def _colour(pixels: Pixels, options: ImageOptions) -> Pixels:
    conversion = _FROM_BGR.get(options.image_to_format or "BGR")
    return pixels if conversion is None else np.asarray(cv2.cvtColor(pixels, conversion))


def _normalize(pixels: Pixels, table: Values) -> Values:
    return np.asarray(cv2.LUT(pixels, table))


def _resize(values: NDArray[Any], options: ImageOptions) -> NDArray[Any]:
    if options.resize is None or options.resize_method is None:
        return values
    height, width = options.resize
    method = _INTERPOLATION[options.resize_method]
    return np.asarray(cv2.resize(values, (width, height), interpolation=method))


def _crop(values: NDArray[Any], options: ImageOptions) -> NDArray[Any]:
    if options.crop is None:
        return values
    (height, width), (crop_height, crop_width) = values.shape[:2], options.crop
    if crop_height > height or crop_width > width:
        raise ValueError(
            f"the picture is {height}x{width} (height x width) before the crop, "
            f"center_crop_height and center_crop_width ask for {crop_height}x{crop_width} of it: "
            f"crop less, or enlarge it with resize_height, resize_width and resize_method"
        )
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return values[top : top + crop_height, left : left + crop_width]


def arrange(values: Values, layout: str, dtype: str) -> NDArray[Any]:
    """A preprocessed picture as the model takes it: batch axis, layout, element type.

    For integers, values are rounded half to even and clipped (CUBIC overshoots).
    """
    picture = values if values.ndim == 3 else values[:, :, None]
    if layout == "NCHW":
        picture = picture.transpose(2, 0, 1)
    if dtype == "uint8":
        picture = np.clip(np.rint(picture), 0, 255)
    return np.ascontiguousarray(picture[None], dtype)


# ------------------------------------------------------------------ does a picture fit the input


def _find_layout(model_input: ModelInput, options: ImageOptions) -> tuple[str | None, list[str]]:
    if model_input.layout is not None:
        return model_input.layout, []
    for counts in ((options.channels,), (1, 3)):
        fitting = [
            layout for layout, axis in _CHANNEL_AXIS.items() if model_input.shape[axis] in counts
        ]
        if len(fitting) == 1:
            return fitting[0], []
    return None, [
        f"input '{model_input.name}' has shape {_dims(model_input.shape)}, which does not tell "
        f"where its channels are: set input_data_format to NCHW or NHWC"
    ]


def _channel_problems(model_input: ModelInput, layout: str, options: ImageOptions) -> list[str]:
    found, taken = options.channels, model_input.shape[_CHANNEL_AXIS[layout]]
    if not isinstance(taken, int) or taken == found:
        return []
    text = (
        f"input '{model_input.name}', shape {_dims(model_input.shape)} as {layout}, takes "
        f"{taken} channel(s), the picture has {found}"
    )
    if taken == 1:
        return [f"{text}: set image_to_format = GRAY"]
    if taken == 3:
        return [f"{text}: set image_to_format to RGB or BGR"]
    other = "NHWC" if layout == "NCHW" else "NCHW"
    if model_input.shape[_CHANNEL_AXIS[other]] in {1, 3}:
        return [f"{text}: set input_data_format = {other}"]
    return [f"{text}: give NPY or BIN files"]


def _size_problems(
    model_input: ModelInput, layout: str, options: ImageOptions, size: Size | None
) -> list[str]:
    first = 2 if layout == "NCHW" else 1
    taken = model_input.shape[first : first + 2]
    if size is None or all(
        not isinstance(want, int) or want == have for want, have in zip(taken, size, strict=True)
    ):
        return []
    if options.crop is not None:
        todo = "change center_crop_height and center_crop_width"
    elif options.resize is not None:
        todo = (
            "change resize_height and resize_width, or set center_crop_height and center_crop_width"
        )
    else:
        todo = (
            "set resize_height, resize_width and resize_method, "
            "or center_crop_height and center_crop_width"
        )
    wanted = "x".join(str(side) if isinstance(side, int) else "any" for side in taken)
    return [
        f"the preprocessed picture is {size[0]}x{size[1]} (height x width), input "
        f"'{model_input.name}' takes {wanted}: {todo}"
    ]


def _other_problems(model_input: ModelInput, options: ImageOptions) -> list[str]:
    problems = []
    batch = model_input.shape[0]
    if isinstance(batch, int) and batch != 1:
        problems.append(
            f"input '{model_input.name}' takes batches of {batch}, a picture is one sample: "
            f"give the model batch size 1 or an open one, or give NPY or BIN files"
        )
    if model_input.dtype not in _DTYPES:
        problems.append(
            f"input '{model_input.name}' is {model_input.dtype}, pictures fill "
            f"{', '.join(_DTYPES)}: give NPY or BIN files"
        )
    if model_input.dtype == "uint8" and (options.normalize_mean or options.normalize_std):
        problems.append(
            f"input '{model_input.name}' is uint8, which cannot hold normalized values: leave out "
            f"normalize_mean and normalize_std"
        )
    return problems


def _dims(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
