from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ptq_core.arithmetic import cosine
from ptq_core.errors import InputError, PluginError
from ptq_core.graph.model import serialize
from ptq_core.plugins import discover
from ptq_core.samples import Sample, model_inputs
from ptq_core.types import ModelInput
from ptq_core.weights.entropy import entropy
from ptq_core.weights.mixed import quantize_step, step_for
from ptq_core.weights.scales import scales_from_json, scales_to_json
from ptq_core.weights.trial import Trial, generated_samples, generated_trial
from ptq_core.weights.tuning import Tuned, auto_tune
from tests import tiny_models as tiny

Weights = Mapping[str, NDArray[Any]]
RUNNER = discover().runner("onnxruntime")
OPTIONS = RUNNER.entry.options()


def samples(made: onnx.ModelProto, count: int = 6, batch: int = 1) -> list[Sample]:
    return [Sample(name=f"s{i}", feeds=tiny.feeds(made, i, batch)) for i in range(count)]


def trial(made: onnx.ModelProto, names: list[str], *given: Any, **kept: Any) -> Trial:
    shown = given[0] if given else samples(made, **kept)
    return Trial(ir.from_proto(made), names, shown, RUNNER, OPTIONS)


def baked(made: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """The model with other weights in its file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return copy


def rounded(made: onnx.ModelProto, names: list[str], error: float = 0.1) -> dict[str, Any]:
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in made.graph.initializer}
    return {
        name: quantize_step(arrays[name], step_for(arrays[name], error)).dequantize()
        for name in names
    }


# --------------------------------------------------------------------------------------- trial


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tiny.conv_bn_relu, ["w1", "w2", "w3"]),
        (tiny.depthwise_relu6, ["w1", "w2"]),
        (tiny.conv_transpose, None),
        (tiny.transformer, ["q_w", "up_w", "down_w"]),
        (tiny.two_outputs, ["w1", "w3"]),
        (tiny.shared_weights, None),
        (tiny.several_inputs, None),
        (tiny.dynamic_shapes, ["w1", "w2"]),
        (tiny.control_flow, ["w1", "w2", "w3"]),
    ],
)
def test_a_trial_sees_what_a_file_with_these_weights_does(make: Any, names: Any) -> None:
    made = make()
    if names is None:
        names = [one.name for one in made.graph.initializer if len(one.dims) > 1]
    shown = samples(made)
    trying = trial(made, names, shown)
    changed = rounded(made, names)
    other = baked(made, changed)
    pairs = []
    for one in shown:
        before, after = tiny.run(made, one.feeds), tiny.run(other, one.feeds)
        pairs += [(before[name], after[name]) for name in before]
    score = trying.score(changed)
    assert score.cosine == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]), abs=1e-5)
    noises = [((a - b) ** 2).sum() / (a**2).sum() for a, b in pairs]
    assert score.noise == pytest.approx(np.mean(noises), rel=1e-3, abs=1e-9)
    assert score.cosine < 0.99999
    assert trying.cosine({}) == pytest.approx(1.0, abs=1e-9), "float weights are the default again"


def test_one_weight_at_a_time() -> None:
    made = tiny.conv_bn_relu()
    trying = trial(made, ["w1", "w2", "w3"])
    changed = rounded(made, ["w1", "w2", "w3"])
    alone = trying.score({"w2": changed["w2"]}).noise
    assert 0 < alone < trying.score(changed).noise


@pytest.mark.parametrize("batch", [1, 3])
def test_running_samples_together_changes_nothing(batch: int) -> None:
    made = tiny.conv_bn_relu()
    fixed = tiny.conv_bn_relu()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    changed = rounded(made, ["w1"])
    together = trial(made, ["w1"], count=7, batch=1)
    by_one = trial(fixed, ["w1"], count=7, batch=1)
    assert together.samples == by_one.samples == 7
    assert together.cosine(changed) == pytest.approx(by_one.cosine(changed), abs=1e-7)
    rows = trial(made, ["w1"], count=2, batch=batch)
    assert rows.samples == 2 * batch


def test_the_first_samples_only() -> None:
    made = tiny.conv_bn_relu()
    shown = samples(made, 12)
    changed = rounded(made, ["w1"])
    few = trial(made, ["w1"], shown[:4]).score(changed)
    every = trial(made, ["w1"], shown)
    before = every.runs
    found = every.score(changed, 4)
    assert every.runs - before == 4
    assert found.noise == pytest.approx(few.noise)
    assert every.score(changed).noise != pytest.approx(few.noise)


def test_the_model_is_not_changed() -> None:
    made = tiny.gemm()
    model = ir.from_proto(made)
    before = serialize(model)
    Trial(model, ["w1"], samples(made), RUNNER, OPTIONS).cosine(rounded(made, ["w1"]))
    assert serialize(model) == before


def in_body() -> onnx.ModelProto:
    """An If with a constant of its own in a branch."""
    branches = [
        helper.make_graph(
            [tiny.node("MatMul", "h inner", out)],
            out,
            [],
            [tiny.info(out, None)],
            [onnx.numpy_helper.from_array(tiny.normal(8, 8, seed=seed), "inner")],
        )
        for seed, out in enumerate(("then_out", "else_out"))
    ]
    return tiny.model(
        [
            tiny.node("MatMul", "x w", "h"),
            tiny.node("If", "flag", "y", then_branch=branches[0], else_branch=branches[1]),
        ],
        [tiny.info("x", ["N", 8]), tiny.info("flag", [], TensorProto.BOOL)],
        {"y": ["N", 8]},
        {"w": tiny.normal(8, 8)},
    )


def test_constants_of_bodies_are_left_out() -> None:
    made = in_body()
    trying = trial(made, ["w", "inner"])
    assert trying.left_out == ("inner",)
    assert set(trying.weights) == {"w"}
    assert trying.cosine(rounded(made, ["w"])) < 1
    with pytest.raises(InputError, match="no weight to change: all are in bodies"):
        auto_tune(trial(made, ["inner"]))


def test_outputs_of_integers_do_not_count() -> None:
    made = tiny.model(
        [tiny.node("MatMul", "x w", "y"), tiny.node("ArgMax", "y", "top", axis=1, keepdims=0)],
        {"x": ["N", 8]},
        [tiny.info("y", ["N", 8]), tiny.info("top", ["N"], TensorProto.INT64)],
        {"w": tiny.normal(8, 8)},
    )
    alone = tiny.model(
        [tiny.node("MatMul", "x w", "y")],
        {"x": ["N", 8]},
        {"y": ["N", 8]},
        {"w": tiny.normal(8, 8)},
    )
    changed = rounded(made, ["w"])
    assert trial(made, ["w"]).cosine(changed) == trial(alone, ["w"]).cosine(changed)
    del made.graph.output[0]
    with pytest.raises(InputError, match="no float output"):
        trial(made, ["w"])


def test_no_sample_is_an_error() -> None:
    with pytest.raises(InputError, match="no sample"):
        trial(tiny.gemm(), ["w1"], [])


def test_outputs_that_are_not_finite_are_an_error() -> None:
    made = tiny.model(
        [tiny.node("MatMul", "x w", "h"), tiny.node("Log", "h", "y")],
        {"x": ["N", 8]}, {"y": ["N", 8]}, {"w": tiny.normal(8, 8)},
    )  # fmt: skip
    with pytest.raises(InputError, match="tensor 'y': the float model's output is not finite"):
        trial(made, ["w"])


def test_outputs_that_stop_being_finite_are_as_far_off_as_can_be() -> None:
    made = tiny.gemm()
    trying = trial(made, ["w1"])
    score = trying.score({"w1": np.full_like(trying.weights["w1"], np.inf)})
    assert score.cosine == 0.0
    assert score.noise == np.inf


# ----------------------------------------------------------------------------- generated input


def test_generated_samples() -> None:
    inputs = [
        ModelInput(name="x", dtype="float32", shape=("N", 3, "H", None)),
        ModelInput(name="half", dtype="float16", shape=(2, 5)),
        ModelInput(name="ids", dtype="int64", shape=(None, "sequence")),
        ModelInput(name="flag", dtype="bool", shape=()),
    ]
    made = generated_samples(inputs, 3)
    assert len({one.name for one in made}) == 3
    first = made[0].feeds
    assert {name: array.shape for name, array in first.items()} == {
        "x": (1, 3, 16, 16), "half": (2, 5), "ids": (1, 16), "flag": (),
    }  # fmt: skip
    assert [array.dtype.name for array in first.values()] == ["float32", "float16", "int64", "bool"]
    every = np.concatenate([one.feeds["x"].ravel() for one in made])
    assert every.min() >= 0.1
    assert every.max() < 1.0
    assert every.std() == pytest.approx(0.9 / 12**0.5, rel=0.05)
    ids = np.concatenate([one.feeds["ids"].ravel() for one in made])
    assert set(ids.tolist()) == {0, 1}
    for one, other in zip(made, generated_samples(inputs, 3), strict=True):
        for name, array in one.feeds.items():
            np.testing.assert_array_equal(array, other.feeds[name])
    assert not np.array_equal(made[0].feeds["x"], made[1].feeds["x"])


def test_a_model_that_does_not_run_on_generated_input() -> None:
    made = tiny.model(
        [tiny.node("Reshape", "x shape", "r"), tiny.node("MatMul", "r w", "y")],
        {"x": ["N", "L"]},
        {"y": ["M", 4]},
        {"shape": np.array([-1, 7]), "w": tiny.normal(7, 4)},
    )
    model = ir.from_proto(made)
    with pytest.raises(InputError, match=r"does not run on generated input \(x \[1, 16\]\)") as one:
        generated_trial(model, ["w"], model_inputs(model), 2, RUNNER, OPTIONS)
    assert "--input-shape" in one.value.problems[0].hint
    assert not isinstance(one.value, PluginError)
    fixed = model_inputs(model, shapes={"x": (1, 14)})
    found = generated_trial(model, ["w"], fixed, 2, RUNNER, OPTIONS)
    assert found.cosine({}) == pytest.approx(1.0)


# -------------------------------------------------------------------------------------- tuning


def two_paths(share: float, size: int = 64) -> onnx.ModelProto:
    """A sum of two products, of which the second counts ``share`` as much as the first."""
    return tiny.model(
        [
            tiny.node("MatMul", "x w1", "a"),
            tiny.node("MatMul", "x w2", "b"),
            tiny.node("Mul", "b share", "c"),
            tiny.node("Add", "a c", "y"),
        ],
        {"x": ["N", size]},
        {"y": ["N", size]},
        {
            "w1": tiny.normal(size, size),
            "w2": tiny.normal(size, size, seed=1),
            "share": np.array(share, np.float32),
        },
    )


def size_of(tuned: Tuned) -> float:
    return sum(one.codes.size * entropy(one.codes) for one in tuned.quantized.values()) / 8


@pytest.mark.parametrize("target", [0.9, 0.99, 0.995, 0.9999])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tiny.transformer, ["q_w", "k_w", "v_w", "o_w", "up_w", "down_w"]),
        (lambda: two_paths(0.3), ["w1", "w2"]),
    ],
)
def test_the_cosine_is_just_above_the_target(make: Any, names: list[str], target: float) -> None:
    made = make()
    tuned = auto_tune(trial(made, names, count=16), target=target)
    assert target <= tuned.cosine <= 1 - (1 - target) * 0.94
    again = {name: one.dequantize() for name, one in tuned.quantized.items()}
    other = baked(made, again)
    found = [
        cosine(tiny.run(made, one.feeds)["y"], tiny.run(other, one.feeds)["y"])
        for one in samples(made, 16)
    ]
    assert np.mean(found) == pytest.approx(tuned.cosine, abs=1e-5)
    assert tuned.probes >= len(names)
    assert tuned.evaluations <= 12  # errors of so small weights jump


def test_noise_goes_where_the_output_does_not_notice_it() -> None:
    """Two weights alike, one of which counts a tenth: its step is ten times as large."""
    tuned = auto_tune(trial(two_paths(0.1), ["w1", "w2"], count=16), target=0.9995)
    assert tuned.steps["w2"] / tuned.steps["w1"] == pytest.approx(10, rel=0.15)


def test_the_file_is_smaller_than_with_one_relative_error_for_all() -> None:
    made = two_paths(0.1)
    tuned = auto_tune(trial(made, ["w1", "w2"], count=16))
    trying = trial(made, ["w1", "w2"], count=16)
    for error in np.geomspace(0.02, 0.3, 60)[::-1]:
        arrays = rounded(made, ["w1", "w2"], float(error))
        if trying.cosine(arrays) >= tuned.cosine:
            break
    codes = [quantize_step(w, step_for(w, float(error))).codes for w in trying.weights.values()]
    alike = sum(one.size * entropy(one) for one in codes) / 8
    assert size_of(tuned) < 0.75 * alike


def test_kept_sums_save_bytes_behind_inputs_that_are_not_negative() -> None:
    made = two_paths(0.3)
    shown = [
        Sample(name=one.name, feeds={"x": np.abs(one.feeds["x"])}) for one in samples(made, 16)
    ]
    plain = auto_tune(trial(made, ["w1", "w2"], shown))
    kept = auto_tune(trial(made, ["w1", "w2"], shown), {"w1": (1,), "w2": (1,)})
    assert kept.cosine == pytest.approx(plain.cosine, abs=3e-4)
    assert size_of(kept) < 0.9 * size_of(plain)


def test_a_weight_without_effect_gets_no_coarser_than_was_tried() -> None:
    tuned = auto_tune(trial(two_paths(0.0), ["w1", "w2"], count=8))
    assert tuned.errors["w2"] == pytest.approx(0.05, rel=0.01)
    assert tuned.cosine >= 0.995


def test_where_nothing_has_an_effect_the_search_ends_at_once() -> None:
    made = two_paths(0.0)
    made.graph.node[0].input[1] = "other"
    made.graph.initializer.append(onnx.numpy_helper.from_array(tiny.normal(64, 64), "other"))
    tuned = auto_tune(trial(made, ["w2"]))
    assert (tuned.cosine, tuned.evaluations) == (pytest.approx(1.0), 1)


def test_no_weight_is_coarser_than_half_its_size() -> None:
    tuned = auto_tune(trial(two_paths(0.001), ["w1", "w2"], count=8), target=0.9)
    assert tuned.errors["w2"] == pytest.approx(0.5, rel=0.01)


def test_constant_and_zero_weights_are_no_obstacle() -> None:
    made = two_paths(0.3)
    other = baked(
        made, {"w2": np.full((64, 64), 0.25, np.float32), "share": np.array(1, np.float32)}
    )
    tuned = auto_tune(trial(other, ["w1", "w2"], count=8))
    assert tuned.errors["w2"] == 0.0
    assert tuned.cosine >= 0.995
    other = baked(made, {"w2": np.zeros((64, 64), np.float32)})
    assert auto_tune(trial(other, ["w1", "w2"], count=8)).errors["w2"] == 0.0


def fragile() -> onnx.ModelProto:
    """The sine of a product that is thousands large: rounding destroys it."""
    return tiny.model(
        [
            tiny.node("MatMul", "x w1", "a"),
            tiny.node("MatMul", "a w2", "b"),
            tiny.node("Mul", "b large", "c"),
            tiny.node("Sin", "c", "y"),
        ],
        {"x": ["N", 16]},
        {"y": ["N", 16]},
        {
            "w1": tiny.normal(16, 16),
            "w2": tiny.normal(16, 16, seed=1),
            "large": np.array(1e5, np.float32),
        },
    )


def test_a_target_out_of_reach_names_the_weights_that_matter_most() -> None:
    with pytest.raises(InputError) as caught:
        auto_tune(trial(fragile(), ["w1", "w2"], count=8))
    first, *others = caught.value.problems
    assert "cannot reach a mean cosine of 0.995" in first.message
    assert "skip_quant_node" in first.hint
    assert {one.location.tensor for one in others} == {"w1", "w2"}


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_weights_whose_probe_destroys_the_output_are_probed_again(scale: float) -> None:
    made = baked(fragile(), {"large": np.array(scale, np.float32)})
    tuned = auto_tune(trial(made, ["w1", "w2"], count=8))
    assert tuned.probes > 2
    assert 0.995 <= tuned.cosine <= 0.997  # the sine makes the errors jump


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, 2.0])
def test_the_target_has_to_be_a_cosine(target: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        auto_tune(trial(two_paths(1.0), ["w1"]), target=target)


def test_progress_ends_at_the_total_and_never_goes_back() -> None:
    told: list[tuple[int, int]] = []
    trying = trial(two_paths(0.3), ["w1", "w2"], count=8)
    started = trying.runs
    auto_tune(trying, progress=lambda done, total: told.append((done, total)))
    done = [one for one, _ in told]
    assert done == sorted(done)
    assert all(one <= total for one, total in told)
    assert told[-1] == (trying.runs - started, trying.runs - started)


def test_tuning_is_repeatable() -> None:
    one, other = (auto_tune(trial(two_paths(0.3), ["w1", "w2"], count=8)) for _ in range(2))
    assert one.steps == other.steps
    assert one.cosine == other.cosine


def test_the_steps_make_the_same_codes_again() -> None:
    trying = trial(two_paths(0.3), ["w1", "w2"], count=8)
    tuned = auto_tune(trying, {"w1": (1,)})
    for name, one in tuned.quantized.items():
        again = quantize_step(trying.weights[name], tuned.steps[name], (1,) if name == "w1" else ())
        np.testing.assert_array_equal(again.codes, one.codes)
        np.testing.assert_array_equal(again.scale, one.scale)


# -------------------------------------------------------------------------------------- scales


def test_saved_steps_are_the_same_numbers(tmp_path: Path) -> None:
    steps = {"läyer/w:0": 0.1 + 0.2, "b": 1e-37, "c": 3.0}
    path = tmp_path / "steps.json"
    path.write_text(scales_to_json(steps), encoding="utf-8")
    assert scales_from_json(path, list(steps)) == steps
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == 1


def test_names_that_do_not_match_are_told_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    path.write_text(scales_to_json({"conv1_w": 0.1, "other": 0.2, "bad": 0.3}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        scales_from_json(path, ["conv2_w", "other", "last"])
    messages = [one.message for one in caught.value.problems]
    assert messages == [
        "'steps' has 'conv1_w', which is no weight to quantize",
        "'steps' has 'bad', which is no weight to quantize",
        "'steps' has no step for the weight 'conv2_w'",
        "'steps' has no step for the weight 'last'",
    ]
    assert caught.value.problems[0].hint == "did you mean 'conv2_w'?"
    assert all(one.location.file == str(path) for one in caught.value.problems)


@pytest.mark.parametrize("step", ["0", "-1", "true", '"0.1"', "null", "[0.1]", "1e999", "NaN"])
def test_a_step_is_a_number_above_zero(tmp_path: Path, step: str) -> None:
    path = tmp_path / "steps.json"
    path.write_text(f'{{"format": 1, "steps": {{"w": {step}}}}}', encoding="utf-8")
    with pytest.raises(InputError, match=r"the step of 'w' is .*, expected a number above 0"):
        scales_from_json(path, ["w"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"format": 1,\n "steps": {,}}', r"steps.json:2: has no steps: not JSON"),
        (b"\xff\xfe", "it is not text"),
        (b"[1, 2]", "expected an object with 'format' and 'steps'"),
        (b'{"format": 1, "methods": {}}', "expected an object with 'format' and 'steps'"),
        (b'{"format": 2, "steps": {}}', "in format 2, expected 1"),
        (b'{"format": 1, "steps": [1]}', "'steps' is not an object"),
        (b"[" * 100_000, "not JSON|nested too deeply"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "steps.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        scales_from_json(path, ["w"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        scales_from_json(tmp_path / "nothing.json", ["w"])
