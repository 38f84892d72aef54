"""The command line on a real model: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.command_line import Done

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = DIGITS / "digits.onnx"
CONFIG = DIGITS / "full_quant.cfg"
PICTURES = ["--mean", "127.5", "--std", "127.5", "--resize", "32x32"]
QUANTIZED = {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "int8.onnx"


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of the example."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((DIGITS / "calib").iterdir())[:12]:
        shutil.copy(path, folder)
    return folder


def nothing_written(out: Path) -> bool:
    return not list(out.parent.iterdir())


def is_integer(path: Path) -> bool:
    onnx.checker.check_model(str(path))
    return {node.op_type for node in onnx.load(path).graph.node} >= QUANTIZED


def write_npy(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        sample = generator.uniform(-1, 1, (3, 32, 32)).astype(np.float32)
        np.save(folder / f"{index}.npy", sample)
    return folder


def write_config(path: Path, folder: Path, *, kind: str = "NPY", size: int = 3) -> Path:
    path.write_text(
        "[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]\n"
        f"[data_preprocess_param]\ncalibrate_path=image:{folder}\ncalibrate_size={size}\n"
        f"input_type={kind}\n"
    )
    return path


# ------------------------------------------------------------------------------- it works


def test_config_quantizes(ptq, out):
    done = ptq("quantize", MODEL, "-c", CONFIG, "-o", out)

    assert done.code == 0, done.err
    assert is_integer(out)
    assert out.stat().st_size < MODEL.stat().st_size / 2
    assert [path.name for path in out.parent.iterdir()] == ["int8.onnx"]
    assert f"wrote {out}: 586 kB -> " in done.out
    assert "output logits: cosine 0.99" in done.out
    assert "measuring activations ... 200 samples, " in done.out
    assert "22 integer, 11 fused" in done.out


def test_folder_of_pictures_quantizes_and_shows_its_config(ptq, out, tmp_path):
    done = ptq("quantize", MODEL, "--data", DIGITS / "calib", *PICTURES, "-o", out)

    assert done.code == 0, done.err
    assert "calibrate_size=100\n" in done.out
    assert "image_to_format=RGB\n" in done.out
    assert "8 unseen samples" in done.out  # 100 of the 200 were not calibrated on
    start = done.out.index("[common_quant_param]")
    config = tmp_path / "kept.cfg"
    config.write_text(done.out[start : done.out.index("\n\npreparing")])
    again = out.with_name("again.onnx")
    assert ptq("quantize", MODEL, "-c", config, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_arrays_in_a_folder_quantize(ptq, out, tmp_path):
    data = write_npy(tmp_path / "data")

    done = ptq("quantize", MODEL, "--data", f"image:{data}", "-o", out)

    assert done.code == 0, done.err
    assert "input_type=NPY" in done.out
    assert is_integer(out)


def test_layout_of_bin_files_is_part_of_the_shown_config(ptq, out, tmp_path):
    data = tmp_path / "bin"
    data.mkdir()
    np.zeros((32, 32, 3), np.float32).tofile(data / "0.bin")
    command = ["quantize", MODEL, "--data", data, "-o", out, "--input-data-format", "nhwc"]

    done = ptq(*command, "--input-shape", "image:1,3,32,32")

    assert done.code == 0, done.err
    assert "input_data_format=NHWC" in done.out
    assert "give with -c beside --input-shape" in done.out


def test_result_lies_beside_the_model_by_default(ptq, tmp_path):
    model = shutil.copy(MODEL, tmp_path / "net.onnx")
    config = write_config(tmp_path / "c.cfg", write_npy(tmp_path / "data"))

    assert ptq("quantize", model, "-c", config).code == 0
    assert is_integer(tmp_path / "net_int8.onnx")


def test_skip_adds_to_the_config(ptq, out, tmp_path):
    config = write_config(tmp_path / "c.cfg", write_npy(tmp_path / "data"))
    given = "quant_type=FULL_QUANT\n"
    config.write_text(config.read_text().replace(given, f"{given}skip_quant_node=stem/conv\n"))

    done = ptq("quantize", MODEL, "-c", config, "-o", out, "--skip", "block5/add", "--json")

    assert done.code == 0, done.err
    skipped = {one["name"]: one["reason"] for one in json.loads(done.out)["float_operators"]}
    assert skipped["stem/conv"] == "named in skip_quant_node"
    assert skipped["block5/add"] == (
        "named in skip_quant_node; between integers the runtime may still use its integer kernel"
    )


def test_json_is_one_object_and_tells_all(ptq, out, pictures):
    done = ptq("quantize", MODEL, "--data", pictures, *PICTURES, "-o", out, "--json")

    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["model"] == str(MODEL)
    assert found["target"] == "CPU"
    assert found["files"] == [str(out)]
    assert found["bytes_before"] == MODEL.stat().st_size
    assert found["bytes_after"] == out.stat().st_size
    assert found["samples"] == 12
    stages = {"prepare", "plan", "load", "calibrate", "correct", "emit", "verify", "check", "save"}
    assert set(found["seconds"]) == stages | {"total"}
    assert found["seconds"]["total"] == pytest.approx(
        sum(found["seconds"][stage] for stage in stages)
    )
    assert found["nodes"]["integer"] == 22
    assert found["verification"]["outputs"][0]["cosine"] > 0.99
    assert found["passed"] is True
    assert found["gate"] is None
    assert "[data_preprocess_param]" in found["config"]
    assert "measuring activations" in done.err


def test_verbose_logs_stages_and_ranges(out, pictures):
    process = start("-vv", "quantize", MODEL, "--data", pictures, *PICTURES, "-o", out)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 0
    assert "ptq: calibrate: measuring activations" in err
    assert "ptq: range of image: [-" in err


# -------------------------------------------------------------------------- quality gates


def test_missed_gate_keeps_the_file_and_says_how_to_go_on(ptq, out, pictures):
    done = ptq(
        "quantize", MODEL, "--data", pictures, *PICTURES, "-o", out, "--min-cosine", "0.999999"
    )

    assert done.code == 1
    assert is_integer(out)
    assert "quality gate missed: the cosine similarity of output 'logits' is 0.99" in done.err
    assert "wanted at least 0.999999" in done.err
    lines = [line for line in done.err.splitlines() if line.endswith("dB lost")]
    assert len(lines) == 5
    worst = lines[0].split()[0]
    assert f"--skip {worst} " in done.err
    assert f"the file was kept: {out}" in done.err


def test_missed_gate_in_json(ptq, out, pictures):
    command = ["quantize", MODEL, "--data", pictures, *PICTURES, "-o", out, "--json"]

    done = ptq(*command, "--min-cosine", "0.999999")

    found = json.loads(done.out)
    assert done.code == found["exit_code"] == 1
    assert found["passed"] is False
    assert found["gate"] == 0.999999
    assert {"name", "op_type", "sqnr", "lost"} == set(found["suspects"][0])


def test_met_gate_is_no_news(ptq, out, pictures):
    command = ["quantize", MODEL, "--data", pictures, *PICTURES, "-o", out]

    assert ptq(*command, "--min-cosine", "0.9").code == 0


# ------------------------------------------------------------------------------ bad input


def test_missing_model(ptq, out):
    done = ptq("quantize", "no/such.onnx", "-c", CONFIG, "-o", out)

    assert done.code == 2
    assert "error PTQ200: no/such.onnx: there is no such file" in done.err
    assert nothing_written(out)


def test_error_in_json(ptq, out):
    done = ptq("quantize", "no/such.onnx", "-c", CONFIG, "-o", out, "--json")

    found = json.loads(done.out)
    assert done.code == found["exit_code"] == 2
    assert found["error"]["code"] == "PTQ200"
    (problem,) = found["error"]["problems"]
    assert problem["file"] == "no/such.onnx"
    assert problem["message"] == "there is no such file"


def test_text_file_as_model(ptq, out, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_text("I am no model.\n")

    done = ptq("quantize", model, "-c", CONFIG, "-o", out)

    assert done.code == 2
    assert f"{model}: is not an ONNX model" in done.err
    assert "this looks like a text file" in done.err
    assert nothing_written(out)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_model(ptq, out, tmp_path, kept):
    model = tmp_path / "model.onnx"
    content = MODEL.read_bytes()
    model.write_bytes(content[: int(len(content) * kept)])

    done = ptq("quantize", model, "-c", CONFIG, "-o", out)

    assert done.code == 2
    assert "was cut short" in done.err
    assert nothing_written(out)


def test_model_without_layers(ptq, out, tmp_path):
    model = tmp_path / "relu.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4] x) => (float[1, 4] y) '
    onnx.save(onnx.parser.parse_model(text + "{ y = Relu(x) }"), model)
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "0.npy", np.zeros((1, 4), np.float32))

    done = ptq("quantize", model, "--data", data, "-o", out)

    assert done.code == 2
    assert "there is nothing to quantize" in done.err
    assert nothing_written(out)


def test_quantized_model(ptq, out, pictures):
    command = ["--data", pictures, *PICTURES]
    assert ptq("quantize", MODEL, *command, "-o", out).code == 0
    second = out.with_name("second.onnx")

    done = ptq("quantize", out, *command, "-o", second)

    assert done.code == 2
    assert "is already quantized" in done.err
    assert "start from the float32 model" in done.err
    assert not second.exists()


def test_output_is_the_model(ptq, tmp_path):
    model = Path(shutil.copy(MODEL, tmp_path / "net.onnx"))
    before = model.read_bytes()

    done = ptq("quantize", model, "-c", CONFIG, "-o", model)

    assert done.code == 2
    assert "the output is the model itself" in done.err
    assert model.read_bytes() == before


def test_output_folder_does_not_exist(ptq, tmp_path):
    done = ptq("quantize", MODEL, "-c", CONFIG, "-o", tmp_path / "no" / "such" / "o.onnx")

    assert done.code == 2
    assert f"the folder '{tmp_path / 'no' / 'such'}' does not exist" in done.err
    assert "measuring" not in done.out


def test_output_under_a_file(ptq, tmp_path):
    file = tmp_path / "file"
    file.write_text("")

    done = ptq("quantize", MODEL, "-c", CONFIG, "-o", file / "o.onnx")

    assert done.code == 2
    assert str(file) in done.err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root cannot write")
def test_output_folder_cannot_be_written(ptq):
    done = ptq("quantize", MODEL, "-c", CONFIG, "-o", "/proc/o.onnx")

    assert done.code == 2
    assert "the folder '/proc' cannot be written to" in done.err


def test_five_mistakes_in_a_config_are_told_at_once(ptq, out, tmp_path):
    config = tmp_path / "bad.cfg"
    config.write_text(
        "[common_quant_param]\nquant_type=FULL_QUANT\nbit_num=99\nbit_nun=8\n"
        "[full_quant_param]\nper_channel=perhaps\n"
        "[data_preprocess_param]\ncalibrate_path=image:x\ncalibrate_size=0\ninput_type=IMAGE\n"
        "resize_width=32\n"
    )

    done = ptq("quantize", MODEL, "-c", config, "-o", out)

    assert done.code == 2
    assert done.err.startswith("5 problems:\n")
    for line in (3, 4, 6, 9, 11):
        assert f"{config}:{line}" in done.err
    assert "bit_num" in done.err
    assert nothing_written(out)


def test_missing_config(ptq, out):
    done = ptq("quantize", MODEL, "-c", "no.cfg", "-o", out)

    assert done.code == 2
    assert "no.cfg: the config cannot be read" in done.err


def test_empty_calibration_folder(ptq, out, tmp_path):
    (tmp_path / "empty").mkdir()
    config = write_config(tmp_path / "c.cfg", tmp_path / "empty")

    by_config = ptq("quantize", MODEL, "-c", config, "-o", out)
    by_flag = ptq("quantize", MODEL, "--data", tmp_path / "empty", "-o", out)

    for done in (by_config, by_flag):
        assert done.code == 2
        assert f"{tmp_path / 'empty'}: has no samples" in done.err
    assert nothing_written(out)


def test_corrupt_picture(ptq, out, pictures):
    bad = sorted(pictures.iterdir())[5]
    bad.write_bytes(bad.read_bytes()[:200])
    (pictures / "zz.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    command = ["quantize", MODEL, "--data", pictures, *PICTURES, "-o", out]

    done = ptq(*command)

    assert done.code == 2
    assert f"{bad}: truncated PNG" in done.err
    assert "--skip-bad" in done.err
    assert nothing_written(out)

    done = ptq(*command, "--skip-bad", "--json")

    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["samples"] == 11
    assert any("samples skipped: 2" in text and bad.name in text for text in found["warnings"])


def test_wrong_bin_size(ptq, out, tmp_path):
    data = tmp_path / "bin"
    data.mkdir()
    (data / "0.bin").write_bytes(b"\0" * 100)

    done = ptq("quantize", MODEL, "--data", data, "-o", out)

    assert done.code == 2
    assert f"{data / '0.bin'}: the file has 100 bytes, expected 12288" in done.err
    assert nothing_written(out)


def test_wrong_input_name(ptq, out, tmp_path):
    data = write_npy(tmp_path / "data")
    config = write_config(tmp_path / "c.cfg", data)
    config.write_text(config.read_text().replace("image:", "imagge:"))

    done = ptq("quantize", MODEL, "-c", config, "-o", out)
    assert done.code == 2
    assert "the model has no input 'imagge'" in done.err
    assert "did you mean 'image'?" in done.err

    done = ptq("quantize", MODEL, "--data", f"imagge:{data}", "-o", out)
    assert done.code == 2
    assert "the model has no input 'imagge'" in done.err
    assert "did you mean 'image'?" in done.err
    assert nothing_written(out)


def test_nan_in_a_sample(ptq, out, tmp_path):
    data = write_npy(tmp_path / "data")
    sample = np.load(data / "1.npy")
    sample[0, 0, 0] = np.nan
    np.save(data / "1.npy", sample)

    done = ptq("quantize", MODEL, "--data", data, "-o", out)

    assert done.code == 2
    assert str(data / "1.npy") in done.err
    assert "NaN" in done.err
    assert nothing_written(out)

    done = ptq("quantize", MODEL, "--data", data, "-o", out, "--skip-bad", "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out)["samples"] == 2


def test_too_few_samples_are_an_error_if_strict(ptq, out, tmp_path):
    config = write_config(tmp_path / "c.cfg", write_npy(tmp_path / "data"), size=100)

    lenient = ptq("quantize", MODEL, "-c", config, "-o", out)
    assert lenient.code == 0
    assert "warning: calibrate_size asks for 100 samples, there are 3" in lenient.out
    out.unlink()

    strict = ptq("quantize", MODEL, "-c", config, "-o", out, "--strict")
    assert strict.code == 2
    assert "there are 3" in strict.err
    assert nothing_written(out)


def test_pictures_need_to_be_described(ptq, out):
    done = ptq("quantize", MODEL, "--data", DIGITS / "calib", "-o", out)

    assert done.code == 2
    assert "missing: --mean, --std, --resize (or --center-crop)" in done.err
    assert "--mean 127.5 --std 127.5 --resize 32x32" in done.err  # the model's own size
    assert nothing_written(out)


def test_no_data_at_all(ptq, out):
    done = ptq("quantize", MODEL, "-o", out)

    assert done.code == 2
    assert "--data DIR" in done.err
    assert "-c CONFIG" in done.err


def test_flags_that_contradict_a_config(ptq, out):
    done = ptq(
        "quantize", MODEL, "-c", CONFIG, "-o", out, "--data", "x", "--method", "KL", "--mean", 1
    )

    assert done.code == 2
    assert "--data, --mean, --method and -c" in done.err


def test_target_that_contradicts_a_config(ptq, out):
    done = ptq("quantize", MODEL, "-c", CONFIG, "-o", out, "--target", "DSP")

    assert done.code == 2
    assert f"{CONFIG}:" in done.err
    assert "DSP" in done.err


def test_unknown_names_get_suggestions(ptq, out, tmp_path):
    data = write_npy(tmp_path / "data")

    for flag, value, wanted in [
        ("--method", "MAXMIN", "did you mean 'MAX_MIN'?"),
        ("--target", "CPUU", "did you mean 'CPU'?"),
        ("--runner", "onnxruntim", "did you mean 'onnxruntime'?"),
        ("--skip", "stem/cnv", "did you mean 'stem/conv'?"),
    ]:
        done = ptq("quantize", MODEL, "--data", data, "-o", out, flag, value)
        assert done.code == 2, flag
        assert wanted in done.err
    assert nothing_written(out)


def test_threads_are_for_runners_that_have_them(ptq, out, tmp_path):
    command = ["quantize", MODEL, "--data", write_npy(tmp_path / "data"), "-o", out]

    refused = ptq(*command, "--runner", "reference", "--threads", 2)
    assert refused.code == 2
    assert "the runner reference has no such option" in refused.err

    assert ptq(*command, "--threads", 1).code == 0


def test_json_stays_whole_although_a_plugin_prints(ptq, out, tmp_path, site):
    source = """
    from ptq_core.api import CalibratorEntry, Range, hookimpl

    class Chatty:
        def observe(self, values, /): print("hello")
        def end_pass(self): return False
        def merge(self, other, /): pass
        def result(self): return Range(low=-1.0, high=1.0)

    @hookimpl
    def ptq_calibrators():
        yield CalibratorEntry(name="[red]CHATTY", summary="", factory=lambda t, o: Chatty())
    """
    site.install("ptq-chatty", source)
    command = ["quantize", MODEL, "--data", write_npy(tmp_path / "data"), "-o", out]

    done = ptq(*command, "--method", "[red]CHATTY", "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out)["passed"] is True
    assert "hello" in done.err


def test_plugin_that_fails_is_named(ptq, out, tmp_path, site):
    source = """
    from ptq_core.api import CalibratorEntry, hookimpl

    @hookimpl
    def ptq_calibrators():
        yield CalibratorEntry(name="BAD", summary="", factory=lambda t, o: 1 / 0)
    """
    site.install("ptq-bad", source)
    command = ["quantize", MODEL, "--data", write_npy(tmp_path / "data"), "-o", out]

    done = ptq(*command, "--method", "BAD")

    assert done.code == 3
    assert "error PTQ400: plugin 'ptq-bad' 1.0 failed" in done.err
    assert "ZeroDivisionError" in done.err
    assert "--no-plugin ptq-bad" in done.err
    assert nothing_written(out)


# ---------------------------------------------------------------------- processes and pipes


def start(*arguments: object, **given: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ptq_core", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given
    )


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT and links")
def test_interrupt_ends_soon_and_leaves_nothing(out, tmp_path):
    data = tmp_path / "many"
    data.mkdir()
    real = next((DIGITS / "calib").iterdir())
    for index in range(10_000):  # calibration takes far longer than the test waits
        (data / f"{index:05}.png").symlink_to(real)
    process = start(
        *("quantize", MODEL, "--data", data, *PICTURES, "--calibrate-size", 10_000, "-o", out)
    )
    assert process.stdout is not None
    seen = ""
    while "measuring activations" not in seen:
        character = process.stdout.read(1)
        assert character, seen
        seen += character
    time.sleep(0.5)
    assert process.poll() is None

    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert time.perf_counter() - begin < 5
    assert err == "interrupted; nothing was written\n"
    assert nothing_written(out)


def test_closed_pipe_is_no_error():
    process = start("plan", MODEL)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (0, "")


def test_job_survives_a_closed_pipe(out, pictures):
    process = start("quantize", MODEL, "--data", pictures, *PICTURES, "-o", out)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert is_integer(out)


def test_names_that_the_encoding_lacks_are_escaped(tmp_path):
    model = tmp_path / "größe.onnx"
    process = start("plan", model, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "gr\\xf6\\xdfe.onnx: there is no such file" in err


# --------------------------------------------------------------------------------- plan


def test_plan_shows_every_node(ptq):
    done = ptq("plan", MODEL)

    assert done.code == 0
    assert "block3/depthwise/relu6" in done.out
    assert "the activation of 'block3/depthwise/conv'" in done.out
    assert "for CPU: 22 integer, 11 fused into them" in done.out


def test_plan_of_a_config_without_data(ptq, tmp_path):
    config = tmp_path / "c.cfg"
    config.write_text(
        "[common_quant_param]\nquant_type=FULL_QUANT\nskip_quant_node=block5/*\n[full_quant_param]\n"
    )

    done = ptq("plan", MODEL, "-c", config, "--skip", "stem/conv", "--json")

    found = json.loads(done.out)
    assert done.code == 0
    nodes = {node["name"]: node for node in found["nodes"]}
    for name in ("stem/conv", "block5/add"):
        assert nodes[name]["reason"].startswith("named in skip_quant_node")
    assert sum(found["counts"].values()) == len(found["nodes"])


# -------------------------------------------------------------------------- converter_lite


def test_converter_lite_quantizes(ptq, tmp_path):
    done = ptq(
        "converter_lite",
        "--fmk=ONNX",
        f"--modelFile={MODEL}",
        f"--outputFile={tmp_path / 'net'}",
        f"--configFile={CONFIG}",
        "--saveType=MINDIR",
        "--infer",
        "false",
        "--fp16=on",
    )

    assert done.code == 0, done.err
    assert is_integer(tmp_path / "net.onnx")
    assert "note: --saveType=MINDIR: the result is an ONNX file" in done.out
    assert "warning: fp16 has no effect on full quantization" in done.out


def test_converter_lite_reads_bin_as_nhwc(ptq, tmp_path):
    """The same samples in both layouts give the same model, each read as it is."""
    generator = np.random.default_rng(0)
    samples = generator.uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    results = {}
    for layout, axes in (("NCHW", (0, 1, 2)), ("NHWC", (1, 2, 0))):
        folder = tmp_path / layout
        folder.mkdir()
        for index, sample in enumerate(samples):
            sample.transpose(axes).tofile(folder / f"{index}.bin")
        config = write_config(tmp_path / f"{layout}.cfg", Path(layout), kind="BIN", size=4)
        flags = [f"--modelFile={MODEL}", f"--outputFile={tmp_path / layout}.onnx", "--fmk=ONNX"]
        flags += [f"--configFile={config}"]
        flags += [] if layout == "NHWC" else ["--inputDataFormat=NCHW"]
        assert ptq("converter_lite", *flags).code == 0
        results[layout] = onnx.load(tmp_path / f"{layout}.onnx")

    assert results["NCHW"].graph == results["NHWC"].graph


def test_glog_gives_info_logs(tmp_path):
    flags = [f"--modelFile={MODEL}", f"--outputFile={tmp_path / 'o'}", f"--configFile={CONFIG}"]
    process = start("converter_lite", "--fmk=ONNX", *flags, env={**os.environ, "GLOG_v": "1"})
    _, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    assert "ptq: calibrate" in err


# ----------------------------------------------------------------------- calibrate, and its table


def calibrated(ptq, data: Path, table: Path, *more: object) -> Done:
    return ptq("calibrate", MODEL, "--data", data, *PICTURES, "-o", table, *more)


def test_calibrate_shows_every_tensor_and_writes_a_table(ptq, pictures, tmp_path):
    table = tmp_path / "table.json"
    done = calibrated(ptq, pictures, table, "--method", "max_min")

    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert ["tensor", "low", "high", "dB"] in lines
    (row,) = [line for line in lines if line[:1] == ["block1/add"]]
    assert float(row[1]) < 0 < float(row[2])
    assert float(row[3]) > 20
    first, last = (str(path) for path in (min(pictures.iterdir()), max(pictures.iterdir())))
    assert f"calibrated on 12 samples, from {first} to {last}" in done.out
    assert "MAX_MIN: output logits: cosine 0.99" in done.out
    assert f"wrote {table}\n" in done.out
    found = json.loads(table.read_text(encoding="utf-8"))
    assert list(found["methods"]) == ["MAX_MIN"]
    assert found["data"]["samples"] == 12


def test_the_command_that_calibrate_names_quantizes(ptq, out, tmp_path):
    table = tmp_path / "table.json"
    config = write_config(tmp_path / "c.cfg", write_npy(tmp_path / "data"))
    shown = ptq("calibrate", MODEL, "-c", config, "-o", table)
    (line,) = [line for line in shown.out.splitlines() if line.startswith("to go on: ptq ")]
    words = shlex.split(line.removeprefix("to go on: ptq "))

    done = ptq(*words, "-o", out)

    assert words == ["quantize", str(MODEL), "-c", str(config), "--calibration", str(table),
                     "--method", "MAX_MIN"]  # fmt: skip
    assert done.code == 0, done.err
    assert is_integer(out)
    assert "measuring activations" not in done.out
    assert "not compared with the float model: there were no samples" in done.out
    assert f"note: the ranges of MAX_MIN are those of {table}, from 3 samples" in done.out


def test_calibrate_in_json(ptq, pictures, tmp_path):
    table = tmp_path / "table.json"
    done = calibrated(ptq, pictures, table, "--json", "--tensorrt", tmp_path / "cache")

    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["files"] == [str(table), str(tmp_path / "cache")]
    assert found["best"] == "MAX_MIN"
    assert found["samples"] == 12
    method = found["methods"]["MAX_MIN"]
    assert {one["name"] for one in method["tensors"]} >= {"image", "block1/add"}
    assert all(one["low"] <= one["high"] and one["sqnr"] > 20 for one in method["tensors"])
    assert method["verification"]["outputs"][0]["cosine"] > 0.99
    assert "[data_preprocess_param]" in found["config"]


def test_the_table_lies_beside_the_model_by_default(ptq, pictures, tmp_path):
    model = shutil.copy(MODEL, tmp_path / "net.onnx")

    assert ptq("calibrate", model, "--data", pictures, *PICTURES).code == 0
    assert (tmp_path / "net_calibration.json").is_file()


def test_a_table_and_data_contradict(ptq, out, pictures, tmp_path):
    table = tmp_path / "table.json"
    assert calibrated(ptq, pictures, table).code == 0

    done = ptq("quantize", MODEL, "--calibration", table, "--data", pictures, *PICTURES)
    assert done.code == 2
    assert "--data, --mean, --std, --resize and --calibration" in done.err

    done = ptq("quantize", MODEL, "--calibration", table, "-o", out, "--min-cosine", "0.9")
    assert done.code == 2
    assert "a quality gate needs samples" in done.err
    assert nothing_written(out)


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1, "methods": {}}', "PK\x03"])
def test_what_is_no_table(ptq, out, tmp_path, content):
    table = tmp_path / "table.json"
    table.write_text(content, encoding="utf-8")

    done = ptq("quantize", MODEL, "--calibration", table, "-o", out)

    assert done.code == 2
    assert f"error PTQ001: {table}: " in done.err
    assert nothing_written(out)


def test_calibrate_needs_data_and_known_methods(ptq, pictures, tmp_path):
    done = ptq("calibrate", MODEL)
    assert done.code == 2
    assert "there is no data to calibrate with" in done.err

    done = calibrated(ptq, pictures, MODEL, "--method", "NO", "--method", "MAX_MIM")
    assert done.code == 2
    assert "3 problems" in done.err
    assert "the output is the model itself" in done.err
    assert "did you mean 'MAX_MIN'?" in done.err
