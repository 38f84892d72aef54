"""The Python front-end: ``quantize``; ``calibrate`` before it, and ``compare`` after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptq_core.calibration_table import CalibrationTable
from ptq_core.checks import check_model
from ptq_core.config import Config, config_from_values, load_config
from ptq_core.errors import InputError
from ptq_core.jobs import CalibrationReport, Report, Settings, calibration_job, named_target, run
from ptq_core.jobs.compare import COMPARED_SAMPLES, ComparisonReport, compare_job
from ptq_core.plugins import PluginHost, discover
from ptq_core.target_types import Finding
from ptq_core.types import Event


def quantize(
    model: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    data: Iterable[Any] | None = None,
    calibration: str | Path | CalibrationTable | None = None,
    bits: int | None = None,
    dynamic: str | None = None,
    target: str | None = None,
    method: str = "MAX_MIN",
    per_channel: bool = True,
    skip: Sequence[str] = (),
    settings: Settings | None = None,
    host: PluginHost | None = None,
    progress: Callable[[Event], None] | None = None,
) -> Report:
    """Quantize a float32 ONNX model and write the result.

    Without ``config`` this is full quantization with the keyword arguments, with ``bits`` weight
    quantization, or with ``dynamic`` dynamic quantization; with it, the config says everything and
    ``data``, if given, replaces its samples.

    Args:
        model: the ONNX file.
        output: the file to write; beside the model by default, see :func:`default_output`.
        config: a config file, or its sections as dicts.
        data: any iterable of arrays (one input) or dicts of arrays (by input name), preprocessed
            as the model takes them; a data loader works.
        calibration: a table of :func:`calibrate` or its file, instead of any samples.
        bits: only the weights become integers, of so many bits; 0 are mixed bits. Data is optional
            then.
        dynamic: activations are quantized while the model runs: ``ALWC``, ``ACWC`` or ``ACWL``.
            Data is optional then, too.
        target: the device, CPU by default.
        method: the calibrator of activations.
        per_channel: one weight scale per output channel.
        skip: nodes that stay float: names, globs, ``type:Add``.
        settings: gate, strictness, shapes.
        host: plugins; all installed ones by default.
        progress: called with an :class:`~ptq_core.types.Event` for every step.

    Raises:
        InputError: the model, the data or the config cannot be used; nothing was written.
        PluginError: a plugin failed; nothing was written.
    """
    if data is not None and calibration is not None:
        raise InputError("data and calibration: the ranges come from the one or from the other")
    path = Path(model)
    has_data = data is not None or calibration is not None
    if bits is not None and dynamic is not None:
        raise InputError("bits and dynamic: these are two jobs, give one of them")
    if dynamic is not None and config is None:
        values = dynamic_quant_values(dynamic, skip=skip)
        job = config_from_values(values, has_data=has_data, target=target)
    elif bits is not None and config is None:
        values = weight_quant_values(bits, per_channel=per_channel, skip=skip)
        job = config_from_values(values, has_data=has_data, target=target)
    else:
        job = _config(config, has_data, target, method, per_channel, skip)
    return run(
        path,
        Path(output) if output is not None else default_output(path, job),
        job,
        host or discover(),
        data=data,
        calibration=Path(calibration) if isinstance(calibration, str) else calibration,
        settings=settings,
        emit=progress,
    )


def calibrate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    methods: Sequence[str] = (),
    tensorrt: str | Path | None = None,
    config: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    data: Iterable[Any] | None = None,
    target: str | None = None,
    per_channel: bool = True,
    skip: Sequence[str] = (),
    settings: Settings | None = None,
    host: PluginHost | None = None,
    progress: Callable[[Event], None] | None = None,
) -> CalibrationReport:
    """Find ranges by one or more methods in one pass, and see what each is worth.

    The report's ``table`` can be given to :func:`quantize`.

    Args:
        model: the ONNX file.
        output: a file for the table; by default it is not written.
        methods: the calibrators; the config's, or MAX_MIN, by default.
        tensorrt: a file for the first method's ranges as TensorRT's calibration cache.
        config: see :func:`quantize`, as all that follow.
        data: samples.
        target: the device.
        per_channel: one weight scale per output channel.
        skip: nodes that stay float.
        settings: strictness, shapes.
        host: plugins.
        progress: called with an :class:`~ptq_core.types.Event` for every step.

    Raises:
        InputError: the model, the data, the config or a method cannot be used; nothing was
            written.
        PluginError: a plugin failed; nothing was written.
    """
    return calibration_job(
        Path(model),
        _config(config, data is not None, target, "MAX_MIN", per_channel, skip),
        host or discover(),
        methods=methods,
        data=data,
        output=None if output is None else Path(output),
        tensorrt=None if tensorrt is None else Path(tensorrt),
        settings=settings,
        emit=progress,
    )


def compare(
    model: str | Path,
    quantized: str | Path,
    *,
    emulate: str | None = None,
    config: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    data: Iterable[Any] | None = None,
    samples: int = COMPARED_SAMPLES,
    settings: Settings | None = None,
    host: PluginHost | None = None,
    progress: Callable[[Event], None] | None = None,
) -> ComparisonReport:
    """Compare a quantized model with the float one, tensor by tensor, on a few samples.

    Args:
        model: the float ONNX file.
        quantized: what was made of it, by ptq or by others.
        emulate: a target; what it computes is predicted and compared, too.
        config: a config file, or its sections as dicts; its samples are used.
        data: samples, see :func:`quantize`; one of the two is needed.
        samples: how many are compared.
        settings: shapes, and what to do with bad samples.
        host: plugins.
        progress: called with an :class:`~ptq_core.types.Event` for every step.

    Raises:
        InputError: a model, the data or the target cannot be used.
        PluginError: a plugin failed.
    """
    return compare_job(
        Path(model),
        Path(quantized),
        _config(config, data is not None, None, "MAX_MIN", True, ()),
        host or discover(),
        target=emulate,
        data=data,
        samples=samples,
        settings=settings,
        emit=progress,
    )


def check(
    model: str | Path, target: str = "CPU", *, host: PluginHost | None = None
) -> tuple[Finding, ...]:
    """What a device will not take, or not take well, in a quantized model of anybody's.

    Args:
        model: the ONNX file; it is not changed.
        target: the device: a name, or a TOML file.
        host: plugins; all installed ones by default.

    Returns:
        Findings in the order of the graph; none where no rule of the device is broken.

    Raises:
        InputError: the model cannot be read, or there is no such device.
        PluginError: the target failed.
    """
    return check_model(Path(model), named_target(target, host or discover()))


def default_output(model: Path, config: Config) -> Path:
    """Where the result goes if nobody says: beside the model, with ``_int8``, ``_w4`` and so on."""
    bits = config.common.bit_num
    ending = "int8"
    if config.common.quant_type == "WEIGHT_QUANT":
        ending = f"w{bits}" if bits else "mixed"
    if config.common.quant_type == "DYNAMIC_QUANT":
        ending = "dynamic"
    return model.with_name(f"{model.stem}_{ending}.onnx")


def default_table(model: Path) -> Path:
    """Where the command line puts a calibration table if nobody says: beside the model."""
    return model.with_name(f"{model.stem}_calibration.json")


def _config(
    given: str | Path | Mapping[str, Mapping[str, Any]] | None,
    has_data: bool,
    target: str | None,
    method: str,
    per_channel: bool,
    skip: Sequence[str],
) -> Config:
    if isinstance(given, str | Path):
        return load_config(Path(given), has_data=has_data, target=target)
    if given is not None:
        return config_from_values(given, has_data=has_data, target=target)
    values = full_quant_values(method=method, per_channel=per_channel, skip=skip)
    return config_from_values(values, has_data=has_data, target=target)


def weight_quant_values(
    bits: int, *, per_channel: bool = True, skip: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The sections that weight quantization to so many bits stands for; 0 are mixed bits."""
    common: dict[str, Any] = {"quant_type": "WEIGHT_QUANT", "bit_num": bits}
    if skip:
        common["skip_quant_node"] = list(skip)
    return {
        "common_quant_param": common,
        **({} if per_channel else {"weight_quant_param": {"per_channel": False}}),
    }


def dynamic_quant_values(strategy: str, *, skip: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The sections that dynamic quantization with this strategy stands for."""
    common: dict[str, Any] = {"quant_type": "DYNAMIC_QUANT"}
    if skip:
        common["skip_quant_node"] = list(skip)
    return {"common_quant_param": common, "dynamic_quant_param": {"quant_strategy": strategy}}


def full_quant_values(
    *, method: str = "MAX_MIN", per_channel: bool = True, skip: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The sections that full quantization with these choices stands for."""
    common: dict[str, Any] = {"quant_type": "FULL_QUANT"}
    if skip:
        common["skip_quant_node"] = list(skip)
    full: dict[str, Any] = {"activation_quant_method": method}
    if not per_channel:
        full["per_channel"] = False
    return {"common_quant_param": common, "full_quant_param": full}
