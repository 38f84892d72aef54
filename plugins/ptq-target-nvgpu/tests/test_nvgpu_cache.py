"""The calibration cache holds the scales of the file, as `ptq calibrate --tensorrt` writes them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ptq_core import calibrate, quantize
from ptq_core.api import Deployment
from ptq_target_nvgpu import ptq_targets
from tests import tiny_models as tiny

(ENTRY,) = ptq_targets()
HEADER = "TRT-8601-EntropyCalibration2"


def network(folder: Path, names: tuple[str, str] = ("x", "r0")) -> Path:
    x, r0 = names
    nodes = [
        onnx.helper.make_node("Conv", [x, "w0"], ["c0"], "conv0"),
        onnx.helper.make_node("Relu", ["c0"], [r0], "relu0"),
        onnx.helper.make_node("Conv", [r0, "w1"], ["y"], "conv1"),
    ]
    constants = {"w0": tiny.normal(16, 16, 1, 1), "w1": tiny.normal(16, 16, 1, 1, seed=1)}
    ends = {x: ["N", 16, 4, 4]}, {"y": ["N", 16, 4, 4]}
    return tiny.save(tiny.model(nodes, *ends, constants), folder)


def data(count: int = 6) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal((1, 16, 4, 4)).astype(np.float32) for _ in range(count)]


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode().splitlines()


def test_it_lies_beside_the_model_and_has_its_scales(tmp_path: Path) -> None:
    report = quantize(network(tmp_path), tmp_path / "int8.onnx", data=data(), target="NVGPU")
    cache = tmp_path / "int8.calib_cache"
    assert set(report.extras) == {cache}
    graph = onnx.load(tmp_path / "int8.onnx").graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    scales = {
        one.input[0]: constants[one.input[1]]
        for one in graph.node
        if one.op_type == "QuantizeLinear"
    }
    assert set(scales) == {"x", "r0"}
    header, *rest = lines(cache)
    assert header == HEADER
    read = dict(line.rsplit(": ", 1) for line in rest)
    assert {name: struct.unpack(">f", bytes.fromhex(code))[0] for name, code in read.items()} == {
        name: float(scale) for name, scale in scales.items()
    }


def test_it_is_byte_for_byte_what_calibrate_writes(tmp_path: Path) -> None:
    model = network(tmp_path)
    quantize(model, tmp_path / "int8.onnx", data=data(), target="NVGPU")
    calibrate(model, data=data(), target="NVGPU", tensorrt=tmp_path / "cache")
    theirs, ours = lines(tmp_path / "cache"), lines(tmp_path / "int8.calib_cache")
    assert theirs[0] == "TRT-8601-MinMaxCalibration"
    assert ours[1:] == theirs[1:]


def test_a_known_scale(tmp_path: Path) -> None:
    """TensorRT's own example of the format: 3c008912 are 0.0078..., the bits of a float32."""
    sample = np.full((1, 16, 4, 4), 127 * struct.unpack(">f", bytes.fromhex("3c008912"))[0])
    quantize(
        network(tmp_path), tmp_path / "q.onnx", data=[sample.astype(np.float32)], target="NVGPU"
    )
    assert lines(tmp_path / "q.calib_cache")[1] == "x: 3c008912"


def test_names_that_the_format_cannot_write_are_left_out(tmp_path: Path) -> None:
    quantize(
        network(tmp_path, ("x: 1", "two\nlines")),
        tmp_path / "q.onnx",
        data=data(),
        target="NVGPU",
    )
    header, only = lines(tmp_path / "q.calib_cache")
    assert header == HEADER
    assert only.startswith("x: 1: ")


def test_large_models_come_as_files_with_their_weights_beside_them(tmp_path: Path) -> None:
    quantize(network(tmp_path), tmp_path / "q.onnx", data=data(), target="NVGPU")
    made = onnx.load(tmp_path / "q.onnx")
    large = tmp_path / "large.onnx"
    onnx.save(made, large, save_as_external_data=True, location="large.data", size_threshold=100)
    (tmp_path / "large.data").unlink()  # whoever reads the weights fails
    assert ENTRY.lower is not None
    (extra,) = ENTRY.lower(large, Deployment(name="large"))
    assert extra.name == "large.calib_cache"
    assert extra.content == (tmp_path / "q.calib_cache").read_bytes()
    assert ENTRY.check is not None
    assert not list(ENTRY.check(large))


def test_a_model_without_integers_has_none(tmp_path: Path) -> None:
    assert ENTRY.lower is not None
    assert not list(ENTRY.lower(network(tmp_path), Deployment(name="m")))
