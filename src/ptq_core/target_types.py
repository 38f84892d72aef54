"""What a target device is: what it needs, what it takes, and what only code can say of it.

Nothing here imports more than the standard library at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ptq_core.types import NoOptions, QScheme

if TYPE_CHECKING:
    from ptq_core.types import Array, FloatArray

Severity = Literal["error", "warning"]


# -------------------------------------------------------------------------------------- rules


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedOutput:
    """Parameters that a device demands for an operator's output, whatever the data."""

    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorRule:
    """How a device wants one operator type.

    Attributes:
        quantize: ``always``: wherever it computes with activations; ``after``: where its inputs
            are integers already; ``between``: there, and only if an integer operator reads the
            result; ``residual``: where it adds the float result of a convolution to another
            tensor, that other one becomes integer (the device adds while it convolves); ``never``:
            stays float, for ``reason``.
        output: ``quantized``: the device needs an integer result; ``as_needed``: integers only
            where an integer operator reads them, float otherwise; ``float``: the result is float,
            and what is read as integers is quantized behind what the device merges.
        same_parameters: input and output share scale and zero point (data movers).
        per_channel: the weights may have one scale per output channel.
        two_activations: where it has no constant weights, its two activations are multiplied in
            integers (MatMul).
        fuse: activation types that the device merges into this operator; the tensor between
            stays unquantized and the range is fitted into the activation's bounds.
        attributes: allowed values per attribute; others leave the node float.
        fixed_output: parameters that the device demands for the result.
        reason: why the operator is not quantized, or why these attributes are needed.
    """

    quantize: Literal["always", "after", "between", "residual", "never"]
    output: Literal["quantized", "as_needed", "float"] = "quantized"
    same_parameters: bool = False
    per_channel: bool = False
    two_activations: bool = False
    fuse: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[int | float | str, ...]] = field(default_factory=dict)
    fixed_output: FixedOutput | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepts:
    """What the device takes in a quantized file, whoever made it; ``ptq check`` compares with it.

    Attributes:
        activations: types of the codes of activations.
        weights: types of the codes of weights.
        biases: how biases may be: ``int32`` behind a DequantizeLinear, ``float``.
        domains: of operators; "" is ONNX itself.
        operators: the only types that it takes; empty: all that are not forbidden.
        forbidden: types that it does not take, each with the reason.
    """

    activations: tuple[str, ...] = ("int8", "uint8")
    weights: tuple[str, ...] = ("int8", "uint8")
    biases: tuple[str, ...] = ("int32", "float")
    domains: tuple[str, ...] = ("",)
    operators: tuple[str, ...] = ()
    forbidden: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRule:
    """That a target has a rule of ``ptq check``, and what happens there if it is broken.

    Attributes:
        severity: ``error``: the device refuses the file, or computes something wrong; ``warning``:
            it is slower, larger or less accurate than it need be.
        because: what happens on the device; a sentence.
    """

    severity: Severity
    because: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """What a device needs from a quantized model, as data; can be written in TOML.

    Attributes:
        activation: scheme of activations (always per tensor).
        weight: scheme of weights.
        bias: ``int32`` with scale ``s_x * s_w`` and a DequantizeLinear, or ``float``.
        skip_guard: ``per_axis_dequantize``: a layer that stays float between quantized ones is
            fed from a DequantizeLinear of its own with one (equal) scale per channel, so that
            the runtime does not quantize it behind the user's back; ``none``.
        minimum_opset: the opset that the emitted operators need.
        maximum_opset: the newest opset that the device's importer takes, if it has a limit.
        static_shapes: it takes no dimension that is left open.
        integer_inputs_outputs: the float inputs and outputs of the graph become integers.
        runner: the runner that executes models as the device does, if there is one: what it runs in
            float although planned in integers is told.
        merge: operators that the device knows as one and exporters write as several, put together
            before anything else: ``Gelu``, ``LayerNormalization``, ``LpNormalization``.
        operators: the rule of each operator type; a type without one stays float.
        accepts: what it takes in files that others have made.
        checks: the rules of ``ptq check`` that hold for it, by their codes.
        packed_weights: what loads the model knows model-local functions and shifts of integers, or
            folds them first; otherwise weights take whole bytes.
        on_the_fly: how weights that stay integers in memory are dequantized: DequantizeLinear, or
            Cast, Add and Mul where the compiler knows only those; ``none``: they cannot be.
        on_the_fly_operators: whose weights can be; empty for all.
        dynamic_operators: operators that the device computes in integers with activations that are
            quantized while running (MatMul and Gemm as MatMulInteger, Conv as ConvInteger, LSTM as
            com.microsoft's DynamicQuantizeLSTM, Gather as a table of integers); empty: none.
    """

    activation: QScheme
    weight: QScheme
    bias: Literal["int32", "float"] = "int32"
    skip_guard: Literal["none", "per_axis_dequantize"] = "none"
    minimum_opset: int = 13
    maximum_opset: int | None = None
    static_shapes: bool = False
    integer_inputs_outputs: bool = False
    runner: str = ""
    merge: tuple[Literal["Gelu", "LayerNormalization", "LpNormalization"], ...] = ()
    operators: Mapping[str, OperatorRule]
    accepts: Accepts = field(default_factory=Accepts)
    checks: Mapping[str, CheckRule] = field(default_factory=dict)
    packed_weights: bool = True
    on_the_fly: Literal["dequantize", "cast_add_mul", "none"] = "dequantize"
    on_the_fly_operators: tuple[str, ...] = ()
    dynamic_operators: tuple[str, ...] = ()


# ----------------------------------------------------------------- what only code can say of it


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeFacts:
    """A node that the rules would quantize, for :attr:`TargetEntry.keep_float`.

    Attributes:
        op_type: its operator.
        attributes: as written; a missing one has ONNX's default.
        weight_shape: of its constant weights, None where it has none.
        input_shape: of its first input, None where the rank is unknown; open dimensions are None.
        output_shape: of its first output, likewise.
        reads_graph_input: its first input is an input of the model.
    """

    op_type: str
    attributes: Mapping[str, Any]
    weight_shape: tuple[int, ...] | None
    input_shape: tuple[int | None, ...] | None
    output_shape: tuple[int | None, ...] | None
    reads_graph_input: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something in a quantized file that a device does not take, or not well.

    Attributes:
        code: stable, for example ``Q-ZP-NONZERO``; documented under that name.
        severity: ``error`` or ``warning``.
        node: where; "" where it is the whole model's.
        tensor: which one; "" where it is none's.
        message: what was found and what was expected.
        because: what happens on the device if it stays so.
        fix: what to do.
    """

    code: str
    severity: Severity
    node: str = ""
    tensor: str = ""
    message: str
    because: str
    fix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """How the model will be used on the device, for :attr:`TargetEntry.lower`.

    Attributes:
        name: of the model's file without its suffix; extra files are called after it.
        shapes: of every input; -1 where it varies on the device, which ``profiles`` list.
        profiles: the sizes of the varying dimensions, in order, that the device is compiled for.
        rescaled: channels were equalized or smoothed, so that activations are not those of the
            float model.
        options: of the target, as :attr:`TargetEntry.options` makes them.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profiles: Sequence[tuple[int, ...]] = ()
    rescaled: bool = False
    options: Any = field(default_factory=NoOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraFile:
    """A file beside the model.

    Attributes:
        name: with suffix, without folder.
        content: its bytes.
        summary: what it is for, a few words for the report.
    """

    name: str
    content: bytes
    summary: str


class Arithmetic(Protocol):
    """A device's integer arithmetic, to predict its results without it.

    Accumulators are exact; what devices do differently is rounding, saturation and the form of
    scales. Arrays are not changed; results have the shape of the first argument. Codes lie in
    ``[low, high]``.
    """

    def quantize(
        self, values: FloatArray, scale: float, zero_point: int, low: int, high: int, /
    ) -> Array:
        """QuantizeLinear: float32 reals to int32 codes."""

    def requantize(
        self,
        accumulators: Array,
        input_scale: float,
        weight_scale: FloatArray,
        output_scale: float,
        zero_point: int,
        low: int,
        high: int,
        /,
    ) -> Array:
        """Sums of products, int64 within int32, to int32 codes of the layer's output.

        Args:
            accumulators: [..., channels], the bias added.
            input_scale: of the activation.
            weight_scale: float32, [channels] or [1].
            output_scale: of the output.
            zero_point: of the output.
            low: smallest code, that of the merged activation included.
            high: largest code, likewise.
        """

    def dequantize(
        self, accumulators: Array, input_scale: float, weight_scale: FloatArray, /
    ) -> FloatArray:
        """Sums of products to float32 reals, where a layer's result is float; as requantize."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetEntry:
    """A device, chosen by ``target_device = NAME``: data, and functions for what data cannot say.

    Attributes:
        name: as users write it; look-up ignores case.
        summary: one line for ``ptq targets list``.
        spec: what the device needs.
        aliases: other spellings of the name.
        options: frozen dataclass; its fields are the keys of ``[target.NAME]``.
        configure: the spec that the options ask for; needed where there are options.
        keep_float: why a node stays float although its rule would quantize it, None where it does
            not.
        lower: extra files that the device's toolchain needs, made from the quantized model (its
            bytes, or a file where it is too large for that); a ValueError says what the user
            cannot have.
        check: findings that the rules of ``spec.checks`` do not cover.
        arithmetic: makes the device's arithmetic; kernels are imported only then.
    """

    name: str
    summary: str
    spec: TargetSpec
    aliases: tuple[str, ...] = ()
    options: type = NoOptions
    configure: Callable[[TargetSpec, Any], TargetSpec] | None = None
    keep_float: Callable[[NodeFacts], str | None] | None = None
    lower: Callable[[bytes | Path, Deployment], Iterable[ExtraFile]] | None = None
    check: Callable[[bytes | Path], Iterable[Finding]] | None = None
    arithmetic: Callable[[], Arithmetic] | None = None
