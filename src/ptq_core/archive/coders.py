"""Encodings of plugins, as archives use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptq_core.errors import PluginError
from ptq_core.plugins import PluginHost, PluginRecord, blame
from ptq_core.types import Encoding

CODER = "RANS"  # what codes are stored in
_OPSET = 13  # it makes no graph

Codes = Any  # an array of int8 or int16


class Coders:
    """Encodings by name, made at the first use.

    Attributes:
        versions: by the names of those that were asked for, distribution and version of the plugin.
    """

    def __init__(self, host: PluginHost) -> None:
        self._host = host
        self._made: dict[str, tuple[PluginRecord, Encoding]] = {}
        self.versions: dict[str, str] = {}

    def get(self, name: str) -> str:
        """Make an encoding, and return the name as its plugin spells it.

        Raises:
            InputError: there is none of this name.
            PluginError: it cannot be made.
        """
        registered = self._host.encoding(name)
        entry, record = registered.entry, registered.record
        if entry.name not in self._made:
            with blame(record, f"making the encoding {entry.name}"):
                self._made[entry.name] = record, entry.factory(entry.options())
        self.versions[entry.name] = f"{record.name} {record.version}"
        return entry.name

    def _find(self, name: str) -> tuple[PluginRecord, Encoding]:
        if name not in self._made:
            name = self.get(name)
        return self._made[name]

    # ------------------------------------------------------------------------------- packing

    def compress(self, codes: Codes, bits: int) -> bytes:
        """The codes, entropy-coded, after a look at whether they come back.

        Raises:
            InputError: the encoding that does it is not there.
            PluginError: it failed.
        """
        record, coder = self._find(CODER)
        with blame(record, "coding integers"):
            stream = coder.encode(codes, bits, _OPSET).constants["stream"]
            back = coder.decode({"stream": stream}, bits, codes.shape)
        if not np.array_equal(back, codes):
            raise PluginError(f"{record}: decodes other codes than it was given")
        return np.asarray(stream, np.uint8).tobytes()

    def inverted(
        self, name: str, arrays: Mapping[str, Any], bits: int, shape: Sequence[int], opset: int
    ) -> Codes:
        """The codes in constants, after a look at whether they are encoded like this again.

        Raises:
            InputError: there is no such encoding.
            PluginError: it failed, or gives other constants.
        """
        record, encoding = self._find(name)
        with blame(record, "decoding constants"):
            codes = np.asarray(encoding.decode(arrays, bits, shape))
            again = encoding.encode(codes, bits, opset).constants
            same = len(again) == len(arrays) and all(
                _equal(np.asarray(one), other)
                for one, other in zip(again.values(), arrays.values(), strict=True)
            )
        if not same or codes.dtype not in (np.int8, np.int16):
            raise PluginError(f"{record} would encode the codes in another way")
        return codes

    # ----------------------------------------------------------------------------- unpacking

    def decode(self, name: str, data: bytes, bits: int, shape: Sequence[int]) -> Codes:
        """The codes that :meth:`compress` was given.

        Raises:
            ValueError: the data are damaged.
        """
        record, coder = self._find(name)
        with blame(record, "decoding integers"):
            try:
                return coder.decode({"stream": np.frombuffer(data, np.uint8)}, bits, shape)
            except (ValueError, MemoryError) as error:
                damaged = f"{name}: {error}"
        raise ValueError(damaged)

    def encode(self, name: str, codes: Codes, bits: int, opset: int) -> Mapping[str, Any]:
        """The constants that :meth:`inverted` was given.

        Raises:
            PluginError: the encoding failed.
        """
        record, encoding = self._find(name)
        with blame(record, "encoding constants"):
            constants = encoding.encode(codes, bits, opset).constants
            return {short: np.asarray(array) for short, array in constants.items()}


def _equal(one: Any, other: Any) -> bool:
    return bool(
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )
