"""Weight quantization of real networks, where they are: in ``shared`` beside the repository."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core.jobs import Report
from tests.weight_checks import executed, operators, session, shrink

cv2 = pytest.importorskip("cv2")

SHARED = Path(__file__).parents[3] / "shared"
MODELS, DATA = SHARED / "models", SHARED / "data" / "dev"
EVALUATED = 48

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="the real networks are not part of the repository"
)

# input, mean, std, order of channels, side
CLASSIFIERS: dict[str, tuple[str, list[float], list[float], str, int]] = {
    "mobilenet_v2": ("input", [127.5] * 3, [127.5] * 3, "RGB", 224),
    "squeezenet1_1": ("data", [104, 117, 123], [1, 1, 1], "BGR", 227),
}
MINILM = "all_minilm_l6_v2_smallvocab"
TEXTS = {
    "input_ids": "input_ids_smallvocab",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("real_weights"))


RESULTS: dict[tuple[str, int, bool], tuple[Report, Path]] = {}


def pictures_config(name: str) -> dict[str, Any]:
    source, mean, std, order, side = CLASSIFIERS[name]
    return {
        "calibrate_path": f"{source}:{DATA / 'calib'}",
        "calibrate_size": 100,
        "input_type": "IMAGE",
        "image_to_format": order,
        "normalize_mean": mean,
        "normalize_std": std,
        "center_crop_width": side,
        "center_crop_height": side,
    }


def quantized(name: str, folder: Path, bits: int, *, data: bool = False) -> tuple[Report, Path]:
    """Each once for all tests; with the thresholds of the defaults."""
    key = (name, bits, data)
    if key not in RESULTS:
        given = {"data_preprocess_param": pictures_config(name)} if data else {}
        file = f"{name}_{bits}_{data}.onnx"
        common = {"min_quant_weight_channel": 16}
        report = shrink(MODELS / f"{name}.onnx", folder, bits, name=file, common=common, **given)
        RESULTS[key] = report, folder / file
    return RESULTS[key]


@cache
def inputs(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a network is judged on, and the classes where it has some."""
    if name == MINILM:
        text = {
            key: np.load(DATA / "text" / "eval" / f"{file}.npy")[:EVALUATED].astype(np.int64)
            for key, file in TEXTS.items()
        }
        return text, np.zeros(0)
    source, mean, std, order, side = CLASSIFIERS[name]
    with (DATA / "eval" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // EVALUATED)][:EVALUATED]
    made = []
    for row in rows:
        picture = cv2.imread(str(DATA / "eval" / row["file"])).astype(np.float32)
        if order == "RGB":
            picture = picture[..., ::-1]
        top, left = ((size - side) // 2 for size in picture.shape[:2])
        picture = picture[top : top + side, left : left + side]
        made.append(((picture - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1))
    classes = np.array([int(row["class_index"]) for row in rows])
    return {source: np.ascontiguousarray(made, np.float32)}, classes


@cache
def outputs(name: str, path: Path) -> np.ndarray:
    given, _ = inputs(name)
    one, count = session(path), len(next(iter(given.values())))
    parts = [
        one.run(None, {key: array[i : i + 8] for key, array in given.items()})[0]
        for i in range(0, count, 8)
    ]
    return np.concatenate(parts).reshape(count, -1).astype(np.float64)


def closeness(name: str, path: Path) -> tuple[float, float]:
    """Mean cosine, and how many have the same class as the float network."""
    wanted, found = outputs(name, MODELS / f"{name}.onnx"), outputs(name, path)
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    cosines = (wanted * found).sum(1) / norms
    return float(cosines.mean()), float((wanted.argmax(1) == found.argmax(1)).mean())


@pytest.mark.parametrize(
    ("name", "smaller", "least"),
    [("mobilenet_v2", 3.6, 0.995), ("squeezenet1_1", 3.6, 0.999), (MINILM, 3.5, 0.9995)],
)
def test_eight_bits(name: str, smaller: float, least: float, folder: Path, tmp_path: Path) -> None:
    report, path = quantized(name, folder, 8)
    assert report.bytes_before / report.bytes_after > smaller
    cosine, agreement = closeness(name, path)
    assert cosine > least
    if name != MINILM:
        assert agreement > 0.95
    first, second = (executed(one, tmp_path) for one in (MODELS / f"{name}.onnx", path))
    if name != MINILM:  # of which more is folded beforehand
        assert operators(first.graph) == operators(second.graph)
    assert not set(operators(second.graph)) - set(operators(first.graph))
    assert not second.functions


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_mixed_bits_are_no_larger_than_seven(name: str, folder: Path) -> None:
    mixed, path = quantized(name, folder, 0)
    seven, other = quantized(name, folder, 7)
    assert mixed.bytes_after <= seven.bytes_after
    assert closeness(name, path)[0] > 0.95
    assert closeness(name, other)[0] > 0.98
    for one in mixed.weights:
        if one.size > 20_000:  # small ones pay for their tables
            margin = 0.06 * one.entropy if one.entropy >= 3.5 else 0.25
            assert one.bits_per_weight < one.entropy + margin


def test_samples_save_four_bits(folder: Path) -> None:
    _, plain = quantized("mobilenet_v2", folder, 4)
    report, corrected = quantized("mobilenet_v2", folder, 4, data=True)
    cosines = [closeness("mobilenet_v2", path)[0] for path in (plain, corrected)]
    assert cosines[1] > max(0.85, cosines[0] + 0.1)
    assert report.bytes_before / report.bytes_after > 6.5
    bound = sum(one.size * 4 / 8 for one in report.weights)
    parameters = sum(8 * one.scale.size for one in report.weights)
    rest = report.bytes_before - sum(one.bytes_before for one in report.weights)
    assert report.bytes_after < 1.02 * (bound + parameters + rest)


@pytest.mark.parametrize("bits", [0, 5])
def test_every_weight_is_as_the_report_says(bits: int, folder: Path) -> None:
    """Decoded by onnxruntime, every weight of MobileNetV2 has the SQNR that was told."""
    report, path = quantized("mobilenet_v2", folder, bits)
    proto = onnx.load(path)
    original = {
        one.name: onnx.numpy_helper.to_array(one)
        for one in onnx.load(MODELS / "mobilenet_v2.onnx").graph.initializer
    }
    names = [one.tensor for one in report.weights if one.tensor in original]
    assert len(names) > 50
    del proto.graph.output[:]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    given = {"input": np.zeros((1, 3, 224, 224), np.float32)}
    found = dict(zip(names, session(proto.SerializeToString()).run(names, given), strict=True))
    for one in report.weights:
        if one.tensor in found:
            noise = np.square(original[one.tensor].astype(np.float64) - found[one.tensor]).sum()
            power = np.square(original[one.tensor].astype(np.float64)).sum()
            assert one.sqnr == pytest.approx(10 * np.log10(power / noise), abs=0.01)
