"""Weight quantization on the command line, and its results where ptq is not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import tiny_models as tiny
from tests.command_line import Done, Ptq
from tests.tiny_models import node, normal
from tests.weight_checks import network, operators, run

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
PICTURES = ["--mean", "127.5", "--std", "127.5", "--resize", "32x32"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(network(), tmp_path)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    return Path(shutil.copy(DIGITS / "digits.onnx", tmp_path))


def config(folder: Path, text: str) -> Path:
    path = folder / "quant.cfg"
    path.write_text(text)
    return path


# -------------------------------------------------------------------------------------- quantize


def test_bits_are_all_it_takes(ptq: Ptq, digits: Path) -> None:
    done = ptq("quantize", digits, "--bits", 4)
    assert done.code == 0, done.err
    output = digits.with_name("digits_w4.onnx")
    assert f"wrote {output}: 586 kB -> " in done.out
    assert "x smaller" in done.out
    assert "generated samples" in done.out
    assert "note: there was no data" in done.out
    assert "with integer weights" in done.out
    assert "bits each with their parameters (entropy of the codes: " in done.out
    assert "everything else in the file" in done.out
    assert output.stat().st_size < digits.stat().st_size / 4


@pytest.mark.parametrize(("bits", "name"), [(0, "model_mixed"), (1, "model_w1"), (16, "model_w16")])
def test_the_default_output_tells_the_width(bits: int, name: str, ptq: Ptq, model: Path) -> None:
    assert ptq("quantize", model, "--bits", bits).code == 0
    assert model.with_name(f"{name}.onnx").exists()


def test_data_corrects_and_shows_its_config(ptq: Ptq, digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    plain, corrected, again = (tmp_path / name for name in ("p.onnx", "c.onnx", "again.onnx"))
    assert ptq("quantize", digits, "--bits", 3, "-o", plain).code == 0
    done = ptq(
        "quantize", digits, "--bits", 3, "--data", DIGITS / "calib", *PICTURES, "-o", corrected
    )
    assert done.code == 0, done.err
    assert "8 unseen samples" in done.out
    assert "bit_num=3" in done.out
    assert "note: biases of " in done.out
    start = done.out.index("[common_quant_param]")
    kept = config(tmp_path, done.out[start : done.out.index("\n\npreparing")])
    assert ptq("quantize", digits, "-c", kept, "-o", again).code == 0
    assert again.read_bytes() == corrected.read_bytes()


def test_json_has_every_weight(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    done = ptq("quantize", model, "--bits", 5, "-o", tmp_path / "out.onnx", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["exit_code"] == 0
    assert found["generated"] is True
    assert found["bytes_after"] == (tmp_path / "out.onnx").stat().st_size
    weights = {one["name"]: one for one in found["weights"]}
    assert set(weights) == {"table", "w1", "w2"}
    one = weights["w1"]
    assert one["nodes"] == ["up"]
    assert one["shape"] == [32, 64]
    assert (one["bits"], one["encoding"], one["bytes_before"]) == (5, "PACKED", 4 * 32 * 64)
    assert one["bytes_after"] >= 32 * 64 * 5 / 8
    assert one["bits_per_weight"] == 8 * one["bytes_after"] / (32 * 64)
    assert 4 < one["entropy"] <= 5
    assert 20 < one["sqnr"] < 40
    for key in ("scale", "zero_point", "correction_var", "correction_mean"):
        assert len(one[key]) == 64
    assert found["nodes"]["weights"] == 3


def test_json_has_no_infinity(ptq: Ptq, tmp_path: Path) -> None:
    """A constant weight loses nothing: its SQNR is infinite, which JSON has not."""
    made = network()
    made.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.full((32, 64), 0.5, np.float32), "w1")
    )
    done = ptq("quantize", tiny.save(made, tmp_path), "--bits", 4, "--json")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    assert json.loads(done.out, parse_constant=refuse)["exit_code"] == 0


def test_fp16_and_scales_are_kept(ptq: Ptq, digits: Path, tmp_path: Path) -> None:
    plain, half, scales = (tmp_path / name for name in ("p.onnx", "h.onnx", "scales.json"))
    assert ptq("quantize", digits, "--bits", 0, "-o", plain).code == 0
    done = ptq("quantize", digits, "--bits", 0, "--fp16", "--save-scales", scales, "-o", half)
    assert done.code == 0, done.err
    assert half.stat().st_size < plain.stat().st_size
    steps = json.loads(scales.read_text())["steps"]
    assert len(steps) == 16
    text = (
        "[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num=0\n"
        "[mixed_bit_weight_quant_param]\nscales=scales.json\n"
    )
    again = tmp_path / "again.onnx"
    assert ptq("quantize", digits, "-c", config(tmp_path, text), "--fp16", "-o", again).code == 0
    first, second = (onnx.load(one).graph for one in (half, again))
    assert first.SerializeToString() == second.SerializeToString()


def test_a_missed_gate_is_exit_code_1(ptq: Ptq, model: Path) -> None:
    done = ptq("quantize", model, "--bits", 1, "--min-cosine", 0.9999)
    assert done.code == 1
    assert "quality gate missed" in done.err
    assert model.with_name("model_w1.onnx").exists()


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", 4, "--method", "KL"], "--method and --bits"),
        (["--bits", 4, "--calibration", "table.json"], "--calibration and --bits"),
        (["--bits", 4, "-c", "quant.cfg"], "--bits and -c"),
        (["--bits", 17], "Invalid value for '--bits': "),
        (["--bits", -1], "Invalid value for '--bits': "),
        (["--bits", 4, "--skip", "upp"], "did you mean 'up'"),
        (["--bits", 4, "--target", "ASEND"], "did you mean"),
    ],
)
def test_what_goes_not_together(
    arguments: list[object], message: str, ptq: Ptq, model: Path, tmp_path: Path
) -> None:
    config(tmp_path, "[common_quant_param]\nquant_type=WEIGHT_QUANT\n")
    (tmp_path / "table.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    given = [tmp_path / str(one) if str(one).endswith((".cfg", ".json")) else one
             for one in arguments]  # fmt: skip
    done = ptq("quantize", model, *given)
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("common", "weight", "message"),
    [
        ("bit_num=4", "encoding=RANS", "no runtime decodes it"),
        ("bit_num=4", "encoding=PAKED", "did you mean 'PACKED'"),
        ("bit_num=4\nenable_encode=false", "", "only 8 and 16 bits can be stored"),
        ("bit_num=0\nenable_encode=false", "", "only 8 and 16 bits can be stored"),
        ("bit_num=0", "dequant_strategy=ON_THE_FLY", "remove dequant_strategy"),
        ("bit_num=4", "quant_strategy=GPTQ", "measures on samples"),
        ("bit_num=17", "", "bit_num"),
        ("bit_num=4", "group_size=-1", "group_size"),
        ("bit_num=0\n[mixed_bit_weight_quant_param]\nscales=none.json", "", "none.json"),
    ],
)
def test_configs_that_cannot_be_done(
    common: str, weight: str, message: str, ptq: Ptq, model: Path, tmp_path: Path
) -> None:
    section = f"[weight_quant_param]\n{weight}\n" if weight else ""
    text = f"[common_quant_param]\nquant_type=WEIGHT_QUANT\n{common}\n{section}"
    done = ptq("quantize", model, "-c", config(tmp_path, text), "-o", tmp_path / "out.onnx")
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert not (tmp_path / "out.onnx").exists()


def test_a_weight_that_is_not_finite(ptq: Ptq, tmp_path: Path) -> None:
    made = network()
    array = normal(32, 64)
    array[1, 2] = np.nan
    made.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    done = ptq("quantize", tiny.save(made, tmp_path), "--bits", 4)
    assert done.code == 2
    assert "w1" in done.err
    assert "1 of 2048 weights are NaN or infinite" in " ".join(done.err.split())
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_without_weights(ptq: Ptq, tmp_path: Path) -> None:
    made = tiny.model([node("Relu", "x", "y", "relu")], {"x": [3]}, {"y": [3]})
    done = ptq("quantize", tiny.save(made, tmp_path), "--bits", 4)
    assert done.code == 2
    assert "there is nothing to quantize" in done.err


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_plain_takes_whole_bytes(bits: int, ptq: Ptq, model: Path, tmp_path: Path) -> None:
    text = (
        f"[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num={bits}\n"
        "[weight_quant_param]\nencoding=PLAIN\n"
    )
    done = ptq(
        "quantize", model, "-c", config(tmp_path, text), "-o", tmp_path / "out.onnx", "--json"
    )
    assert done.code == 0, done.err
    width = 1 if bits <= 8 else 2
    for one in json.loads(done.out)["weights"]:
        assert one["encoding"] == "PLAIN"
        assert one["bytes_after"] >= width * np.prod(one["shape"])
    assert not onnx.load(tmp_path / "out.onnx").functions


@pytest.mark.parametrize("bits", [8, 16])
def test_whole_bytes_need_no_encoding(bits: int, ptq: Ptq, model: Path, tmp_path: Path) -> None:
    text = f"[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num={bits}\n"
    for name, line in (("on", ""), ("off", "enable_encode=false\n")):
        done = ptq(
            "quantize", model, "-c", config(tmp_path, text + line), "-o", tmp_path / f"{name}.onnx"
        )
        assert done.code == 0, done.err
    first, second = (onnx.load(tmp_path / one).graph for one in ("on.onnx", "off.onnx"))
    assert first.SerializeToString() == second.SerializeToString()


# -------------------------------------------------------------------------------------- plan


def test_plan_shows_every_node(ptq: Ptq, model: Path) -> None:
    done = ptq("plan", model, "--bits", 4, "--skip", "down", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    nodes = {one["name"]: one for one in found["nodes"]}
    assert nodes["embedding"]["decision"] == "weights"
    assert nodes["embedding"]["reason"] == "weights 100x32 in 4 bits, a scale for each channel"
    assert nodes["down"]["decision"] == "float"
    assert nodes["down"]["reason"] == "'down' is named in skip_quant_node"
    assert nodes["relu"]["decision"] == "untouched"
    assert found["counts"]["weights"] == 2
    text = ptq("plan", model, "--bits", 0).out
    assert "mixed bits, one step for all" in " ".join(text.split())
    assert sorted(one.name for one in model.parent.iterdir()) == ["model.onnx"]


# --------------------------------------------------------------------------- converter_lite

FIXED = """[common_quant_param]
# Supports WEIGHT_QUANT or FULL_QUANT
quant_type=WEIGHT_QUANT
# Weight quantization support the number of bits [0,16]
bit_num={bits}
min_quant_weight_size={size}
min_quant_weight_channel={channels}
"""
MIXED = FIXED + "[mixed_bit_weight_quant_param]\ninit_scale=0.02\n"
ON_THE_FLY = FIXED + (
    "[weight_quant_param]\ndequant_strategy=ON_THE_FLY\n"
    "# If set to true, it will enable PerChannel quantization\n"
    "per_channel=True\nbias_correction=False\n"
)
GE = "[ascend_context]\n# The converted model is suitable for Ascend GE processes\nprovider=ge\n"


def converter(ptq: Ptq, model: Path, text: str, *flags: str) -> Done:
    path = config(model.parent, text)
    output = model.parent / "result"
    return ptq(
        "converter_lite", "--fmk=ONNX", f"--modelFile={model}", f"--outputFile={output}",
        f"--configFile={path}", *flags,
    )  # fmt: skip


def close(model: Path, least: float) -> None:
    feeds = {"ids": np.arange(10).reshape(2, 5)}
    first, second = (run(model.with_name(n), feeds)[0] for n in ("model.onnx", "result.onnx"))
    first, second = first.ravel().astype(float), second.ravel().astype(float)
    assert first @ second / np.sqrt((first @ first) * (second @ second)) > least


@pytest.mark.parametrize("text", [
    FIXED.format(bits=8, size=0, channels=16),
    MIXED.format(bits=0, size=1000, channels=5),
    FIXED.format(bits=3, size=0, channels=16),
])  # fmt: skip
def test_the_guides_configs(text: str, ptq: Ptq, model: Path) -> None:
    done = converter(ptq, model, text)
    assert done.code == 0, done.err
    assert "result.onnx" in done.out
    close(model, 0.95)


def test_fp16_of_the_converter(ptq: Ptq, digits: Path) -> None:
    """Its classifier has too few channels: a float weight is left."""
    sizes = []
    for flag in ("--fp16=off", "--fp16=on"):
        done = converter(ptq, digits, FIXED.format(bits=8, size=0, channels=16), flag)
        assert done.code == 0, done.err
        sizes.append(digits.with_name("result.onnx").stat().st_size)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("flags", [[], ["--optimize=ascend_oriented:910b"]])
def test_on_the_fly_for_ascend(bits: int, flags: list[str], ptq: Ptq, model: Path) -> None:
    done = converter(ptq, model, ON_THE_FLY.format(bits=bits, size=1000, channels=5) + GE, *flags)
    assert done.code == 0, done.err
    proto = onnx.load(model.with_name("result.onnx"))
    found = operators(proto.graph)
    assert found["Cast"] == 3
    assert found["Mul"] >= 3
    assert not {"DequantizeLinear", "Unpack4"} & set(found)
    assert not proto.functions
    kinds = {one.data_type for one in proto.graph.initializer}
    assert (onnx.TensorProto.INT16 if bits > 8 else onnx.TensorProto.INT8) in kinds
    assert ("whole bytes only" in done.out) == (bits == 4)
    close(model, 0.98 if bits == 4 else 0.9999)


def test_on_the_fly_for_ascend_needs_its_provider(ptq: Ptq, model: Path) -> None:
    text = ON_THE_FLY.format(bits=8, size=1000, channels=5)
    for given, flags in (
        (text, ["--optimize=ascend_oriented"]),
        (text + "[ascend_context]\nprovider=atc\n", []),
    ):
        done = converter(ptq, model, given, *flags)
        assert done.code == 2
        assert "provider=ge" in done.err
    assert not model.with_name("result.onnx").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_on_the_fly_for_cpus(bits: int, ptq: Ptq, model: Path) -> None:
    done = converter(ptq, model, ON_THE_FLY.format(bits=bits, size=1000, channels=5))
    assert done.code == 0, done.err
    assert operators(onnx.load(model.with_name("result.onnx")).graph)["DequantizeLinear"] == 2
    close(model, 0.98)


# ---------------------------------------------------------------------- without ptq installed

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("ptq"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import numpy as np
import onnxruntime

inputs = np.load(sys.argv[1])
for model in sys.argv[2:]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.save(model + ".npy", session.run(None, {"ids": inputs})[0])
loaded = [name for name in sys.modules if name.startswith("ptq")]
assert not loaded, loaded
try:
    import ptq_core
except ImportError:
    print("alone")
"""


def test_results_need_no_ptq(ptq: Ptq, model: Path, tmp_path: Path) -> None:
    """In a process that cannot import ptq, every form of storage gives the same outputs."""
    results = []
    for bits in (0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16):
        results.append(tmp_path / f"w{bits}.onnx")
        assert ptq("quantize", model, "--bits", bits, "-o", results[-1]).code == 0
    text = ON_THE_FLY.format(bits=4, size=0, channels=0)
    results.append(tmp_path / "on_the_fly.onnx")
    assert ptq("quantize", model, "-c", config(tmp_path, text), "-o", results[-1]).code == 0
    ids = np.arange(10).reshape(2, 5)
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "alone.py").write_text(ALONE)
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "alone.py"), str(tmp_path / "ids.npy"), *results],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "alone"
    for path in results:
        np.testing.assert_array_equal(np.load(f"{path}.npy"), run(path, {"ids": ids})[0])
        used = {one.domain for one in onnx.load(path).opset_import}
        assert used <= {"", "ptq.packed", "ptq.entropy"}  # functions of the file, no library
