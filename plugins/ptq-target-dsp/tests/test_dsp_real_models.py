"""Real networks run on Qualcomm's HTP library as a whole, where both are there."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import listed
from benchmarks.judge import feeds
from ptq_core import quantize
from ptq_core.jobs import Settings
from tests import htp

SHARED = Path(__file__).parents[4] / "shared"

pytestmark = [
    pytest.mark.skipif(
        not (SHARED / "models").is_dir(), reason="the real networks are not part of the repository"
    ),
    pytest.mark.skipif(bool(htp.missing()), reason=htp.missing()),
]


@pytest.mark.parametrize(
    ("name", "bits", "cosine"),
    [("resnet20_cifar10", 8, 0.99), ("all_minilm_l6_v2_smallvocab", 16, 0.98)],
)
def test_every_node_is_on_the_htp(name: str, bits: int, cosine: float, tmp_path: Path) -> None:
    cases = listed(SHARED / "models", SHARED / "data", tmp_path)
    case = next(one for one in cases if one.name == name)
    floats = htp.open_reference(case.model)
    samples = list(islice(feeds(case.evaluation, floats), 1))
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {
            "activation_quant_method": "MAX_MIN",
            "target_device": "DSP",
            "bias_correction": False,
        },
        "data_preprocess_param": {**case.data, "calibrate_size": 16},
        "target.DSP": {"activation_bits": bits},
    }
    shapes = {key: one.shape for key, one in samples[0].items()}
    output = tmp_path / "int8.onnx"
    report = quantize(case.model, output, config=config, settings=Settings(input_shapes=shapes))
    assert {one.op_type for one in report.plan.nodes if one.decision == "float"} <= {"Cast"}
    session = htp.open_htp(output)  # strict: one node left to the CPU is an error
    assert not htp.on_cpu(session)
    for sample in samples:
        results = zip(session.run(None, sample), floats.run(None, sample), strict=True)
        for found, wanted in results:
            lengths = float(np.linalg.norm(found) * np.linalg.norm(wanted))
            assert float((found.astype(np.float64) * wanted).sum()) / lengths > cosine
