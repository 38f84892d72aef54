"""The recipes. ``full`` is full quantization, its stages in their order; ``calibrate`` a part."""

from __future__ import annotations

from ptq_core.jobs.calibrate import CalibrationReport, MethodReport, calibration_job
from ptq_core.jobs.choices import find_target
from ptq_core.jobs.full import full_quant, plan_job, run, tensor_parameters
from ptq_core.jobs.report import Report, Settings

__all__ = [
    "CalibrationReport",
    "MethodReport",
    "Report",
    "Settings",
    "calibration_job",
    "find_target",
    "full_quant",
    "plan_job",
    "run",
    "tensor_parameters",
]
