"""RANS: integer codes in as many bits as their entropy says, for archives (``ptq pack``).

No runtime decodes it; ``ptq unpack`` and ``ptq_core.load`` do.
"""

from __future__ import annotations

from collections.abc import Iterator

from ptq_core.api import Encoding, EncodingEntry, hookimpl

ptq_api_version = (1, 0)


def _make(_: object) -> Encoding:
    from ptq_encoding_rans.stream import Rans  # numba takes a while to import

    return Rans()


@hookimpl
def ptq_encodings() -> Iterator[EncodingEntry]:
    """Offer RANS."""
    yield EncodingEntry(
        name="RANS",
        summary="as few bits as the codes' entropy, for archives only (ptq pack)",
        factory=_make,
        portable=False,
    )
