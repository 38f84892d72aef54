"""Smoothing of a real network, where it is: in ``shared`` beside the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptq_core import quantize
from tests.dynamic_checks import sections
from tests.weight_checks import session

SHARED = Path(__file__).parents[3] / "shared"
MODEL = SHARED / "models" / "all_minilm_l6_v2_smallvocab.onnx"
TEXTS = SHARED / "data" / "dev" / "text"
FILES = {
    "input_ids": "input_ids_smallvocab",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
}

pytestmark = pytest.mark.skipif(
    not MODEL.is_file(), reason="the real networks are not part of the repository"
)


def sentences(part: str, count: int) -> dict[str, NDArray[Any]]:
    found = {name: np.load(TEXTS / part / f"{file}.npy")[:count] for name, file in FILES.items()}
    return {name: array.astype(np.int64) for name, array in found.items()}


def embeddings(path: Path) -> NDArray[Any]:
    """The mean of each sentence's tokens."""
    one, given = session(path), sentences("eval", 48)
    rows = [
        one.run(None, {name: array[i : i + 1] for name, array in given.items()})[0][0]
        for i in range(48)
    ]
    mask = given["attention_mask"][..., None]
    found = (np.stack(rows) * mask).sum(1)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize(("name", "least"), [("MAX_MIN", 0.9965), ("ACWC", 0.998)])
def test_embeddings_come_closer(name: str, least: float, tmp_path: Path) -> None:
    given = sentences("calib", 100)
    data = [{key: array[i : i + 1] for key, array in given.items()} for i in range(100)]
    wanted, found = embeddings(MODEL), {}
    for smoothing in (False, True):
        full = {"activation_quant_method": name, "smoothing": smoothing}
        config = sections(name, smoothing=smoothing)
        if name == "MAX_MIN":
            config = {"common_quant_param": {"quant_type": "FULL_QUANT"}, "full_quant_param": full}
        output = tmp_path / f"{smoothing}.onnx"
        quantize(MODEL, output, config=config, data=data)
        found[smoothing] = float((wanted * embeddings(output)).sum(1).mean())
    assert found[True] >= least
    assert 1 - found[True] < 0.7 * (1 - found[False]), found
