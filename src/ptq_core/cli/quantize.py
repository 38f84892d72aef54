"""``ptq quantize``: the main command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptq_core.cli import options
from ptq_core.cli.asked import read_options
from ptq_core.cli.state import Json, NoPlugin, NoPlugins, State, Verbose


def quantize(
    context: typer.Context,
    model: options.Model,
    config: options.ConfigFile = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The result; by default MODEL_int8.onnx, MODEL_w4.onnx with --bits 4, or "
            "MODEL_dynamic.onnx.",
        ),
    ] = None,
    json: Json = False,
    data: options.Data = None,
    calibrate_size: options.CalibrateSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    color: options.Color = None,
    resize: options.Resize = None,
    resize_method: options.ResizeMethod = None,
    center_crop: options.CenterCrop = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            rich_help_panel="Data (instead of a config)",
            help="Take the ranges from a table of `ptq calibrate`; no sample is read.",
        ),
    ] = None,
    bits: options.Bits = None,
    dynamic: options.Dynamic = None,
    fp16: options.Fp16 = False,
    save_scales: options.SaveScales = None,
    target: options.Target = None,
    target_option: options.TargetOption = None,
    method: options.Method = None,
    per_layer: options.PerLayer = False,
    skip: options.Skip = None,
    min_cosine: options.MinCosine = None,
    strict: options.Strict = False,
    skip_bad: options.SkipBad = False,
    input_shape: options.InputShape = None,
    input_data_format: options.InputDataFormat = None,
    runner: options.Runner = None,
    threads: options.Threads = None,
    verbose: Verbose = 0,
    no_plugin: NoPlugin = None,
    no_plugins: NoPlugins = False,
) -> int:
    """Quantize MODEL as a config says, or from a folder of samples with good defaults.

    ptq quantize model.onnx -c full_quant.cfg -o model_int8.onnx

    ptq quantize model.onnx --data pictures --mean 127.5 --std 127.5 --resize 224x224

    ptq quantize model.onnx --calibration model_calibration.json --method KL

    ptq quantize model.onnx --bits 4

    ptq quantize model.onnx --dynamic ALWC
    """
    from ptq_core.cli.running import run_job
    from ptq_core.python import default_output

    state: State = context.obj
    state.start_logging()
    asked = read_options(state, context.params, stored=calibration)
    return run_job(
        state,
        model,
        output if output is not None else default_output(model, asked.config),
        asked.config,
        asked.settings,
        calibration=calibration,
        shown_config=asked.shown,
    )
