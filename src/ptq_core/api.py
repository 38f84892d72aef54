"""Everything that a plugin may import; nothing else of ptq is stable.

A plugin that was written against ``API_VERSION`` (major, minor) runs on every host of the same
major and an equal or newer minor version. A plugin states the version it needs as a module-level
``ptq_api_version = (1, 0)``; without it, (1, 0) is assumed.
"""

from __future__ import annotations

from ptq_core.hookspecs import hookimpl
from ptq_core.target_types import (
    Accepts,
    Arithmetic,
    CheckRule,
    Deployment,
    ExtraFile,
    Finding,
    FixedOutput,
    NodeFacts,
    OperatorRule,
    TargetEntry,
    TargetSpec,
)
from ptq_core.targets import target_from_toml
from ptq_core.types import (
    Calibrator,
    CalibratorEntry,
    CommandEntry,
    Encoded,
    Encoding,
    EncodingEntry,
    Event,
    ModelInput,
    NoOptions,
    ObservedTensor,
    Preprocessor,
    PreprocessorEntry,
    QScheme,
    Range,
    Runner,
    RunnerEntry,
)

API_VERSION = (1, 0)

__all__ = [
    "API_VERSION",
    "Accepts",
    "Arithmetic",
    "Calibrator",
    "CalibratorEntry",
    "CheckRule",
    "CommandEntry",
    "Deployment",
    "Encoded",
    "Encoding",
    "EncodingEntry",
    "Event",
    "ExtraFile",
    "Finding",
    "FixedOutput",
    "ModelInput",
    "NoOptions",
    "NodeFacts",
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
