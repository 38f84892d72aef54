"""PACKED and ENTROPY: integer weights in few bytes that a stock runtime decodes when it loads them.

Both store codes as constants and a function of standard ONNX operators, which onnxruntime computes
once, when the session is created.
"""

from __future__ import annotations

from collections.abc import Iterator

from ptq_core.api import Encoding, EncodingEntry, NoOptions, hookimpl

ptq_api_version = (1, 0)


def _packed(options: NoOptions) -> Encoding:
    from ptq_encoding_packed.packed import Packed

    return Packed()


def _entropy(options: NoOptions) -> Encoding:
    from ptq_encoding_packed.entropy import Entropy

    return Entropy()


@hookimpl
def ptq_encodings() -> Iterator[EncodingEntry]:
    """Offer PACKED and ENTROPY."""
    yield EncodingEntry(
        name="PACKED",
        summary="codes side by side, 1 to 16 bits each, no bit wasted",
        factory=_packed,
    )
    yield EncodingEntry(
        name="ENTROPY",
        summary="frequent codes in fewer bits; the smallest file that onnxruntime can load",
        factory=_entropy,
    )
