"""Pictures as calibration samples: ``input_type = IMAGE``."""

from __future__ import annotations

from collections.abc import Iterable

from ptq_core.api import ModelInput, Preprocessor, PreprocessorEntry, hookimpl
from ptq_preprocess_image.options import ImageOptions

ptq_api_version = (1, 0)

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".jp2"),
)


@hookimpl
def ptq_preprocessors() -> Iterable[PreprocessorEntry]:
    """Offer the reader of pictures."""
    yield PreprocessorEntry(
        name="IMAGE",
        summary="pictures: colour conversion, normalization, resize, centre crop",
        factory=_make_reader,
        suffixes=SUFFIXES,
        options=ImageOptions,
    )


def _make_reader(model_input: ModelInput, options: ImageOptions) -> Preprocessor:
    from ptq_preprocess_image.pipeline import ImageReader  # OpenCV, only when it is used

    return ImageReader(model_input, options)
