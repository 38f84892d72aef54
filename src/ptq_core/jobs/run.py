"""Which recipe a config asks for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptq_core.calibration import Emit
from ptq_core.calibration_table import CalibrationTable
from ptq_core.config import Config
from ptq_core.errors import InputError
from ptq_core.jobs.choices import asked_methods
from ptq_core.jobs.dynamic import dynamic_quant
from ptq_core.jobs.full import full_quant, quant_from_table
from ptq_core.jobs.report import Report, Settings
from ptq_core.jobs.start import prepare_dynamic_job, prepare_job, prepare_weight_job
from ptq_core.jobs.weight import weight_quant
from ptq_core.plugins import PluginHost


def run(
    model: Path,
    output: Path,
    config: Config,
    host: PluginHost,
    *,
    data: Iterable[Any] | None = None,
    calibration: Path | CalibrationTable | None = None,
    settings: Settings | None = None,
    emit: Emit | None = None,
) -> Report:
    """Do the job that the config asks for.

    Args:
        model: the float model.
        output: where the result goes.
        config: what to do.
        host: the plugins.
        data: samples, instead of the config's.
        calibration: a table with the ranges, instead of any samples; for full quantization.
        settings: the rest.
        emit: told about progress, besides the plugins that observe.

    Raises:
        InputError: the model, the data or the config cannot be used; nothing was written.
        PluginError: a plugin failed; nothing was written.
    """
    rest = settings or Settings()
    match config.common.quant_type:
        case "WEIGHT_QUANT":
            if calibration is not None:
                raise InputError("a calibration table is for FULL_QUANT; weights need no ranges")
            return weight_quant(model, output, config, host, data, rest, emit)
        case "DYNAMIC_QUANT":
            if calibration is not None:
                raise InputError(
                    "a calibration table is for FULL_QUANT; ranges are measured while running here"
                )
            return dynamic_quant(model, output, config, host, data, rest, emit)
        case "FULL_QUANT" if calibration is not None:
            return quant_from_table(model, output, config, host, calibration, rest, emit)
        case "FULL_QUANT":
            return full_quant(model, output, config, host, data, rest, emit)


def plan_job(
    model: Path, config: Config, host: PluginHost, settings: Settings | None = None
) -> Report:
    """What the job would do with every node; touches no data and writes nothing."""
    rest = settings or Settings()
    match config.common.quant_type:
        case "WEIGHT_QUANT":
            return prepare_weight_job(model, config, host, rest, None).report
        case "DYNAMIC_QUANT":
            return prepare_dynamic_job(model, config, host, rest, None).report
        case "FULL_QUANT":
            asked = asked_methods(config, host)
            return prepare_job(model, config, host, rest, None, asked).report
