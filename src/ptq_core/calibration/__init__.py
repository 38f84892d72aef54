"""Run the float model over the samples and let calibrators watch every tensor that needs a range.

Three things happen side by side: a thread decodes the samples to come, the runner executes the
model, another thread takes statistics of the run before. Memory holds a few runs, whatever the
number of samples. Several methods may watch the same pass.
"""

from __future__ import annotations

from ptq_core.calibration.run import Emit, calibrate, observe, open_session
from ptq_core.calibration.session import fixed_batch, may_batch
from ptq_core.calibration.tensor import Method
from ptq_core.calibration.watch import Calibration, Watch

__all__ = [
    "Calibration",
    "Emit",
    "Method",
    "Watch",
    "calibrate",
    "fixed_batch",
    "may_batch",
    "observe",
    "open_session",
]
