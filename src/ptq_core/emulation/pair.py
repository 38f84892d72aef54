"""Two models side by side on the same samples, and a device beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.emulation.closeness import Closeness
from ptq_core.emulation.emulator import Emulator
from ptq_core.emulation.nodes import FloatNodes
from ptq_core.emulation.parameters import Parameters
from ptq_core.emulation.program import make_program
from ptq_core.emulation.steps import Quantized, Watched
from ptq_core.graph.model import runnable, with_outputs
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Sample
from ptq_core.target_types import Arithmetic
from ptq_core.types import Runner, RunnerEntry

Arrays = Mapping[str, NDArray[Any]]

REALS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """How like two versions of a tensor are.

    Attributes:
        cosine: mean over the samples.
        sqnr: signal to noise in dB over all samples together; infinite where nothing differs.
    """

    cosine: float
    sqnr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorComparison:
    """One tensor of both models; ``file`` is what the quantized file says, computed exactly.

    Attributes:
        name: the float model's name for it.
        output: of the model.
        file_to_float: how like the float model's tensor the file's is; None where that has none
            of this name.
        device_to_file: how like the file's tensor the device's is; None without emulation, as all
            that follow.
        device_to_float: how like the float model's tensor the device's is.
        steps: largest difference between the device's codes and the file's.
        differing: share of the codes that differ.
    """

    name: str
    output: bool
    file_to_float: Likeness | None = None
    device_to_file: Likeness | None = None
    device_to_float: Likeness | None = None
    steps: int | None = None
    differing: float | None = None


class Pair:
    """Both models, loaded, and how like their tensors have been so far.

    Args:
        floats: the float model, its types inferred.
        after: the other one, as :func:`~ptq_core.emulation.program.simplified` leaves it.
        runner: executes both; the second one as it is written, where the runner can.
        options: of the runner.
        arithmetic: of the device to emulate, None for none.
    """

    def __init__(
        self,
        floats: ir.Model,
        after: ir.Model,
        runner: Registered[RunnerEntry],
        options: Any,
        arithmetic: Arithmetic | None,
    ) -> None:
        self._record = runner.record
        self._emulator: Emulator | None = None
        if arithmetic is None:
            self._watched = tuple(_same_names(floats, after))
        else:
            nodes = FloatNodes(after, runner, options)
            program = make_program(after, nodes)
            self._emulator = Emulator(program, arithmetic, nodes)
            self._watched = program.watched
        codes = {one.tensor: one.quantized for one in self._watched if one.quantized is not None}
        for value in (value for node in after.graph for value in node.outputs):
            if value.name in codes:
                value.dtype = ir.DataType.from_numpy(codes[value.name].zero_point.dtype)
        entry = runner.entry
        with blame(self._record, "loading the models"):
            self._floats = _open(
                floats, [one.name for one in self._watched], entry.factory, options
            )
            self._file = _open(
                after,
                [one.tensor for one in self._watched],
                entry.faithful or entry.factory,
                options,
            )
        # a model of float16 takes other inputs than what was made of it, which may take codes
        self._codes = input_codes(after)
        self._kinds = {value.name: value.dtype for value in after.graph.inputs}
        self._found: dict[tuple[str, str], Closeness] = {}

    @property
    def tensors(self) -> int:
        """How many are compared."""
        return len(self._watched)

    def add(self, sample: Sample) -> Iterator[str]:
        """Run both, and the device if it is emulated, on a sample; yields each tensor compared."""
        feeds = {name: self._converted(name, array) for name, array in sample.feeds.items()}
        with blame(self._record, f"running {sample.name}"):
            wanted = {**sample.feeds, **self._floats(sample.feeds)}
            file = dict(self._file(feeds))
        for one, codes in self._computed(feeds):
            written = file.pop(one.tensor, None)
            if written is None:  # an output that is an input, or a constant
                continue
            reals = _reals(one, written)
            self._add(one, "file_to_float", wanted.get(one.name), reals)
            if codes is not None:
                made = _reals(one, codes)
                closeness = self._add(one, "device_to_file", reals, made)
                if one.quantized is not None and closeness is not None:
                    closeness.add_codes(written, codes)
                self._add(one, "device_to_float", wanted.get(one.name), made)
            yield one.name

    def _converted(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name in self._codes:
            return self._codes[name].encoded(array)
        kind = self._kinds.get(name)
        return array if kind is None else array.astype(kind.numpy(), copy=False)

    def _computed(self, feeds: Arrays) -> Iterator[tuple[Watched, NDArray[Any] | None]]:
        if self._emulator is None:
            yield from ((one, None) for one in self._watched)
            return
        yield from self._emulator.run(feeds)

    def _add(
        self, one: Watched, kind: str, wanted: NDArray[Any] | None, found: NDArray[Any]
    ) -> Closeness | None:
        if wanted is None or wanted.shape != found.shape or found.dtype.kind not in "fiu":
            return None
        closeness = self._found.setdefault((one.tensor, kind), Closeness())
        closeness.add(wanted, found)
        return closeness

    def result(self) -> tuple[TensorComparison, ...]:
        """All tensors: the outputs, then those first that are the least alike.

        With a device it is its noise that counts, then the file's.
        """
        made = [self._tensor(one) for one in self._watched]
        made = [one for one in made if one.file_to_float or one.device_to_file]

        def order(one: TensorComparison) -> tuple[bool, float, float]:
            return not one.output, _rank(one.device_to_file), _rank(one.file_to_float)

        return tuple(sorted(made, key=order))

    def _tensor(self, one: Watched) -> TensorComparison:
        kinds = ("file_to_float", "device_to_file", "device_to_float")
        found = {kind: self._found.get((one.tensor, kind)) for kind in kinds}
        device = found["device_to_file"]
        likeness: Mapping[str, Any] = {
            kind: None if each is None else Likeness(cosine=each.cosine, sqnr=each.sqnr)
            for kind, each in found.items()
        }
        return TensorComparison(
            name=one.name,
            output=one.output,
            steps=None if device is None else device.steps,
            differing=None if device is None else device.differing,
            **likeness,
        )


def _open(
    model: ir.Model,
    names: Sequence[str],
    factory: Callable[[bytes | Path, Any], Runner],
    options: Any,
) -> Callable[[Arrays], Arrays]:
    """What computes these tensors of a model, those that it has, from its inputs."""
    made = {value.name for node in model.graph for value in node.outputs}
    known = [name for name in dict.fromkeys(names) if name in made]
    if not known:
        return lambda _: {}
    with runnable(with_outputs(model, known)) as form:
        return factory(form, options).run


def _rank(one: Likeness | None) -> float:
    """What to sort by: no number first, for it is the worst, and what is not compared last."""
    if one is None:
        return np.inf
    return -np.inf if np.isnan(one.sqnr) else one.sqnr


def _reals(one: Watched, array: NDArray[Any]) -> NDArray[Any]:
    return array if one.quantized is None else one.quantized.decoded(array)


def input_codes(model: ir.Model) -> dict[str, Quantized]:
    """The inputs of a model that takes codes instead of reals, and what they stand for."""
    parameters = Parameters(model.graph)
    found = (parameters.decode(node) for node in model.graph)
    inputs = {value.name for value in model.graph.inputs}
    return {
        one.quantized.codes: one.quantized
        for one in found
        if one is not None and one.quantized.codes in inputs
    }


def _same_names(floats: ir.Model, after: ir.Model) -> Iterator[Watched]:
    """Float tensors and outputs that both models have; of codes the reals are compared."""
    parameters, outputs = Parameters(after.graph), {value.name for value in after.graph.outputs}
    encoded: dict[str, Quantized] = {}
    for node in after.graph:
        encode = parameters.encode(node)
        if encode is not None:
            known = encode.quantized.codes if encode.quantized.codes in outputs else encode.source
            encoded.setdefault(known, encode.quantized)
    made = {value.name for node in after.graph for value in node.outputs}
    for node in floats.graph:
        for value in node.outputs:
            name = value.name or ""
            comparable = value.dtype in REALS and isinstance(value.type, ir.TensorType)
            if name not in made or not (comparable or name in outputs):
                continue
            codes = encoded.get(name)
            is_codes = codes is not None and (name not in outputs or codes.codes == name)
            yield Watched(
                name=name,
                quantized=codes if is_codes else None,
                tensor=codes.codes if codes is not None and is_codes else name,
                output=name in outputs,
            )
