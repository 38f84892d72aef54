"""``ptq converter_lite``: takes the command lines of the tool of that name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose
from ptq_core.errors import ConfigError, InputError

_NO_EFFECT = "Accepted, without effect or refused with what to do instead"

_GLOG = "GLOG_v"  # as the tool spells it

_Text = str | None


def _flag(name: str, text: str, *, metavar: str = "TEXT", effect: bool = True) -> object:
    panel = None if effect else _NO_EFFECT
    return typer.Option(f"--{name}", metavar=metavar, help=text, rich_help_panel=panel)


def converter_lite(
    context: typer.Context,
    fmk: Annotated[_Text, _flag("fmk", "ONNX, whatever its case.", metavar="ONNX")] = None,
    model_file: Annotated[_Text, _flag("modelFile", "The model.", metavar="FILE")] = None,
    output_file: Annotated[
        _Text, _flag("outputFile", "The result; .onnx is added to a bare name.", metavar="FILE")
    ] = None,
    config_file: Annotated[_Text, _flag("configFile", "What to do.", metavar="FILE")] = None,
    input_shape: Annotated[
        _Text, _flag("inputShape", "Shapes that the model leaves open.", metavar="'A:1,3;B:1,8'")
    ] = None,
    input_data_format: Annotated[
        _Text, _flag("inputDataFormat", "Layout of 4-D BIN files; NHWC if not given.")
    ] = None,
    optimize: Annotated[
        _Text, _flag("optimize", "ascend_oriented[:chip] makes ASCEND the device.")
    ] = None,
    fp16: Annotated[_Text, _flag("fp16", "on or off.")] = None,
    weight_file: Annotated[_Text, _flag("weightFile", "For CAFFE.", effect=False)] = None,
    output_data_format: Annotated[_Text, _flag("outputDataFormat", "", effect=False)] = None,
    input_data_type: Annotated[_Text, _flag("inputDataType", "", effect=False)] = None,
    output_data_type: Annotated[_Text, _flag("outputDataType", "", effect=False)] = None,
    save_type: Annotated[_Text, _flag("saveType", "", effect=False)] = None,
    infer: Annotated[_Text, _flag("infer", "", effect=False)] = None,
    encryption: Annotated[_Text, _flag("encryption", "", effect=False)] = None,
    encrypt_key: Annotated[_Text, _flag("encryptKey", "", effect=False)] = None,
    decrypt_key: Annotated[_Text, _flag("decryptKey", "", effect=False)] = None,
    decrypt_mode: Annotated[_Text, _flag("decryptMode", "", effect=False)] = None,
    train_model: Annotated[_Text, _flag("trainModel", "", effect=False)] = None,
    device: Annotated[_Text, _flag("device", "", effect=False)] = None,
    optimize_transformer: Annotated[_Text, _flag("optimizeTransformer", "", effect=False)] = None,
    json: Json = False,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Quantize as MindSpore Lite's converter_lite would be told to.

    ptq converter_lite --fmk=ONNX --modelFile=net.onnx --outputFile=net_int8 --configFile=quant.cfg
    """
    from ptq_core.cli.asked import with_target_options
    from ptq_core.cli.converter_flags import interpret
    from ptq_core.cli.running import run_job
    from ptq_core.config import load_config
    from ptq_core.jobs import Settings

    state: State = context.obj
    state.verbose = max(state.verbose, _glog_verbosity(os.environ.get(_GLOG, "")))
    state.start_logging()
    # by the context and not one by one: the signature above is for the parser and the help
    asked = interpret(given_flags(context.params))
    problems = list(asked.problems)
    config = None
    if asked.config is not None:
        try:
            config = load_config(asked.config, target=asked.target)
        except ConfigError as error:
            problems += error.problems
    if config is not None and asked.chip is not None:
        config = with_target_options(config, [f"chip={asked.chip}"], flag="--optimize, ")
    if config is not None:
        problems += asked.contradictions(config)
    if problems or config is None or asked.model is None or asked.output is None:
        raise InputError(problems=problems)
    settings = Settings(
        input_shapes=asked.input_shapes,
        data_layout=asked.data_layout or "NHWC",
        fp16=asked.fp16,
    )
    return run_job(
        state,
        asked.model,
        asked.output,
        config,
        settings,
        notes=asked.notes,
        warnings=asked.warnings,
    )


def given_flags(params: Mapping[str, Any]) -> dict[str, str]:
    """The tool's own flags that were given, by their names there: ``model_file`` is modelFile."""
    flags = {}
    for name, value in params.items():
        if isinstance(value, str):  # all of the tool's, and only those, are text
            first, *rest = name.split("_")
            flags["".join([first, *(word.capitalize() for word in rest)])] = value
    return flags


def _glog_verbosity(level: str) -> int:
    """GLOG's levels: 0 is debug, 1 is info, 2 (warnings) is the tool's default."""
    return {"0": 2, "1": 1}.get(level.strip(), 0)
