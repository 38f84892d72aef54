"""The options of commands that quantize, declared once; ``asked`` has what they add up to."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_DATA = "Data (instead of a config)"
_PICTURES = "Pictures (with --data)"
_QUANTIZATION = "Quantization"
_QUALITY = "Checks"
_RUN = "How it runs"


class _Color(StrEnum):
    """Order of a picture's channels."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"


class _ResizeMethod(StrEnum):
    """Interpolation."""

    LINEAR = "LINEAR"
    NEAREST = "NEAREST"
    CUBIC = "CUBIC"


class _Strategy(StrEnum):
    """What has one scale (L) and what has several (C): activations, then weights."""

    ALWC = "ALWC"
    ACWC = "ACWC"
    ACWL = "ACWL"


class _DataLayout(StrEnum):
    """Where the channels of 4-D data are."""

    NCHW = "NCHW"
    NHWC = "NHWC"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The float32 ONNX file.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", metavar="FILE", help="What to do, in INI or TOML."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[INPUT:]DIR",
        rich_help_panel=_DATA,
        help="Calibrate on the files of this folder; once for each input of the model.",
    ),
]
CalibrateSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        rich_help_panel=_DATA,
        help="How many samples to use; 100, or all if there are fewer.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="M,M,M",
        rich_help_panel=_PICTURES,
        help="(value - mean) / std for each channel, as in training, for values 0 to 255.",
    ),
]
Std = Annotated[
    str | None, typer.Option(metavar="S,S,S", rich_help_panel=_PICTURES, help="See --mean.")
]
Color = Annotated[
    _Color | None,
    typer.Option(
        metavar="RGB|BGR|GRAY",
        case_sensitive=False,
        rich_help_panel=_PICTURES,
        help="Order of the channels; RGB, or GRAY where the model takes one.",
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(metavar="WxH", rich_help_panel=_PICTURES, help="Resize to this size."),
]
ResizeMethod = Annotated[
    _ResizeMethod | None,
    typer.Option(
        metavar="LINEAR|NEAREST|CUBIC",
        case_sensitive=False,
        rich_help_panel=_PICTURES,
        help="LINEAR if nobody says.",
    ),
]
CenterCrop = Annotated[
    str | None,
    typer.Option(metavar="WxH", rich_help_panel=_PICTURES, help="Then keep the middle."),
]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_QUANTIZATION,
        help="The device, or a TOML file that describes it; CPU if nobody says.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=_QUANTIZATION,
        help="How ranges of activations are found: MAX_MIN, KL, RemovalOutlier, ...",
    ),
]
PerLayer = Annotated[
    bool,
    typer.Option(
        "--per-layer",
        rich_help_panel=_QUANTIZATION,
        help="One weight scale for a whole layer instead of one for each output channel.",
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=16,
        rich_help_panel=_QUANTIZATION,
        help="Weights only, in so many bits; the model computes in float. 0: mixed bits.",
    ),
]
Dynamic = Annotated[
    _Strategy | None,
    typer.Option(
        metavar="ALWC|ACWC|ACWL",
        case_sensitive=False,
        rich_help_panel=_QUANTIZATION,
        help="Quantize activations while the model runs, for transformers; data is optional. ALWC "
        "is the fastest, ACWC (a scale for each token) the closest.",
    ),
]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        rich_help_panel=_QUANTIZATION,
        help="An option of the device, as in [target.NAME] of a config; `ptq targets show NAME` "
        "lists them. Repeatable.",
    ),
]
Fp16 = Annotated[
    bool,
    typer.Option(
        "--fp16",
        rich_help_panel=_QUANTIZATION,
        help="Store what stays float as float16 (weights only).",
    ),
]
SaveScales = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_QUANTIZATION,
        help="Keep the scales that mixed bits have found, to use them again (key 'scales').",
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        rich_help_panel=_QUANTIZATION,
        help="Leave nodes in float: a name, a glob such as 'head/*', or type:Add. Repeatable.",
    ),
]
MinCosine = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        rich_help_panel=_QUALITY,
        help="Exit with 1 if an output's mean cosine similarity is below; the file is kept.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", rich_help_panel=_QUALITY, help="Too few samples are an error."),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        rich_help_panel=_QUALITY,
        help="Leave samples out that cannot be used, and count them.",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="'NAME:1,3,224,224'",
        rich_help_panel=_RUN,
        help="Shapes that the model leaves open; ';' between inputs.",
    ),
]
InputDataFormat = Annotated[
    _DataLayout | None,
    typer.Option(
        metavar="NCHW|NHWC",
        case_sensitive=False,
        rich_help_panel=_RUN,
        help="Layout of 4-D BIN files; the model's own by default.",
    ),
]
Runner = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=_RUN, help="What executes the model."),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=_RUN, help="Threads of one inference."),
]
