"""Real networks, where they are: placed as NVIDIA's own tool does, and close to the float ones."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from ptq_core import quantize
from ptq_core.graph.prepare import prepare
from ptq_core.planning import make_plan
from ptq_target_nvgpu import ptq_targets

cv2 = pytest.importorskip("cv2")

(ENTRY,) = ptq_targets()
SHARED = Path(__file__).parents[4] / "shared"
MODELS, DATA = SHARED / "models", SHARED / "data" / "dev"
SAMPLES, EVALUATED = 16, 32  # few, to be fast

pytestmark = pytest.mark.skipif(
    not MODELS.is_dir(), reason="the real networks are not part of the repository"
)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What nvidia-modelopt 0.47.0 does (int8, max): layers in integers and in float, residuals.

    Attributes:
        integer: how many layers with weights have quantized inputs.
        floats: names of those that have not.
        residuals: the one quantized operand of Adds.
    """

    integer: int
    floats: frozenset[str] = frozenset()
    residuals: Mapping[str, str] = field(default_factory=dict)


MOBILENET_ADDS = {
    2: "1/project/Conv", 4: "3/project/Conv", 5: "4/add/Add", 7: "6/project/Conv", 8: "7/add/Add",
    9: "8/add/Add", 11: "10/project/Conv", 12: "11/add/Add", 14: "13/project/Conv",
    15: "14/add/Add",
}  # fmt: skip
NANODET_DEPTHWISE = (12, 27, 42, 57, 68, 76, 91, 106, 121, 136, 151, 166, 181)
BLOCKS = [(layer, block) for layer in (1, 2, 3) for block in (0, 1, 2)]
PLACEMENTS = {
    "mobilenet_v2": Placement(
        integer=53,
        residuals={f"block{i}/add/Add": f"block{name}" for i, name in MOBILENET_ADDS.items()},
    ),
    "squeezenet1_1": Placement(integer=26),
    "resnet20_cifar10": Placement(  # with a batch of 1, as it was run: the classifier is a vector
        integer=19,
        floats=frozenset({"/linear/Gemm"}),
        residuals={
            f"/layer{layer}/layer{layer}.{block}/Add": "/relu/Relu_output_0"
            if (layer, block) == (1, 0)
            else f"/layer{layer}/layer{layer}.0/shortcut/Pad_output_0"
            if block == 0
            else f"/layer{layer}/layer{layer}.{block - 1}/relu2/Relu_output_0"
            for layer, block in BLOCKS
        },
    ),
    "nanodet_m": Placement(
        integer=60,
        floats=frozenset(f"Conv_{i}/conv" for i in NANODET_DEPTHWISE),  # 58 and 116 channels
        # Add_318 and Add_338, which add no convolution's own result, have a pair there
        residuals={"Add_278": "712", "Add_298": "732"},
    ),
    "ultraface_rfb_320": Placement(
        integer=51, floats=frozenset({"300"}), residuals={"313": "312"}
    ),  # 8 to 12 channels; nodes are called after their outputs
    # products of two activations (12) have pairs there, and Adds in front of normalizations
    "all_minilm_l6_v2_smallvocab": Placement(integer=36),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_layers_are_placed_as_the_model_optimizer_does(name: str) -> None:
    made = onnx.load(MODELS / f"{name}.onnx")
    if name == "resnet20_cifar10":
        made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        del made.graph.value_info[:]
    prepared = prepare(ir.from_proto(made), ENTRY.spec.minimum_opset)
    plan = make_plan(prepared, ENTRY.spec, keep_float=ENTRY.keep_float)
    layers = {"Conv", "Gemm", "MatMul"}
    integer = [one for one in plan.nodes if one.op_type in layers and one.decision == "integer"]
    floats = {one.name: one.reason for one in plan.nodes if one.op_type in layers}
    for one in integer:
        del floats[one.name]
    attention = {key for key, reason in floats.items() if "two activations" in reason}
    shortcuts = [one for one in integer if one.name.endswith("/shortcut/Pad")]
    expected = PLACEMENTS[name]
    assert len(attention) == (12 if "minilm" in name else 0)
    assert len(shortcuts) == (2 if "resnet20" in name else 0)  # Pads that became convolutions
    assert len(integer) - len(shortcuts) == expected.integer
    assert set(floats) - attention == expected.floats
    residuals = {
        one.name: re.findall("'(.*?)'", one.reason)[0]
        for one in plan.nodes
        if one.op_type == "Add" and one.decision == "integer"
    }
    assert residuals == expected.residuals


def pictures(folder: str, count: int) -> list[tuple[np.ndarray, int]]:
    """Pictures as MobileNetV2 takes them, and their classes."""
    with (DATA / folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows[:: max(1, len(rows) // count)][:count]:
        picture = cv2.imread(str(DATA / folder / row["file"]))[..., ::-1].astype(np.float32)
        top, left = ((side - 224) // 2 for side in picture.shape[:2])
        picture = picture[top : top + 224, left : left + 224] / np.float32(127.5) - 1
        found.append((picture.transpose(2, 0, 1)[None], int(row["class_index"])))
    return found


def logits(path: Path, samples: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """With Q and DQ computed as they stand."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": x})[0] for x, _ in samples])


def test_mobilenet_v2_stays_accurate(tmp_path: Path) -> None:
    source, output = MODELS / "mobilenet_v2.onnx", tmp_path / "mobilenet_v2.onnx"
    data = [x for x, _ in pictures("calib", SAMPLES)]
    report = quantize(source, output, data=data, target="NVGPU")
    assert report.bytes_after < 0.28 * report.bytes_before
    assert (tmp_path / "mobilenet_v2.calib_cache") in report.extras
    assert ENTRY.check is not None
    assert not list(ENTRY.check(output))
    samples = pictures("eval", EVALUATED)
    wanted, found = logits(source, samples), logits(output, samples)
    cosines: Any = (wanted * found).sum(1)
    cosines /= np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    assert cosines.mean() > 0.98  # nvidia-modelopt's file of the same network has 0.98
    classes = np.array([one for _, one in samples])
    right = [float((one.argmax(1) == classes).mean()) for one in (wanted, found)]
    assert right[1] >= right[0] - 0.07  # two pictures
