"""Array files as calibration samples: ``input_type = BIN`` and ``input_type = NPY``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ptq_core.api import ModelInput, NoOptions, PreprocessorEntry, hookimpl

if TYPE_CHECKING:
    from ptq_core.builtins.array_readers import BinReader, NpyReader

ptq_api_version = (1, 0)


@hookimpl
def ptq_preprocessors() -> Iterable[PreprocessorEntry]:
    """Offer the readers of raw buffers and of NumPy's own files."""
    yield PreprocessorEntry(
        name="BIN",
        summary="raw little-endian buffers, one full input each",
        factory=_make_bin_reader,
        suffixes=(".bin",),
    )
    yield PreprocessorEntry(
        name="NPY",
        summary="NumPy arrays, .npy and .npz; their shape tells how they are laid out",
        factory=_make_npy_reader,
        suffixes=(".npy", ".npz"),
    )


def _make_bin_reader(model_input: ModelInput, _: NoOptions) -> BinReader:
    from ptq_core.builtins.array_readers import BinReader  # NumPy, only when it is used

    return BinReader(model_input)


def _make_npy_reader(model_input: ModelInput, _: NoOptions) -> NpyReader:
    from ptq_core.builtins.array_readers import NpyReader

    return NpyReader(model_input)
