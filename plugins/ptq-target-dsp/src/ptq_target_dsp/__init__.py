"""The target DSP: integer models for Hexagon's tensor processor (HTP). Its rules: dsp.toml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from ptq_core.api import (
    Arithmetic,
    Finding,
    FixedOutput,
    NodeFacts,
    TargetEntry,
    TargetSpec,
    hookimpl,
    target_from_toml,
)

ptq_api_version = (1, 0)

# With 16 bits the HTP ignores all other parameters of these results.
_FIXED_16 = {
    "HardSigmoid": FixedOutput(scale=1 / 65536, zero_point=0),
    "Sigmoid": FixedOutput(scale=1 / 65536, zero_point=0),
    "Softmax": FixedOutput(scale=1 / 65536, zero_point=0),
    "Tanh": FixedOutput(scale=1 / 32768, zero_point=32768),
}
_WRONG_16 = {"Log": "the HTP's Log of 16-bit integers is wrong"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DspOptions:
    """Options of the target, the section ``[target.DSP]``.

    Attributes:
        activation_bits: width of activations; weights have 8 bits in any case.
        integer_inputs_outputs: the float inputs and outputs of the graph become integers.
    """

    activation_bits: Literal[8, 16] = 8
    integer_inputs_outputs: bool = False


def configure(spec: TargetSpec, options: DspOptions) -> TargetSpec:
    """The spec that the options ask for."""
    spec = replace(spec, integer_inputs_outputs=options.integer_inputs_outputs)
    if options.activation_bits == 8:
        return spec
    rules = dict(spec.operators)
    for name, fixed in _FIXED_16.items():
        rules[name] = replace(rules[name], fixed_output=fixed)
    for name, reason in _WRONG_16.items():
        rules[name] = replace(rules[name], quantize="never", reason=reason)
    # QuantizeLinear knows 16 bits from opset 21 on
    return replace(
        spec,
        activation=replace(spec.activation, dtype="uint16"),
        minimum_opset=21,
        operators=rules,
    )


def _keep_float(facts: NodeFacts) -> str | None:
    from ptq_target_dsp.conditions import keep_float

    return keep_float(facts)


def _check(model: bytes | Path) -> Iterator[Finding]:
    from ptq_target_dsp.findings import find  # imports onnx

    return find(model)


def _arithmetic() -> Arithmetic:
    from ptq_target_dsp.arithmetic import HexagonArithmetic  # imports numba

    return HexagonArithmetic()


@hookimpl
def ptq_targets() -> Iterator[TargetEntry]:
    """Offer DSP."""
    entry = target_from_toml(files(__package__) / "dsp.toml")
    yield replace(
        entry,
        options=DspOptions,
        configure=configure,
        keep_float=_keep_float,
        check=_check,
        arithmetic=_arithmetic,
    )
