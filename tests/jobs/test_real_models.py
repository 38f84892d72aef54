"""Real networks, where they are: in a folder ``shared`` beside the repository."""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ptq_core import quantize
from ptq_core.jobs import Report, Settings

cv2 = pytest.importorskip("cv2")

SHARED = Path(__file__).parents[3] / "shared"
MODELS, DATA = SHARED / "models", SHARED / "data" / "dev"
SAMPLES = 24  # few, to be fast: enough for ranges, not for the last tenth of a percent
EVALUATED = 64

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="the real networks are not part of the repository"
)

FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def executed(path: Path, folder: Path) -> onnx.GraphProto:
    """The graph as onnxruntime executes it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "executed.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "executed.onnx").graph


def counts(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(one.op_type for one in graph.node)


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def config(name: str, folder: str, **keys: Any) -> dict[str, dict[str, Any]]:
    """Full quantization on pictures."""
    return {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "CPU"},
        "data_preprocess_param": {
            "calibrate_path": f"{name}:{DATA / folder}",
            "calibrate_size": SAMPLES,
            "input_type": "IMAGE",
            **keys,
        },
    }


def normalized(mean: list[float], std: list[float], order: str = "RGB") -> dict[str, Any]:
    return {"image_to_format": order, "normalize_mean": mean, "normalize_std": std}


def crop(size: int) -> dict[str, Any]:
    return {"center_crop_width": size, "center_crop_height": size}


def stretch(width: int, height: int) -> dict[str, Any]:
    return {"resize_width": width, "resize_height": height, "resize_method": "LINEAR"}


HALF = [127.5] * 3
CLASSIFIERS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    # input, data, preprocessing, least cosine of the logits
    "mobilenet_v2": ("input", "calib", {**normalized(HALF, HALF), **crop(224)}, 0.97),
    "squeezenet1_1": (
        "data", "calib", {**normalized([104, 117, 123], [1, 1, 1], "BGR"), **crop(227)}, 0.99,
    ),
    "resnet20_cifar10": (
        "input", "cifar10/calib",
        normalized([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), 0.99,
    ),
    "mobilenet_v1_025": ("input", "calib", {**normalized(HALF, HALF), **crop(224)}, 0.93),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("real"))


RESULTS: dict[str, tuple[Report, Path]] = {}


def quantized(name: str, folder: Path, given: dict[str, dict[str, Any]]) -> tuple[Report, Path]:
    """Each network is quantized once for all its tests."""
    if name not in RESULTS:
        output = folder / f"{name}.onnx"
        RESULTS[name] = quantize(MODELS / f"{name}.onnx", output, config=given), output
    return RESULTS[name]


def classifier(name: str, folder: Path) -> tuple[Report, Path]:
    source, data, keys, _ = CLASSIFIERS[name]
    return quantized(name, folder, config(source, data, **keys))


@cache
def pictures(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Evaluation pictures as the network takes them, and their classes."""
    _, data, keys, _ = CLASSIFIERS[name]
    where = DATA / data.replace("calib", "eval")
    with (where / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // EVALUATED)][:EVALUATED]
    made = []
    for row in rows:
        picture = cv2.imread(str(where / row["file"])).astype(np.float32)
        if keys["image_to_format"] == "RGB":
            picture = picture[..., ::-1]
        size = keys.get("center_crop_width", picture.shape[0])
        top, left = ((side - size) // 2 for side in picture.shape[:2])
        picture = picture[top : top + size, left : left + size]
        mean, std = (np.float32(keys[f"normalize_{part}"]) for part in ("mean", "std"))
        made.append(((picture - mean) / std).transpose(2, 0, 1))
    return np.ascontiguousarray(made, np.float32), np.array([int(r["class_index"]) for r in rows])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_are_integer_from_the_input_to_the_last_layer(
    name: str, folder: Path, tmp_path: Path
) -> None:
    report, path = classifier(name, folder)
    found = counts(executed(path, tmp_path))
    convolutions = counts(onnx.load(MODELS / f"{name}.onnx").graph)["Conv"]
    assert found["QLinearConv"] >= convolutions
    assert not FLOAT_LAYERS & set(found), found
    assert found["QuantizeLinear"] == 1, "one at the input, no float island"
    assert found["DequantizeLinear"] <= 1
    assert report.verification is not None
    assert not report.verification.unexpected
    assert report.bytes_after < 0.4 * report.bytes_before


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_stay_accurate(name: str, folder: Path) -> None:
    _, path = classifier(name, folder)
    inputs, classes = pictures(name)
    source, _, _, least = CLASSIFIERS[name]
    before, after = (
        np.concatenate(
            [one.run(None, {source: inputs[i : i + 16]})[0] for i in range(0, len(inputs), 16)]
        )
        for one in (session(MODELS / f"{name}.onnx"), session(path))
    )
    cosines = (before * after).sum(1) / (
        np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    )
    assert cosines.mean() >= least
    right = [float((logits.argmax(1) == classes).mean()) for logits in (before, after)]
    # One picture is 1.6 points; with so few samples and pictures a few of them may change sides.
    assert right[1] >= right[0] - (0.08 if name != "mobilenet_v1_025" else 0.15)


DETECTORS = {
    "ultraface_rfb_320": (
        "input", "faces", {**normalized([127] * 3, [128] * 3), **stretch(320, 240)},
    ),
    "nanodet_m": (
        "input.1", "calib",
        {**normalized([103.53, 116.28, 123.675], [57.375, 57.12, 58.395], "BGR"),
         **stretch(320, 320)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_load_and_stay_close(name: str, folder: Path, tmp_path: Path) -> None:
    source, data, keys = DETECTORS[name]
    report, path = quantized(name, folder, config(source, data, **keys))
    found = counts(executed(path, tmp_path))
    assert not FLOAT_LAYERS & set(found), found
    assert report.verification is not None
    assert len(report.verification.outputs) == (2 if name == "ultraface_rfb_320" else 6)
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.97


def test_a_transformer_has_its_weighted_products_in_integers(folder: Path, tmp_path: Path) -> None:
    """Sentences from raw buffers, an input for each folder."""
    name = "all_minilm_l6_v2_smallvocab"
    files = {
        "input_ids": "input_ids_smallvocab",
        "attention_mask": "attention_mask",
        "token_type_ids": "token_type_ids",
    }
    for key, file in files.items():
        (tmp_path / key).mkdir()
        for index, row in enumerate(np.load(DATA / "text" / "calib" / f"{file}.npy")[:SAMPLES]):
            row.astype(np.int64).tofile(tmp_path / key / f"{index:03}.bin")
    output = folder / f"{name}.onnx"
    report = quantize(
        MODELS / f"{name}.onnx",
        output,
        config={
            "common_quant_param": {"quant_type": "FULL_QUANT"},
            "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "CPU"},
            "data_preprocess_param": {
                "calibrate_path": ",".join(f"{key}:{tmp_path / key}" for key in files),
                "calibrate_size": SAMPLES,
                "input_type": "BIN",
            },
        },
        settings=Settings(input_shapes=dict.fromkeys(files, (1, 64))),
    )
    found = counts(executed(output, tmp_path))
    # 6 layers: q, k, v, attention output, two of the feed-forward network
    assert found["QGemm"] + found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == 36
    assert found["Gemm"] + found["FusedGemm"] == 0
    integer = Counter(one.op_type for one in report.plan.nodes if one.decision == "integer")
    assert set(integer) == {"MatMul"}
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.9


# ------------------------------------------------------------------- what calibration can give back


def judged(name: str, folder: Path, label: str, **full: Any) -> tuple[Report, float]:
    """The report, and SQNR of the logits on evaluation pictures."""
    source, data, keys, _ = CLASSIFIERS[name]
    given = config(source, data, **keys)
    given["full_quant_param"].update(full)
    output = folder / f"{name}_{label}.onnx"
    report = quantize(MODELS / f"{name}.onnx", output, config=given)
    inputs, _ = pictures(name)
    wanted, found = (
        session(path).run(None, {source: inputs})[0] for path in (MODELS / f"{name}.onnx", output)
    )
    noise = np.square(wanted.astype(np.float64) - found).sum()
    return report, float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise))


def test_bias_correction_pays_where_depthwise_layers_add_shifts_up(folder: Path) -> None:
    _, without = judged("mobilenet_v1_025", folder, "plain", bias_correction=False)
    _, corrected = judged("mobilenet_v1_025", folder, "corrected", bias_correction=True)
    assert corrected > without + 7.0


def test_one_scale_per_layer_does_not_ruin_mobilenet(folder: Path) -> None:
    """Without equalization its logits are noise: -3 dB."""
    _, found = judged("mobilenet_v2", folder, "per_layer", per_channel=False)
    assert found > 9.0


@pytest.mark.parametrize("method", ["KL", "REMOVAL_OUTLIER"])
def test_methods_that_cut_off_classes_are_warned_of(method: str, folder: Path) -> None:
    report, found = judged("squeezenet1_1", folder, method, activation_quant_method=method)
    assert found < 27.0
    assert any(one.startswith(f"{method} clips hard: ") for one in report.warnings)
    report, found = judged("squeezenet1_1", folder, "max_min")
    assert found > 30.0
    assert not any("clips" in one for one in report.warnings)
