"""``ptq pack`` and ``ptq unpack`` on a real model: what they print, write, and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ptq_core.archive import load

pytest.importorskip("ptq_encoding_rans", reason="integers are coded by ptq-encoding-rans")
onnxruntime = pytest.importorskip("onnxruntime")

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def model(tmp_path):
    """The example with int8 weights, dequantized when it runs."""
    made = onnx.load(DIGITS)
    graph = made.graph
    for tensor in [*graph.initializer]:
        values = numpy_helper.to_array(tensor)
        if values.ndim < 2 or values.size < 1000:
            continue
        scale = np.float32(np.abs(values).max() / 127)
        graph.initializer.remove(tensor)
        codes = np.rint(values / scale).astype(np.int8)
        name = tensor.name
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}.codes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        inputs = [f"{name}.codes", f"{name}.scale"]
        graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", inputs, [name]))
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "digits_int8.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "digits.ptqz"


def test_packed_and_unpacked_it_is_the_same_file(ptq, model, out):
    done = ptq("pack", model, "-o", out)
    assert done.code == 0
    assert f"wrote {out}" in done.out
    assert "times smaller" in done.out
    assert "to their entropy" in done.out
    assert "int8" in done.out
    done = ptq("unpack", out, "-o", out.with_name("again.onnx"))
    assert done.code == 0
    assert f"wrote {out.with_name('again.onnx')}" in done.out
    assert out.with_name("again.onnx").read_bytes() == model.read_bytes()


def test_json_has_sizes_and_entropy(ptq, model, out):
    done = ptq("pack", model, "-o", out, "--json")
    found = json.loads(done.out)
    assert (done.code, found["exit_code"]) == (0, 0)
    assert found["bytes_before"] == model.stat().st_size
    assert found["bytes_after"] == out.stat().st_size < 0.86 * found["bytes_before"]
    assert sum(one["bytes_before"] for one in found["tensors"]) == found["bytes_before"]
    codes = found["codes"]
    assert codes["entropy_bytes"] < codes["bytes"] < 1.03 * codes["entropy_bytes"]
    integers = [one for one in found["tensors"] if one["kind"] == "integers"]
    assert sum(one["elements"] for one in integers) == codes["elements"] > 100_000
    done = ptq("unpack", out, "--json")
    found = json.loads(done.out)
    assert found["files"] == [str(out.with_suffix(".onnx"))]
    assert found["bytes_after"] == model.stat().st_size


def test_an_archive_runs_without_being_unpacked(ptq, model, out):
    assert ptq("pack", model, "-o", out).code == 0
    sessions = [
        onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
        for given in (load(out), str(model))
    ]
    (given,) = sessions[0].get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    feeds = {given.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    one, other = (session.run(None, feeds)[0] for session in sessions)
    np.testing.assert_array_equal(one, other)


def test_without_output_it_is_beside_the_source(ptq, model):
    assert ptq("pack", model).code == 0
    original = model.read_bytes()
    model.unlink()
    assert ptq("unpack", model.with_suffix(".ptqz")).code == 0
    assert model.read_bytes() == original


@pytest.mark.parametrize("how", ["short", "altered", "magic", "version", "text", "missing"])
def test_a_bad_archive_is_one_error_and_no_file(ptq, model, out, how):
    assert ptq("pack", model, "-o", out).code == 0
    whole = out.read_bytes()
    middle = len(whole) // 2
    contents = {
        "short": whole[:middle],
        "altered": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "magic": b"PK\3\4" + whole[4:],
        "version": whole[:8] + b"\2" + whole[9:],
        "text": b"version https://git-lfs.github.com/spec/v1\n",
    }
    out.unlink()
    if how in contents:
        out.write_bytes(contents[how])
    before = sorted(out.parent.iterdir())
    done = ptq("unpack", out, "-o", out.with_name("again.onnx"))
    assert done.code == 2
    assert done.err.count("error PTQ") == 1
    assert str(out) in done.err
    assert "hint:" in done.err
    assert sorted(out.parent.iterdir()) == before


def test_a_missing_encoding_is_named(ptq, model, out):
    assert ptq("pack", model, "-o", out).code == 0
    again = out.with_name("again.onnx")
    done = ptq("unpack", out, "-o", again, "--no-plugin", "ptq-encoding-rans", "--json")
    assert done.code == 2
    (problem,) = json.loads(done.out)["error"]["problems"]
    assert "needs the encoding RANS of ptq-encoding-rans" in problem["message"]
    assert problem["file"] == str(out)
    assert not again.exists()


def test_what_cannot_be_packed_is_one_error_and_no_file(ptq, model, out):
    out.with_name("cut.onnx").write_bytes(model.read_bytes()[:5000])
    for given in (out.with_name("cut.onnx"), out.with_name("none.onnx"), out.parent):
        done = ptq("pack", given, "-o", out)
        assert done.code == 2
        assert done.err.count("error PTQ") == 1
        assert not out.exists()
    assert ptq("pack", model, "-o", model).code == 2
    assert onnx.load(model).graph.node


def test_help_says_what_they_are_for(ptq):
    assert "archive" in ptq("pack", "--help").out
    assert "byte for byte" in ptq("unpack", "--help").out


@pytest.mark.parametrize("bits", [3, 5, 8, 12])
def test_quantized_weights_are_stored_as_their_codes(ptq, out, bits):
    pytest.importorskip("ptq_encoding_packed")
    model = out.with_name("weights.onnx")
    assert ptq("quantize", DIGITS, "--bits", bits, "-o", model).code == 0
    found = json.loads(ptq("pack", model, "-o", out, "--json").out)
    assert not found["notes"]
    coded = [one for one in found["tensors"] if one["entropy"] is not None]
    large = [one for one in coded if one["elements"] >= 20_000]
    assert large
    assert {one["kind"] for one in large} == {"integers" if bits == 8 else "encoded"}
    for one in large:
        assert one["bytes_after"] < one["bytes_before"]
        if bits > 8:  # on so few codes of 4096, the entropy says less than a coder has to be told
            continue
        assert one["bytes_after"] < 1.02 * one["elements"] * one["entropy"] / 8
    assert load(out) == model.read_bytes()


SHARED = Path(__file__).parents[3] / "shared" / "models"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real networks are not part of the repository")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_real_network_is_within_one_percent_of_its_entropy(ptq, out, bits):
    pytest.importorskip("ptq_encoding_packed")
    model = out.with_name("weights.onnx")
    done = ptq("quantize", SHARED / "squeezenet1_1.onnx", "--bits", bits, "-o", model)
    assert done.code == 0
    codes = json.loads(ptq("pack", model, "-o", out, "--json").out)["codes"]
    assert codes["elements"] > 1_200_000
    assert codes["entropy_bytes"] < codes["bytes"] < 1.01 * codes["entropy_bytes"]
    assert load(out) == model.read_bytes()
