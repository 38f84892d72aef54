"""The recipes full, weight and dynamic, their stages in order; ``run`` takes the config's."""

from __future__ import annotations

from ptq_core.jobs.calibrate import CalibrationReport, MethodReport, calibration_job
from ptq_core.jobs.choices import Device, find_target, named_target
from ptq_core.jobs.dynamic import dynamic_quant
from ptq_core.jobs.full import full_quant, tensor_parameters
from ptq_core.jobs.report import Report, Settings, StoredWeight
from ptq_core.jobs.run import plan_job, run
from ptq_core.jobs.target_trial import arithmetic_problems, data_problems, trial
from ptq_core.jobs.weight import weight_quant

__all__ = [
    "CalibrationReport",
    "Device",
    "MethodReport",
    "Report",
    "Settings",
    "StoredWeight",
    "arithmetic_problems",
    "calibration_job",
    "data_problems",
    "dynamic_quant",
    "find_target",
    "full_quant",
    "named_target",
    "plan_job",
    "run",
    "tensor_parameters",
    "trial",
    "weight_quant",
]
