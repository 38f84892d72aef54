"""Execute a program with a device's arithmetic, a sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptq_core.emulation.nodes import FloatNodes
from ptq_core.emulation.steps import (
    Decode,
    Encode,
    Float,
    Layer,
    Program,
    Quantized,
    Step,
    Watched,
    makes,
    reads,
)
from ptq_core.emulation.sums import (
    Weights,
    activation_weights,
    as_written,
    constant_weights,
    sums_of,
)
from ptq_core.target_types import Arithmetic

Arrays = Mapping[str, NDArray[Any]]

_HUGE = float(np.finfo(np.float32).max)  # stands for what is not bounded; no code is so large


class Emulator:
    """Executes a quantized model as a device does.

    Args:
        program: of the model.
        arithmetic: the device's.
        floats: computes what is float.
    """

    def __init__(self, program: Program, arithmetic: Arithmetic, floats: FloatNodes) -> None:
        self._program, self._arithmetic, self._floats = program, arithmetic, floats
        self._weights: dict[Layer, Weights] = {}
        last = {name: index for index, step in enumerate(program.steps) for name in reads(step)}
        kept = {*program.outputs, *program.constants}
        self._gone: dict[int, list[str]] = {}
        for name, index in last.items():
            if name not in kept:
                self._gone.setdefault(index, []).append(name)

    def run(self, feeds: Arrays) -> Iterator[tuple[Watched, NDArray[Any]]]:
        """What is watched, as soon as it is computed: codes, or an output's values.

        Tensors are dropped after their last use.
        """
        program = self._program
        codes = {one.tensor: one for one in program.watched if one.quantized is not None}
        known: dict[str, NDArray[Any]] = {**program.constants, **feeds}
        for index, step in enumerate(program.steps):
            known.update(self._step(step, known))
            for name in makes(step):
                if name in codes:
                    yield codes[name], known[name]
            for name in self._gone.get(index, ()):
                known.pop(name, None)
        for one in program.watched:
            if one.quantized is None:
                yield one, known[one.tensor]

    def _step(self, step: Step, known: Arrays) -> dict[str, NDArray[Any]]:
        match step:
            case Decode():
                return {step.output: step.quantized.decoded(known[step.quantized.codes])}
            case Encode():
                return {step.quantized.codes: self._encoded(known[step.source], step.quantized)}
            case Layer():
                return self._layer(step, known)
            case Float():
                return self._floats(step.node, known, self._program.constants)

    def _encoded(self, values: NDArray[Any], form: Quantized) -> NDArray[Any]:
        low, high = form.limits
        # what is not a number gets the lowest code, as in onnxruntime; devices are not asked
        reals = np.fmax(values, -np.inf, dtype=np.float32)
        codes = self._arithmetic.quantize(reals, float(form.scale), int(form.zero_point), low, high)
        return np.asarray(codes).astype(form.zero_point.dtype)

    # ------------------------------------------------------------------------------ a layer

    def _layer(self, layer: Layer, known: Arrays) -> dict[str, NDArray[Any]]:
        weights = self._weights_of(layer, known[layer.right.codes])
        left, bias, result = layer.left, weights.bias, layer.result
        sums = sums_of(layer.node, left.centered(known[left.codes]), weights.centered)
        if bias is not None and layer.exact_bias:
            sums += np.asarray(bias, np.int64)
            bias = None
        scale = float(left.scale)
        if result is not None and bias is None:
            low, high = self._limits(result, layer.bounds)
            codes = self._arithmetic.requantize(
                sums, scale, weights.scale, float(result.scale), int(result.zero_point), low, high
            )
            made = np.asarray(codes).astype(result.zero_point.dtype)
            return {result.codes: as_written(layer.node, made)}
        reals = np.asarray(self._arithmetic.dequantize(sums, scale, weights.scale), np.float32)
        if bias is not None:
            reals = reals + bias
        if np.isfinite(layer.bounds).any():
            reals = np.clip(reals, np.float32(layer.bounds[0]), np.float32(layer.bounds[1]))
        reals = as_written(layer.node, reals)
        if result is None:
            return {layer.output: reals}
        return {result.codes: self._encoded(reals, result)}

    def _weights_of(self, layer: Layer, codes: NDArray[Any]) -> Weights:
        if layer.right.codes not in self._program.constants:
            return activation_weights(layer, codes)
        if layer not in self._weights:
            self._weights[layer] = constant_weights(layer, codes)
        return self._weights[layer]

    def _limits(self, result: Quantized, bounds: tuple[float, float]) -> tuple[int, int]:
        """The codes between which a merged activation leaves the result."""
        low, high = result.limits
        ends = self._encoded(np.clip(bounds, -_HUGE, _HUGE), result).astype(np.int64)
        return max(low, int(ends[0])), min(high, int(ends[1]))
