"""From a weight to its codes, as the config asks for it: by a grid, from samples, or by a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ptq_core.config import resolve_path
from ptq_core.emission.weights import Form
from ptq_core.errors import Location, ModelError, NumericError
from ptq_core.graph import operators as ops
from ptq_core.jobs.activations import activations
from ptq_core.jobs.job import Job
from ptq_core.jobs.probes import Probes
from ptq_core.planning import ConstantPlan, weight_values
from ptq_core.plugins import Registered
from ptq_core.types import Event, RunnerEntry
from ptq_core.weights.balance import input_scale
from ptq_core.weights.gptq import gptq
from ptq_core.weights.grid import quantize_weight
from ptq_core.weights.hessian import Hessian, layer_input
from ptq_core.weights.mixed import quantize_step, raised, step_for
from ptq_core.weights.quantized import QuantizedWeight
from ptq_core.weights.scales import scales_from_json
from ptq_core.weights.trial import Trial, generated_trial
from ptq_core.weights.tuning import auto_tune
from ptq_core.weights.zero_points import with_zero_points

Quantize = Callable[[ConstantPlan, NDArray[Any]], QuantizedWeight]

BYTE = 8  # up to this width the whole range is the poorer grid: many codes go to rare weights
_MATRICES = 1 << 30  # bytes of what is measured of layers' inputs at a time
_LARGEST = 8192  # inputs of a layer for which a matrix of their products is made
_NAMED = 5


def quantizer(
    job: Job,
    probes: Probes,
    steps: Mapping[str, float],
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> Quantize:
    """The function from a weight to its codes; measures on the samples what it has to know.

    Args:
        job: what is asked for.
        probes: samples.
        steps: of mixed bits, by :func:`find_steps`.
        runner: executes the float model.
        runner_options: its options.
    """
    if job.config.common.bit_num == 0:
        return _by_step(job, steps)
    if job.config.weight.quant_strategy == "GPTQ":
        return _compensated(job, probes, runner, runner_options)
    return _on_grid(job)


def weight_form(job: Job) -> Form:
    """How the weights become float again."""
    on_the_fly = job.target.spec.on_the_fly
    if job.config.weight.dequant_strategy is None or on_the_fly == "none":
        return "folded"
    return on_the_fly


def _has_zero_point(job: Job, plan: ConstantPlan) -> bool:
    """Whether an integer is subtracted from the codes; what a table gives takes any offset."""
    return weight_form(job) == "dequantize" and not plan.table


def _on_grid(job: Job) -> Quantize:
    """Every weight by itself, on the grid that the width asks for."""
    weight, bits = job.config.weight, job.config.common.bit_num
    strategy = weight.quant_strategy or ("MSE" if bits <= BYTE else "MAX_MIN")
    sums = _kept_sums(job)

    def quantize(plan: ConstantPlan, array: NDArray[Any]) -> QuantizedWeight:
        divisor = input_scale(array, plan.axes) if plan.balanced else None
        found = quantize_weight(
            array if divisor is None else array / divisor,
            bits,
            plan.axes,
            strategy="MAX_MIN" if strategy == "MAX_MIN" else "MSE",
            correct=weight.bias_correction,
            groups=plan.group_size or None,
        )
        if _has_zero_point(job, plan):
            return with_zero_points(array, found, keep_sums=plan.tensor in sums)
        return replace(found, input_scale=divisor)

    return quantize


# ------------------------------------------------------------------------- with compensated errors


def _compensated(
    job: Job, probes: Probes, runner: Registered[RunnerEntry], runner_options: Any
) -> Quantize:
    """Codes that keep the outputs of layers on the samples (GPTQ), where that can be measured."""
    layers, round_alone = _layers(job), _on_grid(job)
    chunks = _chunks(job, layers)
    measured: dict[str, NDArray[np.float64]] = {}
    left_out = [one.tensor for one in job.report.plan.constants if one.tensor not in chunks]
    if left_out:
        shown = ", ".join(left_out[:_NAMED])
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        job.report.notes.append(
            f"GPTQ is for weights of Conv, MatMul and Gemm with at most {_LARGEST} inputs; rounded "
            f"one by one: {shown}{more}"
        )

    def quantize(plan: ConstantPlan, array: NDArray[Any]) -> QuantizedWeight:
        start = round_alone(plan, array)
        if plan.tensor not in chunks:
            return start
        if plan.tensor not in measured:
            measured.clear()
            chunk = {name: layers[name] for name in chunks[plan.tensor]}
            start_time = time.perf_counter()
            with job.stage("calibrate"):
                measured.update(_products(job, chunk, probes, runner, runner_options))
            spent = time.perf_counter() - start_time  # it is in the middle of the stage "weights"
            job.report.seconds["weights"] = job.report.seconds.get("weights", 0.0) - spent
        products, divisor = measured[plan.tensor], start.input_scale
        if divisor is not None:  # what the layer multiplies by the divided weights
            products = products * np.outer(divisor.ravel(), divisor.ravel())
            array = array / divisor
        node = layers[plan.tensor][0]
        found = gptq(
            array,
            products,
            replace(start, input_scale=None),
            ops.channel_axis(node, array.ndim),
            correct=job.config.weight.bias_correction,
            refit=not _has_zero_point(job, plan),
        )
        return replace(found, input_scale=divisor)

    return quantize


def _layers(job: Job) -> dict[str, list[ir.Node]]:
    """The nodes that read each weight, of weights whose inputs can be measured."""
    graph = job.prepared.model.graph
    values = weight_values(job.prepared.model, job.report.plan)
    found = {}
    for plan in job.report.plan.constants:
        readers = [use.node for use in values[plan.tensor].uses()]
        measurable = all(
            node.graph is graph
            and node.op_type in ops.LINEAR
            and node.inputs[1] is values[plan.tensor]
            and layer_input(node, plan.shape) is not None
            for node in readers
        )
        if measurable and not plan.in_body:
            found[plan.tensor] = readers
    return found


def _chunks(job: Job, layers: Mapping[str, list[ir.Node]]) -> dict[str, list[str]]:
    """For each weight those that are measured together with it, as many as memory allows."""
    chunks: dict[str, list[str]] = {}
    current: list[str] = []
    taken = 0
    for plan in job.report.plan.constants:
        facts = layer_input(layers[plan.tensor][0], plan.shape) if plan.tensor in layers else None
        if facts is None or facts.inputs > _LARGEST:
            continue
        size = 4 * facts.groups * facts.inputs**2
        if current and taken + size > _MATRICES:
            current, taken = [], 0
        current.append(plan.tensor)
        taken += size
        chunks[plan.tensor] = current
    return chunks


def _products(
    job: Job,
    layers: Mapping[str, list[ir.Node]],
    probes: Probes,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> dict[str, NDArray[np.float64]]:
    """``X^T X`` of the inputs of these layers, over the samples."""
    shapes = {plan.tensor: plan.shape for plan in job.report.plan.constants}
    hessians: dict[str, Hessian] = {}
    readers: dict[str, list[str]] = {}  # tensor that is read -> weights
    for name, nodes in layers.items():
        facts = layer_input(nodes[0], shapes[name])
        if facts is None:
            raise AssertionError(f"'{name}' cannot be measured")
        hessians[name] = Hessian(facts)
        for node in nodes:
            source = node.inputs[0]
            if source is not None and source.name:
                readers.setdefault(source.name, []).append(name)
    for found in activations(job, readers, probes.kept, runner, runner_options, "calibrate"):
        for read, names in readers.items():
            for name in names:
                hessians[name].add(found[read])
    return {name: one.matrix() for name, one in hessians.items()}


# ------------------------------------------------------------------------------------- mixed bits


def find_steps(
    job: Job, probes: Probes, runner: Registered[RunnerEntry], runner_options: Any
) -> dict[str, float]:
    """A step for each weight: given, searched for together, or from the error that it may make."""
    mixed = job.config.mixed
    plans = {plan.tensor: plan for plan in job.report.plan.constants}
    if mixed.scales:
        path, note = resolve_path(job.config, mixed.scales)
        job.report.notes += [note] if note else []
        return scales_from_json(path, list(plans))
    values = weight_values(job.prepared.model, job.report.plan)
    with job.stage("tune"):
        steps = _tuned(job, probes, runner, runner_options) if mixed.auto_tune else {}
        for name, plan in plans.items():
            if name not in steps:
                with named(name):
                    axes = () if plan.table else plan.axes
                    steps[name] = step_for(ops.array_of(values[name]), mixed.init_scale, axes)
    return steps


def _by_step(job: Job, steps: Mapping[str, float]) -> Quantize:
    sums = _kept_sums(job)

    def quantize(plan: ConstantPlan, array: NDArray[Any]) -> QuantizedWeight:
        found = quantize_step(array, steps[plan.tensor], sums.get(plan.tensor, ()))
        if raised(found, steps[plan.tensor]):
            job.report.warnings.append(
                f"'{plan.tensor}': its step was raised to {float(found.scale.max()):g}, for codes "
                "have at most 16 bits"
            )
        return found

    return quantize


def _kept_sums(job: Job) -> dict[str, tuple[int, ...]]:
    """Axes of the output channels of weights whose channels are to keep their sum: of Conv."""
    if not job.config.weight.bias_correction:
        return {}
    values = weight_values(job.prepared.model, job.report.plan)
    return {
        plan.tensor: plan.axes
        for plan in job.report.plan.constants
        if all(use.node.op_type == "Conv" for use in values[plan.tensor].uses())
    }


def _tuned(
    job: Job,
    probes: Probes,
    runner: Registered[RunnerEntry],
    runner_options: Any,
) -> dict[str, float]:
    """The steps at which the file is small and the outputs are close."""
    names = [plan.tensor for plan in job.report.plan.constants if not plan.in_body]
    model = job.prepared.model
    if probes.generated:
        count = len(probes.kept)
        trial = generated_trial(model, names, job.inputs, count, runner, runner_options)
    else:
        trial = Trial(model, names, probes.kept, runner, runner_options)
    found = auto_tune(
        trial,
        _kept_sums(job),
        target=job.config.mixed.target_cosine,
        progress=lambda done, total: job.listeners(
            Event(stage="tune", kind="advance", done=done, total=total)
        ),
    )
    job.report.notes.append(
        f"auto_tune: cosine {found.cosine:.4f} on {len(probes.kept)} "
        f"{'generated' if probes.generated else 'calibration'} samples, found in "
        f"{found.probes} runs of one weight each and {found.evaluations} of all"
    )
    if probes.generated:
        job.report.warnings.append(
            "auto_tune looked at generated input, which may tell little about real input: give data"
        )
    return dict(found.steps)


@contextmanager
def named(tensor: str) -> Iterator[None]:
    """Say which weight it is in errors about its numbers."""
    try:
        yield
    except NumericError as error:
        (problem,) = error.problems
        raise ModelError(
            problem.message, location=Location(tensor=tensor), hint=problem.hint
        ) from error
