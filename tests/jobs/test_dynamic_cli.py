"""Dynamic quantization on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import tiny_models as tiny
from tests.command_line import Ptq
from tests.dynamic_checks import IDS, STRATEGIES, config_file
from tests.tiny_models import node, normal
from tests.weight_checks import cosine, network, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(network(), tmp_path)


def words(text: str) -> str:
    return " ".join(text.split())


# -------------------------------------------------------------------------------------- quantize


@pytest.mark.parametrize("strategy", [*STRATEGIES, "alwc", "Acwl"])
def test_a_strategy_is_all_it_takes(strategy: str, ptq: Ptq, model: Path) -> None:
    done = ptq("quantize", model, "--dynamic", strategy)
    assert done.code == 0, done.err
    output = model.with_name("model_dynamic.onnx")
    assert f"wrote {output}: " in done.out
    assert "x smaller" in done.out
    assert "there was no data" in done.out
    first, second = (run(path, IDS)[0] for path in (model, output))
    assert cosine(first, second) > 0.999


def test_the_config_that_is_shown_does_the_same(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "0.npy", np.arange(5)[None])
    given = ["--dynamic", "ACWC", "--skip", "down", "--data", tmp_path / "samples"]
    done = ptq("quantize", model, *given, "-o", tmp_path / "a.onnx")
    assert done.code == 0, done.err
    start = done.out.index("[common_quant_param]")
    kept = config_file(tmp_path, done.out[start : done.out.index("\n\npreparing")])
    assert ptq("quantize", model, "-c", kept, "-o", tmp_path / "b.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_json_has_counts_and_weights(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    done = ptq("quantize", model, "--dynamic", "ALWC", "-o", tmp_path / "out.onnx", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["exit_code"] == 0
    assert found["nodes"]["dynamic"] == 2
    assert found["nodes"]["weights"] == 1
    assert found["bytes_after"] == (tmp_path / "out.onnx").stat().st_size
    weights = {one["name"]: one for one in found["weights"]}
    assert set(weights) == {"table", "w1", "w2"}
    assert weights["w1"]["nodes"] == ["up"]
    assert weights["w1"]["bits"] == 8
    assert weights["w1"]["bytes_after"] == 32 * 64 + 4 * 64
    assert len(weights["w1"]["scale"]) == 64
    assert len(weights["table"]["scale"]) == 100
    assert weights["w2"]["sqnr"] > 35


def test_metadata_tells_what_was_done(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert ptq("quantize", model, "--dynamic", "ACWL", "-o", output).code == 0
    metadata = {one.key: one.value for one in onnx.load(output).metadata_props}
    assert metadata["ptq.job"] == "DYNAMIC_QUANT"
    assert metadata["ptq.target"] == "CPU"
    assert "ptq-core==" in metadata["ptq.plugins"]
    other = tmp_path / "other.onnx"
    assert ptq("quantize", model, "--dynamic", "ALWC", "-o", other).code == 0
    digests = [
        next(one.value for one in onnx.load(path).metadata_props if one.key == "ptq.config_sha256")
        for path in (output, other)
    ]
    assert digests[0] != digests[1]


def test_a_missed_gate_is_exit_code_1(ptq: Ptq, model: Path) -> None:
    done = ptq("quantize", model, "--dynamic", "ALWC", "--min-cosine", 0.9999999)
    assert done.code == 1
    assert "quality gate missed" in done.err
    assert model.with_name("model_dynamic.onnx").exists()
    assert ptq("quantize", model, "--dynamic", "ALWC", "--min-cosine", 0.99).code == 0


def test_plan_shows_every_node(ptq: Ptq, model: Path) -> None:
    done = ptq("plan", model, "--dynamic", "ACWC", "--skip", "down", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    nodes = {one["name"]: one for one in found["nodes"]}
    assert nodes["embedding"]["decision"] == "weights"
    assert nodes["up"]["decision"] == "dynamic"
    assert nodes["up"]["reason"] == (
        "activations a scale for each token, while running; weights a scale for each channel"
    )
    assert nodes["down"]["reason"] == "named in skip_quant_node"
    assert nodes["relu"]["decision"] == "untouched"
    assert found["counts"]["dynamic"] == 1
    assert sorted(one.name for one in model.parent.iterdir()) == ["model.onnx"]


# -------------------------------------------------------------------------------------- refusals

NO_DYNAMIC = """
name = "STATIC"
summary = "ranges are known beforehand"
activation = { dtype = "uint8", symmetric = false }
weight = { dtype = "int8", symmetric = true, narrow_range = true }
[operators.MatMul]
quantize = "always"
"""


@pytest.mark.parametrize("command", ["quantize", "plan"])
@pytest.mark.parametrize("target", ["ASCEND", "static.toml"])
def test_targets_that_cannot(target: str, command: str, ptq: Ptq, model: Path) -> None:
    if target.endswith(".toml"):
        target = str(config_file(model.parent, NO_DYNAMIC, target))
    before = sorted(model.parent.iterdir())
    done = ptq(command, model, "--dynamic", "ALWC", "--target", target)
    assert done.code == 2
    assert "has no dynamic quantization" in words(done.err)
    assert "FULL_QUANT" in done.err
    assert sorted(model.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dynamic", "ALWC", "--bits", 8], "--dynamic and --bits"),
        (["--dynamic", "ALWC", "--fp16"], "fp16"),
        (["--dynamic", "ALWC", "--method", "KL"], "--method and --dynamic"),
        (["--dynamic", "ALWC", "--calibration", "table.json"], "--calibration and --dynamic"),
        (["--dynamic", "ALWC", "-c", "quant.cfg"], "--dynamic and -c"),
        (["--dynamic", "AWLC"], "AWLC"),
        (["--dynamic", "ALWC", "--skip", "upp"], "did you mean 'up'"),
    ],
)
def test_what_goes_not_together(
    arguments: list[object], message: str, ptq: Ptq, model: Path, tmp_path: Path
) -> None:
    config_file(tmp_path, "[common_quant_param]\nquant_type=DYNAMIC_QUANT\n", "quant.cfg")
    (tmp_path / "table.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    given = [tmp_path / str(one) if str(one).endswith((".cfg", ".json")) else one
             for one in arguments]  # fmt: skip
    done = ptq("quantize", model, *given)
    assert done.code == 2
    assert message in words(done.err)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["quantize", "plan"])
def test_a_model_with_nothing_to_quantize(command: str, ptq: Ptq, tmp_path: Path) -> None:
    made = tiny.model([node("Relu", "x", "y", "relu")], {"x": [3]}, {"y": [3]})
    done = ptq(command, tiny.save(made, tmp_path), "--dynamic", "ALWC")
    assert done.code == 2
    assert "there is nothing to quantize while running" in words(done.err)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_a_weight_that_is_not_finite(ptq: Ptq, tmp_path: Path) -> None:
    made = network()
    array = normal(32, 64)
    array[1, 2] = np.nan
    made.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    done = ptq("quantize", tiny.save(made, tmp_path), "--dynamic", "ALWC")
    assert done.code == 2
    assert "'w1'" in done.err
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
