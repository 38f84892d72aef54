"""The Python front-end: one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptq_core.config import Config, config_from_values, load_config
from ptq_core.jobs import Report, Settings, run
from ptq_core.plugins import PluginHost, discover
from ptq_core.types import Event


def quantize(
    model: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    data: Iterable[Any] | None = None,
    target: str | None = None,
    method: str = "MAX_MIN",
    per_channel: bool = True,
    skip: Sequence[str] = (),
    settings: Settings | None = None,
    host: PluginHost | None = None,
    progress: Callable[[Event], None] | None = None,
) -> Report:
    """Quantize a float32 ONNX model and write the result.

    Without ``config`` this is full quantization with the keyword arguments; with it, the config
    says everything and ``data``, if given, replaces its samples.

    Args:
        model: the ONNX file.
        output: the file to write; ``<model>_int8.onnx`` beside the model by default.
        config: a config file, or its sections as dicts.
        data: any iterable of arrays (one input) or dicts of arrays (by input name), preprocessed
            as the model takes them; a data loader works.
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
    path = Path(model)
    destination = Path(output) if output is not None else default_output(path)
    return run(
        path,
        destination,
        _config(config, data, target, method, per_channel, skip),
        host or discover(),
        data=data,
        settings=settings,
        emit=progress,
    )


def default_output(model: Path) -> Path:
    """Where the result goes if nobody says: beside the model."""
    return model.with_name(f"{model.stem}_int8.onnx")


def _config(
    given: str | Path | Mapping[str, Mapping[str, Any]] | None,
    data: Iterable[Any] | None,
    target: str | None,
    method: str,
    per_channel: bool,
    skip: Sequence[str],
) -> Config:
    has_data = data is not None
    if isinstance(given, str | Path):
        return load_config(Path(given), has_data=has_data, target=target)
    if given is not None:
        return config_from_values(given, has_data=has_data, target=target)
    values = full_quant_values(method=method, per_channel=per_channel, skip=skip)
    return config_from_values(values, has_data=has_data, target=target)


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
