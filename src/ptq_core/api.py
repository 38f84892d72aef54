"""Everything that a plugin may import; nothing else of ptq is stable.

A plugin that was written against ``API_VERSION`` (major, minor) runs on every host of the same
major and an equal or newer minor version. A plugin states the version it needs as a module-level
``ptq_api_version = (1, 0)``; without it, (1, 0) is assumed.
"""

from __future__ import annotations

from ptq_core.hookspecs import hookimpl
from ptq_core.targets import target_from_toml
from ptq_core.types import (
    Calibrator,
    CalibratorEntry,
    CommandEntry,
    Encoded,
    Encoding,
    EncodingEntry,
    Event,
    FixedOutput,
    ModelInput,
    NoOptions,
    ObservedTensor,
    OperatorRule,
    Preprocessor,
    PreprocessorEntry,
    QScheme,
    Range,
    Runner,
    RunnerEntry,
    TargetEntry,
    TargetSpec,
)

API_VERSION = (1, 0)

__all__ = [
    "API_VERSION",
    "Calibrator",
    "CalibratorEntry",
    "CommandEntry",
    "Encoded",
    "Encoding",
    "EncodingEntry",
    "Event",
    "FixedOutput",
    "ModelInput",
    "NoOptions",
    "ObservedTensor",
    "OperatorRule",
    "Preprocessor",
    "PreprocessorEntry",
    "QScheme",
    "Range",
    "Runner",
    "RunnerEntry",
    "TargetEntry",
    "TargetSpec",
    "hookimpl",
    "target_from_toml",
]
