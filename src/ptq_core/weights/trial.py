"""The model with its weights as inputs: what the outputs make of other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.arithmetic import cosine
from ptq_core.errors import InputError, Location, PluginError, Problem
from ptq_core.graph.model import copy_of, runnable
from ptq_core.graph.operators import array_of, dimensions
from ptq_core.plugins import Registered, blame
from ptq_core.samples import Sample, batches
from ptq_core.types import ModelInput, Runner, RunnerEntry

_ROWS = 4  # of one run, where the model takes more than one sample at a time
_OPEN = 16  # length of an axis that the model leaves open, in generated input
_LOW, _HIGH = 0.1, 1.0  # of generated floats; seed-semantics section 8.2

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How close the outputs are to the float model's.

    Attributes:
        cosine: mean over float outputs and samples.
        noise: power of the difference by power of the float output, likewise.
    """

    cosine: float
    noise: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Some samples that are run together, and what the float model made of them.

    Attributes:
        name: the samples', for messages.
        feeds: without the weights.
        rows: how many samples.
        outputs: the float ones.
    """

    name: str
    feeds: Mapping[str, NDArray[Any]]
    rows: int
    outputs: Mapping[str, NDArray[Any]]


class Trial:
    """Runs the model with changed weights and compares its outputs with the float model's.

    The weights are inputs of the session, so that trying others costs a run and no new session.
    Those in bodies of If, Loop and Scan cannot become inputs of the model and stay as they are.

    Args:
        model: the float model; it is not changed.
        names: of the weights that may change.
        samples: all are kept, and run in every trial.
        runner: executes the model.
        options: its options.

    Attributes:
        weights: the float ones, by name.
        left_out: names that are constants of bodies.
        runs: how many times the float model's work was done, in samples.

    Raises:
        InputError: there is no sample, or no float output to compare, or outputs are not finite.
        PluginError: the runner cannot load or run the model.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        samples: Sequence[Sample],
        runner: Registered[RunnerEntry],
        options: Any,
    ) -> None:
        known = model.graph.initializers
        self.left_out = tuple(name for name in names if name not in known)
        self.weights = {name: array_of(known[name]) for name in names if name not in self.left_out}
        self.runs = 0
        self._plugin = runner
        with (
            runnable(_with_inputs(model, self.weights)) as form,
            blame(runner.record, "loading the model with its weights as inputs"),
        ):
            self._runner: Runner = runner.entry.factory(form, options)
        together = _may_batch(model)
        self._runs = [
            self._reference(batch.feeds, ", ".join(batch.names[:1]), batch.size if together else 1)
            for batch in batches(iter(samples), lambda: _ROWS if together else 1)
        ]
        if not self._runs:
            raise InputError("there is no sample to compare the outputs on")
        if not self._runs[0].outputs:
            raise InputError(
                "the model has no float output, so that there is nothing to compare",
                hint="set init_scale instead of auto_tune",
            )

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(run.rows for run in self._runs)

    def score(self, changed: Weights, samples: int | None = None) -> Score:
        """What the outputs are like with these weights, the others being float.

        Args:
            changed: weights by name.
            samples: about how many samples to run, the first ones; None for all.
        """
        cosines: list[float] = []
        noises: list[float] = []
        done = 0
        for run in self._runs:
            if samples is not None and done >= samples:
                break
            done += run.rows
            found = self._run(run.feeds, run.rows, run.name, changed)
            for name, wanted in run.outputs.items():
                rows = run.rows if wanted.ndim and len(wanted) == run.rows else 1
                for before, after in zip(
                    wanted.reshape(rows, -1), found[name].reshape(rows, -1), strict=True
                ):
                    both = _compare(before, after)
                    cosines.append(both.cosine)
                    noises.append(both.noise)
        return Score(cosine=float(np.mean(cosines)), noise=float(np.mean(noises)))

    def cosine(self, changed: Weights) -> float:
        """Mean cosine over float outputs and samples."""
        return self.score(changed).cosine

    def _reference(self, feeds: Mapping[str, NDArray[Any]], name: str, rows: int) -> _Run:
        found = self._run(feeds, rows, name, {})
        outputs = {key: array for key, array in found.items() if array.dtype.kind == "f"}
        problems = [
            Problem(
                message=f"the float model's output is not finite on {name}",
                location=Location(tensor=key),
                hint="give other calibration data",
            )
            for key, array in outputs.items()
            if not np.isfinite(array).all()
        ]
        if problems:
            raise InputError(problems=problems)
        return _Run(name=name, feeds=feeds, rows=rows, outputs=outputs)

    def _run(
        self, feeds: Mapping[str, NDArray[Any]], rows: int, name: str, changed: Weights
    ) -> Mapping[str, NDArray[Any]]:
        self.runs += rows
        with blame(self._plugin.record, f"running {name}"):
            return self._runner.run({**feeds, **self.weights, **changed})


def generated_samples(inputs: Sequence[ModelInput], count: int) -> list[Sample]:
    """Samples for a model of which no data is there; always the same.

    Floats are uniform in [0.1, 1), integers and booleans 0 or 1. An open batch is 1, any other open
    axis 16.

    Source   seed-semantics section 8.2 (MindSpore Lite).
    """
    random = np.random.default_rng(0)
    return [
        Sample(
            name=f"generated sample {index}",
            feeds={item.name: _generated(item, random) for item in inputs},
        )
        for index in range(count)
    ]


def generated_trial(
    model: ir.Model,
    names: Sequence[str],
    inputs: Sequence[ModelInput],
    count: int,
    runner: Registered[RunnerEntry],
    options: Any,
) -> Trial:
    """A trial on generated input.

    Raises:
        InputError: the model does not run on it.
    """
    samples = generated_samples(inputs, count)
    try:
        return Trial(model, names, samples, runner, options)
    except PluginError as error:
        shapes = ", ".join(
            f"{name} {list(array.shape)}" for name, array in samples[0].feeds.items()
        )
        raise InputError(
            f"the model does not run on generated input ({shapes}): {error}",
            hint="give calibration data, or the shapes with --input-shape",
        ) from error


def _generated(item: ModelInput, random: np.random.Generator) -> NDArray[Any]:
    shape = tuple(
        length if isinstance(length, int) else 1 if axis == 0 else _OPEN
        for axis, length in enumerate(item.shape)
    )
    kind = np.dtype(item.dtype)
    if kind.kind == "f":
        return np.asarray(random.uniform(_LOW, _HIGH, shape), kind)
    return np.asarray(random.integers(0, 2, shape), kind)


def _with_inputs(model: ir.Model, names: Weights) -> ir.Model:
    """A copy of the model that takes these initializers as inputs."""
    copy = copy_of(model)
    for name, array in names.items():
        value = copy.graph.initializers.pop(name)
        value.const_value = None
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        copy.graph.inputs.append(value)
    return copy


def _may_batch(model: ir.Model) -> bool:
    """Whether axis 0 is one open axis of all inputs and outputs."""
    shapes = [dimensions(value) for value in (*model.graph.inputs, *model.graph.outputs)]
    axes = {shape[0] if shape else None for shape in shapes}
    return len(axes) == 1 and isinstance(next(iter(axes)), str)


def _compare(before: NDArray[Any], after: NDArray[Any]) -> Score:
    """Of one output of one sample; what is not finite is as far off as can be."""
    wanted = before.astype(np.float64)
    found = after.astype(np.float64)
    if not np.isfinite(found).all():
        return Score(cosine=0.0, noise=np.inf)
    power = float((wanted**2).sum())
    noise = float(((wanted - found) ** 2).sum())
    return Score(cosine=cosine(wanted, found), noise=noise / power if power else noise)
