"""``ptq quantize``: the main command."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import InputError

if TYPE_CHECKING:
    from ptq_core.config import Config
    from ptq_core.plugins import PluginHost

_DATA = "Data (instead of a config)"
_PICTURES = "Pictures (with --data)"
_QUANTIZATION = "Quantization"
_QUALITY = "Checks"
_RUN = "How it runs"


class Color(StrEnum):
    """Order of a picture's channels."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"


class ResizeMethod(StrEnum):
    """Interpolation."""

    LINEAR = "LINEAR"
    NEAREST = "NEAREST"
    CUBIC = "CUBIC"


class DataLayout(StrEnum):
    """Where the channels of 4-D data are."""

    NCHW = "NCHW"
    NHWC = "NHWC"


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
Skip = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        rich_help_panel=_QUANTIZATION,
        help="Leave nodes in float: a name, a glob such as 'head/*', or type:Add. Repeatable.",
    ),
]


def quantize(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The float32 ONNX file.")],
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", metavar="FILE", help="What to do, in INI or TOML."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The result; MODEL_int8.onnx by default."
        ),
    ] = None,
    json: Json = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[INPUT:]DIR",
            rich_help_panel=_DATA,
            help="Calibrate on the files of this folder; once for each input of the model.",
        ),
    ] = None,
    calibrate_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            rich_help_panel=_DATA,
            help="How many samples to use; 100, or all if there are fewer.",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M,M,M",
            rich_help_panel=_PICTURES,
            help="(value - mean) / std for each channel, as in training, for values 0 to 255.",
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="S,S,S", rich_help_panel=_PICTURES, help="See --mean.")
    ] = None,
    color: Annotated[
        Color | None,
        typer.Option(
            metavar="RGB|BGR|GRAY",
            case_sensitive=False,
            rich_help_panel=_PICTURES,
            help="Order of the channels; RGB, or GRAY where the model takes one.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="WxH", rich_help_panel=_PICTURES, help="Resize to this size."),
    ] = None,
    resize_method: Annotated[
        ResizeMethod | None,
        typer.Option(
            metavar="LINEAR|NEAREST|CUBIC",
            case_sensitive=False,
            rich_help_panel=_PICTURES,
            help="LINEAR if nobody says.",
        ),
    ] = None,
    center_crop: Annotated[
        str | None,
        typer.Option(metavar="WxH", rich_help_panel=_PICTURES, help="Then keep the middle."),
    ] = None,
    target: Target = None,
    method: Method = None,
    per_layer: PerLayer = False,
    skip: Skip = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            rich_help_panel=_QUALITY,
            help="Exit with 1 if an output's mean cosine similarity is below; the file is kept.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", rich_help_panel=_QUALITY, help="Too few samples are an error."),
    ] = False,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            rich_help_panel=_QUALITY,
            help="Leave samples out that cannot be used, and count them.",
        ),
    ] = False,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="'NAME:1,3,224,224'",
            rich_help_panel=_RUN,
            help="Shapes that the model leaves open; ';' between inputs.",
        ),
    ] = None,
    input_data_format: Annotated[
        DataLayout | None,
        typer.Option(
            metavar="NCHW|NHWC",
            case_sensitive=False,
            rich_help_panel=_RUN,
            help="Layout of 4-D BIN files; the model's own by default.",
        ),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=_RUN, help="What executes the model."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=_RUN, help="Threads of one inference."),
    ] = None,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Quantize MODEL as a config says, or from a folder of samples with good defaults.

    ptq quantize model.onnx -c full_quant.cfg -o model_int8.onnx

    ptq quantize model.onnx --data pictures --mean 127.5 --std 127.5 --resize 224x224
    """
    from ptq_core.cli.data import DataFlags, config_from_flags, rendered
    from ptq_core.cli.pictures import PictureFlags
    from ptq_core.cli.running import run_job
    from ptq_core.config import load_config, parse_input_shape
    from ptq_core.jobs import Settings
    from ptq_core.python import default_output

    state: State = context.obj
    state.start_logging()
    flags = DataFlags(
        data=tuple(data or ()),
        calibrate_size=calibrate_size,
        pictures=PictureFlags(
            mean=mean,
            std=std,
            color=None if color is None else color.value,
            resize=resize,
            resize_method=None if resize_method is None else resize_method.value,
            center_crop=center_crop,
        ),
    )
    settings = Settings(
        min_cosine=min_cosine,
        strict=strict,
        skip_bad=skip_bad,
        input_shapes=(
            parse_input_shape(input_shape, option="--input-shape") if input_shape else {}
        ),
        data_layout=None if input_data_format is None else input_data_format.value,
    )
    shown = None
    if config is not None:
        flagged = dict.fromkeys(flags.given(), True)
        refuse_beside_config(config, {**flagged, "--method": method, "--per-layer": per_layer})
        job = load_config(config, target=target)
        job = with_skip(job, skip or ())
        _refuse_other_layout(job, settings.data_layout)
    elif not flags.data:
        raise InputError(
            "there is no data to calibrate with",
            hint="give --data DIR, a folder of samples, or -c CONFIG; "
            "`ptq config new full_quant -o full_quant.cfg` writes a config to start from",
        )
    else:
        job = config_from_flags(
            flags,
            model,
            state,
            target=target,
            method=method,
            per_channel=not per_layer,
            skip=skip or (),
            settings=settings,
        )
    job = _with_runner(job, state.host, runner, threads)
    if config is None:
        shown = rendered(job)
        if not json:
            besides = " beside --input-shape" if input_shape else ""
            state.out.print(
                f"# the same as a config, to keep and give with -c{besides}:\n\n{shown}"
            )
    return run_job(
        state,
        model,
        output if output is not None else default_output(model),
        job,
        settings,
        shown_config=shown,
    )


def with_skip(config: Config, skip: Sequence[str]) -> Config:
    """The config with further nodes that stay float."""
    if not skip:
        return config
    names = (*config.common.skip_quant_node, *skip)
    common = config.common.model_copy(update={"skip_quant_node": tuple(dict.fromkeys(names))})
    return dataclasses.replace(config, common=common)


def refuse_beside_config(config: Path, flags: Mapping[str, object]) -> None:
    """Raise InputError if any of these flags was given: the config has a key for each."""
    given = [name for name, value in flags.items() if value]
    if given:
        raise InputError(
            f"{', '.join(given)} and -c: only one can say it, the flag or {config}",
            hint="change the config, or leave out -c and give --data DIR",
        )


def _with_runner(
    config: Config, host: PluginHost, runner: str | None, threads: int | None
) -> Config:
    named = config.runner
    if runner is not None and named is not None and named.casefold() != runner.casefold():
        raise InputError(
            f"--runner {runner}, but the config names the runner {named}",
            location=config.locate("runner", "name"),
            hint="name one",
        )
    config = dataclasses.replace(config, runner=runner or named)
    if threads is None:
        return config
    entry = host.runner(config.runner or "onnxruntime").entry
    if "threads" not in {one.name for one in dataclasses.fields(entry.options)}:
        raise InputError(f"--threads: the runner {entry.name} has no such option")
    key = ("runner", entry.name.casefold())
    options = {**config.plugin_options.get(key, {}), "threads": threads}
    return dataclasses.replace(config, plugin_options={**config.plugin_options, key: options})


def _refuse_other_layout(config: Config, layout: str | None) -> None:
    own = config.data.input_data_format if config.data is not None else None
    if layout is not None and own is not None and own != layout:
        raise InputError(
            f"--input-data-format {layout}, but the config says input_data_format = {own}",
            location=config.locate("data_preprocess_param", "input_data_format"),
            hint="name one",
        )
