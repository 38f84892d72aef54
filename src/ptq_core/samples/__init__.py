"""Calibration samples: find them, pair them over the inputs, read ahead, check and batch them.

A sample is a dict from input name to array, with the batch axis. Nothing keeps samples: they are
read again for every pass.
"""

from __future__ import annotations

from ptq_core.samples.arrays import samples_from_arrays
from ptq_core.samples.batches import Batch, add_to_digest, batches, fixed_batches, read_ahead
from ptq_core.samples.files import samples_from_files
from ptq_core.samples.sample import Feeds, Sample, Samples, check_array, layout_of, model_inputs

__all__ = [
    "Batch",
    "Feeds",
    "Sample",
    "Samples",
    "add_to_digest",
    "batches",
    "check_array",
    "fixed_batches",
    "layout_of",
    "model_inputs",
    "read_ahead",
    "samples_from_arrays",
    "samples_from_files",
]
