"""The encoding that needs none: a whole byte, or two, for each code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptq_core.api import Encoded, EncodingEntry, hookimpl

ptq_api_version = (1, 0)


class Plain:
    """Codes as int8, above 8 bits as int16; every runtime casts those."""

    def encode(self, codes: Any, bits: int, opset: int, /) -> Encoded:
        """The codes themselves."""
        return Encoded(constants={"codes": codes.astype(_kind(bits), copy=False)})

    def decode(self, constants: Mapping[str, Any], bits: int, shape: Sequence[int], /) -> Any:
        """The codes that :meth:`encode` stored."""
        return constants["codes"].astype(_kind(bits), copy=False).reshape(shape)


def _kind(bits: int) -> str:
    return "int8" if bits <= 8 else "int16"


@hookimpl
def ptq_encodings() -> Iterator[EncodingEntry]:
    """Offer PLAIN."""
    yield EncodingEntry(
        name="PLAIN", summary="a byte for each weight, two above 8 bits", factory=lambda _: Plain()
    )
