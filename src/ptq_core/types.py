"""Frozen data and protocols that cross the plugin boundary.

Nothing here imports more than the standard library at run time, so that a plugin's module can be
imported in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]
    FloatArray: TypeAlias = NDArray[np.floating[Any]]

Layout = Literal["NCHW", "NHWC"]


# ------------------------------------------------------------------------------------ numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The real interval that a tensor's integers have to represent; what a calibrator returns."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QScheme:
    """How reals become integers: storage type, symmetric or not, narrow or full integer range.

    Attributes:
        dtype: ``int8``, ``uint8``, ``int16`` or ``uint16``.
        symmetric: the zero point is 0 (or the middle of an unsigned type) and the range
            ``[-a, a]``.
        narrow_range: the lowest code of a signed type is left out (-127..127 for ``int8``).
    """

    dtype: Literal["int8", "uint8", "int16", "uint16"] = "uint8"
    symmetric: bool = False
    narrow_range: bool = False

    @property
    def bits(self) -> int:
        """Width of one code."""
        return int(self.dtype.removeprefix("u").removeprefix("int"))

    @property
    def signed(self) -> bool:
        """Whether codes can be negative."""
        return not self.dtype.startswith("u")

    @property
    def qmin(self) -> int:
        """Lowest code."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + int(self.narrow_range)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


# -------------------------------------------------------------------------------- calibrators


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """The options of an entry that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedTensor:
    """The activation that one calibrator watches.

    Attributes:
        name: the tensor.
        scheme: how its codes will be.
        bounds: the interval that its values cannot leave (it comes out of a Relu or Clip), None
            where it has none.
    """

    name: str
    scheme: QScheme
    bounds: tuple[float, float] | None = None


class Calibrator(Protocol):
    """Watches one tensor over all samples and ends with its range: a streaming reducer.

    Memory is bounded by the calibrator's own state; nothing of a sample is kept. The result must
    not depend on the order of the samples nor on how they are split over calibrators that are
    merged afterwards.

    Two methods are optional. ``settled() -> bool``: True once nothing that it could still see would
    change its result; then it is shown no more, and a tensor of which all calibrators have settled
    is no longer fetched from the runtime, which saves time. ``note() -> str | None``: asked once,
    after the last pass, for a sentence that the user should know, such as that an option had no
    effect on this tensor; the report tells equal notes once, with the tensors.

    Only a calibrator whose ``end_pass`` has just asked for another pass sees the values again.
    """

    def observe(self, values: FloatArray, /) -> None:
        """Take in the tensor's values for one sample (read-only, finite, any shape).

        Different tensors' calibrators are called from different threads, one's own never at once.
        """

    def end_pass(self) -> bool:
        """Called when every sample was seen once; True asks for another pass over the same."""

    def merge(self, other: Self, /) -> None:
        """Take in what another calibrator of the same kind has seen of other samples."""

    def result(self) -> Range:
        """The range, after the last pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratorEntry:
    """A calibration algorithm, chosen by ``activation_quant_method = NAME``.

    Attributes:
        name: as users write it; look-up ignores case.
        summary: one line for ``ptq plugins list``.
        factory: makes the calibrator of one tensor from the tensor and the options.
        options: frozen dataclass; its fields are the keys of ``[calibrator.NAME]``.
        aliases: other spellings of the name.
        batched: ``observe`` gives the same result for a batch as for its samples one by one.
        checks_finite: ``observe`` raises FloatingPointError where a value is NaN or infinite; core
            does not look for those then, which saves a pass over the values.
    """

    name: str
    summary: str
    factory: Callable[[ObservedTensor, Any], Calibrator]
    options: type = NoOptions
    aliases: tuple[str, ...] = ()
    batched: bool = False
    checks_finite: bool = False


# ------------------------------------------------------------------------------ preprocessors


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInput:
    """One input of the model, as a preprocessor has to fill it.

    Attributes:
        name: the input's name in the model.
        dtype: NumPy's name of the element type, for example ``float32``.
        shape: the shape of one run; None or a symbol's name where the model leaves it open.
        layout: where the channels of a 4-D input are, None where that is unknown.
        data_layout: how 4-D buffers without a shape of their own (BIN) are laid out.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    layout: Layout | None = None
    data_layout: Layout | None = None


class Preprocessor(Protocol):
    """Reads files into samples for one input of the model.

    An error that is the file's fault is a ValueError or an OSError; core adds the file's name.
    Two things are optional: an attribute ``notes``, sentences that core tells the user once, and a
    method ``stack(path)`` for a file that holds all samples, which returns a sequence of them.
    """

    def read(self, path: Path, /) -> Array:
        """The sample in this file, as the model takes it, batch axis included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessorEntry:
    """A way to read samples, chosen by ``input_type = NAME``.

    Attributes:
        name: as users write it; look-up ignores case.
        summary: one line for ``ptq plugins list``.
        factory: makes the preprocessor of one input.
        suffixes: endings, lower case with dot, of the files that are samples.
        options: frozen dataclass; its fields are keys of ``[data_preprocess_param]`` and
            ``[preprocessor.NAME]``.
        aliases: other spellings of the name.
    """

    name: str
    summary: str
    factory: Callable[[ModelInput, Any], Preprocessor]
    suffixes: tuple[str, ...]
    options: type = NoOptions
    aliases: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------ runners


class Runner(Protocol):
    """Executes a float model.

    Every output of the model it was made from is returned, under its name.
    """

    def run(
        self, feeds: Mapping[str, Array], /, out: Mapping[str, Array] | None = None
    ) -> Mapping[str, Array]:
        """Outputs for one run.

        Args:
            feeds: an array for each input.
            out: arrays that outputs may be written to, to save allocations. A runner may ignore
                them; the caller uses what is returned.
        """

    def executed_model(self) -> bytes | None:
        """The graph as the runtime really executes it, a serialized ONNX model, if it can tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerEntry:
    """A runtime that executes models during calibration and verification.

    Attributes:
        name: as users write it in ``[runner] name = NAME``; look-up ignores case.
        summary: one line for ``ptq plugins list``.
        factory: makes a runner from a serialized model (its bytes, or a file where it is too
            large for that) and the options.
        faithful: the same without the runtime's own rewriting of the graph, which may quantize or
            merge more than the file says; None: ``factory`` does no such thing.
        options: frozen dataclass; its fields are the keys of ``[runner.NAME]``.
        aliases: other spellings of the name.
    """

    name: str
    summary: str
    factory: Callable[[bytes | Path, Any], Runner]
    faithful: Callable[[bytes | Path, Any], Runner] | None = None
    options: type = NoOptions
    aliases: tuple[str, ...] = ()


# -------------------------------------------------------------------- encodings, commands, events


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Integer codes as constants of a model, and how a runtime gets them back.

    Attributes:
        constants: arrays by short names (``data``), in the order in which the function takes them.
        function: an ONNX function in textual syntax, ``<domain, opset_import> Name (a, b, shape) =>
            (codes) { ... }``, of standard operators only. Its inputs are the constants and then
            ``shape``, an int64 vector; its output are the codes as float32 of that shape. Core
            replaces domain and opset; equal names mean equal functions. Empty where the one
            constant holds the codes in an integer type, so that a Cast is enough.
    """

    constants: Mapping[str, Array]
    function: str = ""


class Encoding(Protocol):
    """Stores integer codes of a few bits each, and gives them back exactly."""

    def encode(self, codes: Array, bits: int, opset: int, /) -> Encoded:
        """Store codes, ``-2**(bits-1) <= code < 2**(bits-1)``; the same codes, the same result.

        Args:
            codes: int8 or int16, any shape.
            bits: 1 to 16.
            opset: of the model, at least 13: what the function may use.
        """

    def decode(self, constants: Mapping[str, Array], bits: int, shape: Sequence[int], /) -> Array:
        """The codes (int8, or int16 above 8 bits) that :meth:`encode` stored, in this shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingEntry:
    """A way to store integer weights, chosen by ``encoding = NAME`` in ``[weight_quant_param]``.

    Attributes:
        name: as users write it; look-up ignores case.
        summary: one line for ``ptq plugins list``.
        factory: makes the encoding from the options.
        options: frozen dataclass; its fields are the keys of ``[encoding.NAME]``.
        aliases: other spellings of the name.
        portable: a runtime decodes it with standard operators; otherwise it is for archives
            (``ptq pack``) only, and ``Encoded.function`` is empty.
    """

    name: str
    summary: str
    factory: Callable[[Any], Encoding]
    options: type = NoOptions
    aliases: tuple[str, ...] = ()
    portable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandEntry:
    """A further subcommand of ``ptq``.

    Attributes:
        name: the word after ``ptq``.
        summary: one line for ``ptq --help``.
        factory: returns the function that is called with the remaining arguments and returns
            the exit code.
        aliases: other spellings of the name.
    """

    name: str
    summary: str
    factory: Callable[[], Callable[[Sequence[str]], int]]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened in a running job.

    Attributes:
        stage: ``prepare``, ``plan``, ``equalize``, ``smooth``, ``load``, ``calibrate``,
            ``correct``, ``tune``, ``weights``, ``emit``, ``verify``, ``compare``, ``check``,
            ``save``, ``pack`` or ``unpack``.
        kind: ``start``, ``advance`` or ``end``.
        done: how much of the stage is done, in its own unit (samples, nodes).
        total: how much there is, None where that is not known.
    """

    stage: str
    kind: Literal["start", "advance", "end"]
    done: int = 0
    total: int | None = None
