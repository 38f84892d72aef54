"""Bias correction: the twin graph, its arithmetic, and the decision which corrections help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_core.arithmetic import Correction, sqnr
from ptq_core.correction import BiasCorrection, correct_bias
from ptq_core.correction.bias import _improves, solve
from ptq_core.correction.twin import (
    GAINS,
    RIDGE,
    ROUNDING,
    SHARE,
    TINY,
    Twin,
    current_name,
    make_twin,
    state_name,
    updated_name,
)
from ptq_core.graph.model import serialize, with_outputs
from ptq_core.graph.operators import LINEAR
from ptq_core.plugins import Registered, discover
from ptq_core.samples import Batch
from ptq_core.target_types import TargetSpec
from ptq_core.types import RunnerEntry
from tests import tiny_models as tiny
from tests.tiny_models import Arrays, node, normal
from tests.unit import test_emission as emission
from tests.unit.test_emission import Result, float_results, quantized, spread

CUT = 0.5  # ranges of half the width: much is cut off, so means and gains are visibly wrong
NOISE = 2e-6  # of float32 sums in another order, in units of the largest summand
QUANTIZED = "__ptq_quantized"  # behind every name of the quantized half


@pytest.fixture(scope="module")
def cpu() -> TargetSpec:
    return discover().target("CPU").entry.spec


@pytest.fixture(scope="module")
def runner() -> Registered[RunnerEntry]:
    return discover().runner("onnxruntime")


# --------------------------------------------------------------------------------- the regression


def moments_of(difference: np.ndarray, result: np.ndarray) -> np.ndarray:
    """As the graph computes them, of per-sample means [samples, channels]."""
    parts = (difference, result, difference * result, result * result)
    return np.concatenate([part.mean(axis=0) for part in parts])[None]


def ridge_regression(
    difference: np.ndarray, result: np.ndarray, *, per_channel: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Gains and offsets by least squares on the samples themselves, the prior as one more row."""
    samples, channels = result.shape
    prior = RIDGE * result.var(axis=0).mean()
    square = (result**2).mean(axis=0)
    groups = [[c] for c in range(channels)] if per_channel else [list(range(channels))]
    gains, offsets = np.empty(channels), np.empty(channels)
    for group in groups:
        weight = samples * len(group) * (prior + ROUNDING * square[group].mean() + TINY)
        rows = np.zeros((samples * len(group) + 1, 1 + len(group)))
        rows[:-1, 0] = result[:, group].T.ravel()
        for position in range(len(group)):
            rows[position * samples : (position + 1) * samples, 1 + position] = 1.0
        rows[-1, 0] = np.sqrt(weight)
        wanted = np.append(difference[:, group].T.ravel(), 0.0)
        slope = np.linalg.lstsq(rows, wanted, rcond=None)[0][0]
        gains[group] = np.clip(1.0 + slope, *GAINS)
        # with the slope given, the offsets that fit best
        offsets[group] = (difference - (gains - 1.0) * result)[:, group].mean(axis=0)
    return gains, offsets


@given(
    samples=st.integers(2, 12),
    channels=st.integers(1, 5),
    slope=st.floats(-0.4, 0.8),
    noise=st.floats(0.0, 1.0),
    scale=st.floats(1e-3, 1e3),
    per_channel=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_solve_is_ridge_regression(
    samples: int,
    channels: int,
    slope: float,
    noise: float,
    scale: float,
    per_channel: bool,
    seed: int,
) -> None:
    draw = tiny.rng(seed)
    result = draw.standard_normal((samples, channels)) * scale + draw.normal(0, scale, channels)
    difference = slope * result + noise * scale * draw.standard_normal(result.shape) + 0.3 * scale
    found = solve(moments_of(difference, result), per_channel=per_channel)
    gain, offset = ridge_regression(difference, result, per_channel=per_channel)
    np.testing.assert_allclose(found.gain, gain, rtol=1e-6)
    np.testing.assert_allclose(found.offset, offset, atol=1e-6 * scale)


def test_a_channel_that_follows_too_little_gets_a_quarter_of_its_gain() -> None:
    """Closed form: one channel, difference = 0.4 * result; the prior weighs three times as much."""
    result = np.array([[1.0], [3.0], [5.0]])
    found = solve(moments_of(0.4 * result, result), per_channel=True)
    assert found.gain == pytest.approx(1 + 0.4 / (1 + RIDGE), rel=1e-4)
    assert found.offset == pytest.approx(0.4 * 3.0 - (found.gain - 1) * 3.0)


@pytest.mark.parametrize("per_channel", [True, False])
def test_one_sample_knows_no_gain(per_channel: bool) -> None:
    difference, result = (tiny.rng(seed).normal(0, 3, (1, 6)) for seed in (1, 2))
    found = solve(moments_of(difference, result), per_channel=per_channel)
    np.testing.assert_allclose(found.gain, 1.0, atol=1e-9)
    np.testing.assert_allclose(found.offset, difference[0])


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("samples", [2, 3, 5, 7, 11, 56])
def test_a_constant_result_has_no_gain(samples: int, per_channel: bool) -> None:
    """What is left of its variance in float32 is rounding, and so is the covariance."""
    result = np.full((samples, 1), 1.1, np.float32)
    difference = np.linspace(0.05, 0.15, samples, dtype=np.float32)[:, None]
    found = solve(moments_of(difference, result), per_channel=per_channel)
    assert found.gain == pytest.approx(1.0, abs=1e-2)
    assert found.gain * 1.1 + found.offset == pytest.approx(1.2, rel=1e-5)


def test_a_constant_channel_among_others_has_no_gain() -> None:
    result = normal(8, 3, scale=1.0)
    result[:, 1] = 1.1
    found = solve(moments_of(0.2 * result + 0.1, result), per_channel=True)
    assert found.gain[1] == pytest.approx(1.0, abs=1e-4)
    assert (found.gain[[0, 2]] > 1.02).all()


def test_channels_that_are_zero_are_left_alone() -> None:
    found = solve(np.zeros((1, 12), np.float32), per_channel=True)
    np.testing.assert_array_equal(found.gain, 1.0)
    np.testing.assert_array_equal(found.offset, 0.0)


@pytest.mark.parametrize(("slope", "gain"), [(-9.0, GAINS[0]), (40.0, GAINS[1])])
def test_scales_stay_positive_whatever_was_measured(slope: float, gain: float) -> None:
    result = normal(5, 4, scale=1.0)
    found = solve(moments_of(slope * result, result), per_channel=False)
    np.testing.assert_array_equal(found.gain, gain)
    np.testing.assert_allclose(
        found.gain * result.mean(axis=0) + found.offset,
        (1 + slope) * result.mean(axis=0),
        rtol=1e-5,
    )


@given(
    gain=st.floats(0.5, 2.0),
    offset=st.floats(-2.0, 2.0),
    bias=st.floats(-2.0, 2.0),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_a_correction_helps_if_squared_errors_get_smaller(
    gain: float, offset: float, bias: float, seed: int
) -> None:
    draw = tiny.rng(seed)
    result, difference = draw.normal(1, 1, (6, 3)), draw.normal(bias, 0.5, (6, 3))
    correction = Correction(gain=np.full(3, gain), offset=draw.normal(offset, 0.3, 3))
    left = difference - (correction.gain - 1.0) * result - correction.offset
    wanted = (left**2).sum() < (difference**2).sum()
    assert _improves(correction, moments_of(difference, result)) == wanted


# -------------------------------------------------------------------------------------- the twin


def matmul_alone() -> onnx.ModelProto:
    """Products without bias: one with an activation behind it, one that is the output."""
    return tiny.model(
        [
            node("MatMul", "x w", "m", "fc1"),
            node("Relu", "m", "r", "relu"),
            node("MatMul", "r v", "y", "fc2"),
        ],
        {"x": ["N", 6]},
        {"y": ["N", 3]},
        {"w": normal(6, 8), "v": normal(8, 3, seed=1)},
    )


def row_bias() -> onnx.ModelProto:
    """A Gemm with another bias for every row."""
    return tiny.model(
        [node("Gemm", "x w b", "g", "gemm"), node("Gemm", "g v", "y", "head")],
        {"x": [4, 6]},
        {"y": [4, 3]},
        {"w": normal(6, 8), "b": normal(4, 1, seed=1), "v": normal(8, 3, seed=2)},
    )


def conv_1d() -> onnx.ModelProto:
    return tiny.model(
        [node("Conv", "x w", "c", "conv1"), node("Conv", "c v b", "y", "conv2")],
        {"x": ["N", 3, 7]},
        {"y": ["N", 2, 5]},
        {"w": normal(4, 3, 3), "v": normal(2, 4, 1, seed=1), "b": normal(2)},
    )


def at_opset(made: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The same nodes, which mean the same there."""
    made.opset_import[0].version = version
    made.ir_version = 10
    onnx.checker.check_model(made, full_check=True)
    return made


MODELS = {
    **tiny.MODELS,
    "matmul_alone": matmul_alone,
    "row_bias": row_bias,
    "conv_1d": conv_1d,
    "conv_opset_18": lambda: at_opset(tiny.conv_bn_relu(), 18),
    "matmul_opset_21": lambda: at_opset(tiny.matmul_bias_3d(), 21),
}


def twin_of(result: Result) -> Twin:
    floats, other = ir.from_proto(result.floats), ir.from_proto(result.proto)
    return make_twin(floats, other, result.plan.weights)


def zero(twin: Twin) -> Arrays:
    return {
        state_name(layer): np.zeros((1, 4 * channels), np.float32)
        for layer, channels in twin.channels.items()
    }


def run_twin(
    twin: Twin,
    samples: Arrays,
    state: Arrays | None = None,
    *,
    share: float = 0.0,
    also: Sequence[str] = (),
    optimized: bool = False,
) -> Arrays:
    """Its outputs and other tensors of it; with state and share of zero nothing is corrected."""
    names = [output.name or "" for output in twin.model.graph.outputs]
    content = serialize(with_outputs(twin.model, [*names, *also]) if also else twin.model)
    feeds = {**samples, **zero(twin), **(state or {}), SHARE: np.asarray(share, np.float32)}
    return tiny.run(content, feeds, optimized=optimized)


def together(result: Result, count: int = 4) -> Arrays:
    """Samples as one batch, or a single one where the model takes no more."""
    first = result.floats.graph.input[0].type.tensor_type.shape.dim[0]
    if not first.dim_param:
        return result.given[0]
    return stack(result.given[:count])


def stack(samples: Sequence[Arrays]) -> Arrays:
    return {
        name: np.concatenate([one[name] for one in samples]) if array.ndim else array
        for name, array in samples[0].items()
    }


def linear_layers(result: Result) -> dict[str, str]:
    """Operator type of every planned layer with weights, by its key."""
    types = {one.output[0]: one.op_type for one in result.floats.graph.node}
    keys = [one.node for one in result.plan.weights]
    return {key: types[key] for key in keys if types[key] in LINEAR}


def in_quantized(result: Result, key: str) -> str:
    """What the layer's own result is called after emission: outputs give their names away."""
    makers = {one.output[0]: one for one in result.proto.graph.node}
    name = key
    while makers[name].op_type in ("DequantizeLinear", "QuantizeLinear"):
        name = makers[name].input[0]
    return name


def sample_means(array: np.ndarray, op_type: str) -> np.ndarray:
    """Mean of each channel for each sample, [samples, channels]."""
    if op_type.startswith("Conv"):
        return array.mean(axis=tuple(range(2, array.ndim)), dtype=np.float64)
    return array.reshape(len(array), -1, array.shape[-1]).mean(axis=1, dtype=np.float64)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_twin_is_both_networks(name: str, per_channel: bool, cpu: TargetSpec) -> None:
    result = quantized(MODELS[name](), cpu, per_channel=per_channel)
    twin = twin_of(result)
    onnx.checker.check_model(serialize(twin.model), full_check=True)
    assert list(twin.channels) == list(linear_layers(result))
    step, samples = spread(result), together(result)
    floats, codes = (tiny.run(one, samples) for one in (result.floats, result.content))
    assert list(twin.outputs) == list(floats)
    for optimized in (False, True):
        found = run_twin(twin, samples, optimized=optimized)
        for name, other in twin.outputs.items():
            rounding = NOISE * np.abs(floats[name]).max() * (1 + 9 * optimized)
            np.testing.assert_allclose(found[name], floats[name], atol=rounding)
            # where sums are added up in another order, a value may fall to the next code
            assert np.abs(found[other] - codes[name]).max() <= (rounding + 1.001 * step[name])
            assert np.abs(found[other] - codes[name]).mean() <= 0.1 * step[name]


def test_making_the_twin_leaves_both_models_alone(cpu: TargetSpec) -> None:
    result = quantized(tiny.control_flow(), cpu)
    floats, other = ir.from_proto(result.floats), ir.from_proto(result.proto)
    before = serialize(floats), serialize(other)
    make_twin(floats, other, result.plan.weights)
    assert (serialize(floats), serialize(other)) == before


@pytest.mark.parametrize("name", MODELS)
def test_the_moments_are_those_of_the_channel_means(name: str, cpu: TargetSpec) -> None:
    result = quantized(MODELS[name](), cpu, stretch=CUT)
    twin, layers, samples = twin_of(result), linear_layers(result), together(result)
    floats = with_outputs(ir.from_proto(result.floats), list(layers))
    names = {key: in_quantized(result, key) for key in layers}
    codes = with_outputs(ir.from_proto(result.proto), list(names.values()))
    wanted, found = tiny.run(serialize(floats), samples), tiny.run(serialize(codes), samples)
    given = run_twin(twin, samples)
    for key, op_type in layers.items():
        float_means = sample_means(wanted[key], op_type)
        means = sample_means(found[names[key]], op_type)
        expected = moments_of(float_means - means, means)
        largest = max(np.abs(wanted[key]).max(), np.abs(found[names[key]]).max())
        noise = 5 * NOISE * max(largest, largest**2)
        np.testing.assert_allclose(given[current_name(key)], expected, atol=noise)
        np.testing.assert_array_equal(given[updated_name(key)], 0.0)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_after_one_run_every_layer_has_the_float_means(
    name: str, per_channel: bool, cpu: TargetSpec
) -> None:
    """The layers before are corrected already when a layer is measured: all are right at once."""
    result = quantized(MODELS[name](), cpu, per_channel=per_channel, stretch=CUT)
    twin, layers, samples = twin_of(result), linear_layers(result), together(result)
    names = {key: f"{in_quantized(result, key)}{QUANTIZED}" for key in layers}
    tensors = [*layers, *names.values()]
    also = list(dict.fromkeys(one for one in tensors if one not in _ends(twin)))
    found = run_twin(twin, samples, share=1.0, also=also)
    off = 0.0
    for key, op_type in layers.items():
        wanted = sample_means(found[key], op_type).mean(axis=0)
        given = sample_means(found[names[key]], op_type).mean(axis=0)
        np.testing.assert_allclose(given, wanted, atol=10 * NOISE * np.abs(found[key]).max())
        moments = found[updated_name(key)]
        np.testing.assert_array_equal(moments, found[current_name(key)])
        off = max(off, float(np.abs(moments[0, : len(wanted)]).max() / np.abs(wanted).max()))
    assert off > 0.01, "without corrections they are visibly wrong"


def _ends(twin: Twin) -> set[str | None]:
    return {output.name for output in twin.model.graph.outputs}


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_graph_corrects_by_what_solve_finds(per_channel: bool, cpu: TargetSpec) -> None:
    result = quantized(tiny.residual(), cpu, per_channel=per_channel, stretch=CUT)
    twin = twin_of(result)
    measured = run_twin(twin, together(result), share=1.0)
    state = {state_name(layer): measured[updated_name(layer)] for layer in twin.channels}
    samples = stack(result.given[4:])  # others
    names = [f"{in_quantized(result, key)}{QUANTIZED}" for key in twin.channels]
    # the first layer reads the same with and without
    name = names[0]
    plain = run_twin(twin, samples, also=[name])[name]
    corrected = run_twin(twin, samples, state, also=[name])[name]
    found = solve(state[state_name(next(iter(twin.channels)))], per_channel=per_channel)
    gain, offset = (one.reshape(-1, 1, 1) for one in (found.gain, found.offset))
    assert np.ptp(found.gain) > 0.01 if per_channel else np.ptp(found.gain) == 0.0
    np.testing.assert_allclose(corrected, gain * plain + offset, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- the whole procedure


def batch(samples: Sequence[Arrays]) -> Batch:
    feeds = stack(samples)
    return Batch(feeds=feeds, names=("some",), rows=len(next(iter(feeds.values()))))


def correct(
    result: Result,
    runner: Registered[RunnerEntry],
    groups: Sequence[Sequence[Arrays]],
    held_back: Sequence[Sequence[Arrays]] = (),
    margin: float = 0.0,
) -> BiasCorrection:
    return correct_bias(
        ir.from_proto(result.floats),
        ir.from_proto(result.proto),
        result.plan,
        [batch(group) for group in groups],
        [batch(group) for group in held_back],
        runner,
        runner.entry.options(),
        lambda done: None,
        margin,
    )


def singles(made: onnx.ModelProto, count: int, first: int = 0) -> list[Arrays]:
    return [tiny.feeds(made, seed, batch=1) for seed in range(first, first + count)]


def flipped(corrections: BiasCorrection) -> dict[str, Correction]:
    return {
        layer: Correction(gain=2.0 - one.gain, offset=-one.offset)
        for layer, one in corrections.layers.items()
    }


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["gemm", "matmul", "rows"])
def test_the_finished_layer_has_the_float_means(
    name: str, per_channel: bool, cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """Up to half a step of the bias, which is all that is rounded."""
    rows = ["N", 5, 6] if name == "rows" else ["N", 6]
    made = tiny.model(
        [node("Gemm" if name == "gemm" else "MatMul", "x w", "y", "layer")],
        {"x": rows},
        {"y": [*rows[:-1], 4]},
        {"w": normal(6, 4)},
    )
    samples = singles(made, 12)
    options: dict[str, Any] = {"samples": samples, "stretch": CUT, "per_channel": per_channel}
    plain = quantized(made, cpu, **options)
    found = correct(plain, runner, [samples])
    finished = quantized(made, cpu, corrections=found.layers, **options)
    everything = stack(samples)
    wanted, before, after = (
        tiny.run(one, everything)["y"].reshape(-1, 4).mean(axis=0, dtype=np.float64)
        for one in (plain.floats, plain.content, finished.content)
    )
    steps = finished.constant("layer_bias_scale")
    assert (np.abs(after - wanted) <= 0.5 * steps + 1e-6).all()
    assert np.abs(before - wanted).max() > 5 * steps.max()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["conv_bn_relu", "residual", "transformer", "dynamic_shapes"])
def test_the_finished_network_is_closer_and_the_opposite_further_off(
    name: str, per_channel: bool, cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    made = tiny.MODELS[name]()
    samples, unseen = singles(made, 16), singles(made, 16, 100)
    options: dict[str, Any] = {"samples": samples, "stretch": CUT, "per_channel": per_channel}
    plain = quantized(made, cpu, **options)
    found = correct(plain, runner, [samples])
    contents = [
        quantized(made, cpu, corrections=one, **options).content
        for one in (None, found.layers, flipped(found))
    ]
    wanted = tiny.run(plain.floats, stack(unseen))["y"]
    before, after, opposite = (sqnr(wanted, tiny.run(one, stack(unseen))["y"]) for one in contents)
    assert opposite < before < after


@pytest.mark.parametrize("name", ["conv_bn_relu", "residual", "transformer"])
def test_how_samples_are_grouped_matters_little(
    name: str, cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """First layers find the same in all groupings: moments of all samples are averaged exactly.

    A later layer is measured behind corrections that come from the first few samples in the first
    runs, and from all in the last. What it finds differs by a part of what samples differ by.
    """
    made = tiny.MODELS[name]()
    samples, unseen = singles(made, 16), stack(singles(made, 16, 100))
    options: dict[str, Any] = {"samples": samples, "stretch": CUT}
    plain = quantized(made, cpu, **options)
    wanted = tiny.run(plain.floats, unseen)["y"]

    def quality(found: BiasCorrection | None) -> float:
        layers = None if found is None else found.layers
        content = quantized(made, cpu, corrections=layers, **options).content
        return sqnr(wanted, tiny.run(content, unseen)["y"])

    measured = run_twin(twin_of(plain), stack(samples), share=1.0)
    whole = correct(plain, runner, [samples])
    first = {"transformer": ["q_m", "k_m", "v_m"]}.get(name, list(whole.layers)[:1])
    for size in (1, 2, 4):
        groups = [samples[start : start + size] for start in range(0, len(samples), size)]
        split = correct(plain, runner, groups)
        assert list(split.layers) == list(whole.layers)
        for layer, one in whole.layers.items():
            other = split.layers[layer]
            _, result, _, square = measured[updated_name(layer)].reshape(4, -1)
            spread_of_samples = np.sqrt((square - result**2).mean())
            gain = np.abs(one.gain - other.gain).max()
            mean = np.abs((one.gain - other.gain) * result + one.offset - other.offset).max()
            assert gain <= (1e-4 if layer in first else 0.1)
            assert mean <= spread_of_samples * (1e-4 if layer in first else 0.3)
        assert quality(split) == pytest.approx(quality(whole), abs=0.3)
    assert quality(whole) > quality(None)


def test_the_order_of_samples_in_a_run_does_not_matter(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    made = tiny.residual()
    samples = singles(made, 8)
    plain = quantized(made, cpu, samples=samples, stretch=CUT)
    one, other = (correct(plain, runner, [group]).layers for group in (samples, samples[::-1]))
    for layer, found in one.items():
        np.testing.assert_allclose(found.gain, other[layer].gain, atol=1e-4)
        np.testing.assert_allclose(found.offset, other[layer].offset, atol=1e-4)


def test_a_gain_below_the_margin_undoes_all(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    made = tiny.residual()
    samples, others = singles(made, 24), singles(made, 12, first=100)
    plain = quantized(made, cpu, samples=samples, stretch=CUT)
    found = correct(plain, runner, [samples], [others])
    assert found.layers
    assert found.before is not None
    assert found.after is not None
    gain = found.after - found.before
    assert gain > 0.0
    kept = correct(plain, runner, [samples], [others], 0.9 * gain)
    assert set(kept.layers) == set(found.layers)
    undone = correct(plain, runner, [samples], [others], 1.1 * gain)
    assert not undone.layers
    assert set(undone.undone) == {weight.node for weight in plain.plan.weights}


def test_progress_counts_samples(cpu: TargetSpec, runner: Registered[RunnerEntry]) -> None:
    made = tiny.gemm()
    samples = singles(made, 5)
    plain = quantized(made, cpu, samples=samples)
    told: list[int] = []
    correct_bias(
        ir.from_proto(plain.floats),
        ir.from_proto(plain.proto),
        plain.plan,
        [batch(samples[:2]), batch(samples[2:])],
        [],
        runner,
        runner.entry.options(),
        told.append,
    )
    assert told == [2, 5]


@pytest.mark.parametrize("name", ["residual", "matmul_bias_3d"])
def test_the_fallback_runner_finds_the_same(
    name: str, cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    made = tiny.MODELS[name]()
    samples = singles(made, 4)
    plain = quantized(made, cpu, samples=samples, stretch=CUT)
    one, other = (
        correct(plain, each, [samples[:3]], [samples[3:]])
        for each in (runner, discover().runner("reference"))
    )
    assert one.undone == other.undone
    assert one.after == pytest.approx(other.after, abs=0.1)
    for layer, found in one.layers.items():
        np.testing.assert_allclose(found.gain, other.layers[layer].gain, atol=1e-3)
        np.testing.assert_allclose(found.offset, other.layers[layer].offset, atol=1e-3)


# ------------------------------------------------------------------- samples that were held back


def branches() -> onnx.ModelProto:
    """Two inputs, each with a layer and an output of its own."""
    return tiny.model(
        [node("Gemm", "one w b", "a", "first"), node("Gemm", "two v c", "z", "second")],
        {"one": ["N", 6], "two": ["N", 6]},
        {"a": ["N", 4], "z": ["N", 4]},
        {
            "w": normal(6, 4),
            "b": normal(4, seed=1),
            "v": normal(6, 4, seed=2),
            "c": normal(4, seed=3),
        },
    )


def signed(count: int, seed: int, *, one: float, two: float) -> list[Arrays]:
    """Samples of which every value has this sign, and is beyond what the layers can represent."""
    draw = tiny.rng(seed)
    return [
        {
            "one": (one * draw.uniform(0.8, 1.2, (1, 6))).astype(np.float32),
            "two": (two * draw.uniform(0.8, 1.2, (1, 6))).astype(np.float32),
        }
        for _ in range(count)
    ]


def halves(cpu: TargetSpec) -> Result:
    """Both layers cut off what is large, above and below."""
    both = signed(6, 0, one=1, two=1) + signed(6, 50, one=-1, two=-1)
    return quantized(branches(), cpu, samples=both, stretch=CUT)


def test_corrections_that_others_bear_out_are_kept(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    plain = halves(cpu)
    measured, others = signed(12, 100, one=1, two=1), signed(6, 200, one=1, two=1)
    found = correct(plain, runner, [measured], [others[:2], others[2:]])
    assert set(found.layers) == {"a", "z"}
    assert not found.undone
    wanted, before = tiny.run(plain.floats, stack(others)), tiny.run(plain.content, stack(others))
    assert found.before == pytest.approx(min(sqnr(wanted[n], before[n]) for n in wanted), abs=0.01)
    content = quantized(
        branches(), cpu, corrections=found.layers, stretch=CUT,
        samples=signed(6, 0, one=1, two=1) + signed(6, 50, one=-1, two=-1),
    ).content  # fmt: skip
    after = tiny.run(content, stack(others))
    # the finished model rounds its biases, which the twin does not
    assert found.after == pytest.approx(min(sqnr(wanted[n], after[n]) for n in wanted), abs=0.1)
    assert found.before is not None
    assert found.after is not None
    assert found.after > found.before + 1


def test_corrections_that_others_contradict_are_undone(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    plain = halves(cpu)
    measured, others = signed(12, 100, one=1, two=1), signed(6, 200, one=-1, two=-1)
    found = correct(plain, runner, [measured], [others])
    assert found.layers == {}
    assert set(found.undone) == {"a", "z"}
    assert found.after == found.before
    unchecked = correct(plain, runner, [measured])
    assert set(unchecked.layers) == {"a", "z"}
    assert (unchecked.before, unchecked.after, unchecked.undone) == (None, None, ())


@pytest.mark.parametrize("kept", ["a", "z"])
def test_layers_are_undone_one_by_one(
    kept: str, cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """Also where the worst output is that of the layer that stays as it was."""
    plain = halves(cpu)
    measured = signed(12, 100, one=1, two=1)
    others = signed(6, 200, one=1 if kept == "a" else -1, two=1 if kept == "z" else -1)
    found = correct(plain, runner, [measured], [others])
    assert list(found.layers) == [kept]
    assert list(found.undone) == [{"a": "z", "z": "a"}[kept]]
    alone = correct(plain, runner, [measured])
    np.testing.assert_array_equal(found.layers[kept].offset, alone.layers[kept].offset)
    assert found.before is not None
    assert found.after is not None
    assert found.after >= found.before


def test_all_are_undone_where_the_outputs_are_further_off(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """Errors of two layers that cancel at the output: each is smaller then, their sum is not."""
    made = tiny.model(
        [
            node("Gemm", "one w", "a", "first"),
            node("Gemm", "two v", "k", "second"),
            node("Sum", "a k shift", "y", "sum"),
        ],
        {"one": ["N", 6], "two": ["N", 6]},
        {"y": ["N", 6]},
        {
            "w": np.eye(6, dtype=np.float32),
            "v": -np.eye(6, dtype=np.float32),
            "shift": np.ones(6, np.float32),
        },
    )
    ranges = [{"one": each["one"], "two": each["one"]} for each in signed(6, 0, one=1, two=1)]
    plain = quantized(made, cpu, samples=ranges, stretch=CUT)
    measured = [
        {"one": each["one"], "two": 0.8 * each["two"]} for each in signed(12, 1, one=1, two=1)
    ]
    alike = [{"one": each["one"], "two": each["one"]} for each in signed(6, 2, one=1, two=1)]
    found = correct(plain, runner, [measured], [alike])
    assert found.layers == {}
    assert set(found.undone) == {"a", "k"}
    assert found.before == np.inf
    assert found.after is not None
    assert found.after < 20, "what it would have been"
    # each by itself is borne out
    apart = [{**each, "two": 0.8 * each["two"]} for each in signed(6, 3, one=1, two=1)]
    assert set(correct(plain, runner, [measured], [apart]).layers) == {"a", "k"}


def test_one_output_is_not_given_up_for_another(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """The worst output gains, the other one loses what its parts' errors had cancelled."""
    made = tiny.model(
        [
            node("Gemm", "one w", "a", "first"),
            node("Gemm", "two v", "k", "second"),
            node("Sum", "a k shift", "y", "sum"),
        ],
        {"one": ["N", 6], "two": ["N", 6]},
        {"y": ["N", 6], "a": ["N", 6]},
        {
            "w": np.eye(6, dtype=np.float32),
            "v": -np.eye(6, dtype=np.float32),
            "shift": np.ones(6, np.float32),
        },
    )
    ranges = [{"one": each["one"], "two": each["one"]} for each in signed(6, 0, one=1, two=1)]
    plain = quantized(made, float_results(cpu), samples=ranges, stretch=CUT)
    measured = [
        {"one": each["one"], "two": 0.8 * each["two"]} for each in signed(12, 1, one=1, two=1)
    ]
    alike = [{"one": each["one"], "two": each["one"]} for each in signed(6, 2, one=1, two=1)]
    found = correct(plain, runner, [measured], [alike])
    assert found.layers == {}
    # the figures are of the output that loses: they say why
    assert found.before is not None
    assert found.after is not None
    assert found.after < found.before


def test_exact_outputs_are_left_alone(cpu: TargetSpec, runner: Registered[RunnerEntry]) -> None:
    made = tiny.model(
        [node("Gemm", "x w", "y", "layer")],
        {"x": ["N", 4]},
        {"y": ["N", 3]},
        {"w": (127.0 * np.eye(4, 3)).astype(np.float32)},
    )
    draw = tiny.rng(0)
    whole = [{"x": draw.integers(0, 256, (1, 4)).astype(np.float32)} for _ in range(6)]
    whole[0]["x"][:] = [[0, 255, 0, 255]]  # the scale is 1
    plain = quantized(made, cpu, samples=whole)
    between = [{"x": np.minimum(one["x"] + np.float32(0.4), 255)} for one in whole]
    found = correct(plain, runner, [between], [whole])
    assert found.layers == {}
    assert (found.before, found.after) == (np.inf, np.inf)


def test_outputs_that_are_no_floats_cannot_judge(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """The layers still can."""
    made = tiny.model(
        [node("Gemm", "x w b", "g", "layer"), node("ArgMax", "g", "y", "best", axis=1)],
        {"x": ["N", 6]},
        [tiny.info("y", ["N", 1], onnx.TensorProto.INT64)],
        {"w": normal(6, 4), "b": normal(4)},
    )
    samples = singles(made, 12)
    plain = quantized(made, cpu, samples=samples, stretch=CUT)
    found = correct(plain, runner, [samples[:8]], [samples[8:]])
    assert (found.before, found.after) == (None, None)
    assert set(found.layers) | set(found.undone) == {"g"}


def test_a_scale_for_a_channel_of_every_group_is_left_alone(
    cpu: TargetSpec, runner: Registered[RunnerEntry]
) -> None:
    """The channels of a transposed convolution's groups share scales, but not their errors."""
    made = emission.layer("ConvTranspose groups")
    samples = singles(made, 4)
    plain = quantized(made, float_results(cpu), samples=samples)
    shared = tuple(
        replace(one, axis=1) for one in plain.plan.weights
    )  # as weight quantization has it
    apart = replace(plain, plan=replace(plain.plan, weights=shared))
    assert correct(apart, runner, [samples]).layers == {}
    whole = quantized(made, float_results(cpu), samples=samples, per_channel=False, stretch=CUT)
    (found,) = correct(whole, runner, [samples]).layers.values()
    assert len(found.offset) == 6
