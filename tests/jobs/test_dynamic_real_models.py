"""Dynamic quantization of a real network, where it is: in ``shared`` beside the repository."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ptq_core.jobs import Report
from tests.dynamic_checks import FLOAT_LAYERS, dynamic
from tests.weight_checks import cosine, executed, operators, session

SHARED = Path(__file__).parents[3] / "shared"
MODEL = SHARED / "models" / "all_minilm_l6_v2_smallvocab.onnx"
TEXTS = SHARED / "data" / "dev" / "text" / "eval"
FILES = {
    "input_ids": "input_ids_smallvocab",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
}
SENTENCES = 24

pytestmark = pytest.mark.skipif(
    not MODEL.is_file(), reason="the real networks are not part of the repository"
)

# one scale for all of a layer's weights is the guide's form; it costs more than tokens gain
LEAST = {"ALWC": 0.99, "ACWC": 0.995, "ACWL": 0.95}
TOKENS = {"ALWC": 0.985, "ACWC": 0.99}  # of single tokens, whose errors no mean evens out
RESULTS: dict[str, tuple[Report, Path]] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("real_dynamic"))


def quantized(strategy: str, folder: Path) -> tuple[Report, Path]:
    """Each strategy once for all its tests."""
    if strategy not in RESULTS:
        name = f"{strategy}.onnx"
        report = dynamic(MODEL, folder, strategy, data=sentences()[:2], name=name)
        RESULTS[strategy] = report, folder / name
    return RESULTS[strategy]


@cache
def sentences() -> list[dict[str, NDArray[Any]]]:
    """A sentence each, without its padding."""
    arrays = {name: np.load(TEXTS / f"{file}.npy")[:SENTENCES] for name, file in FILES.items()}
    lengths = arrays["attention_mask"].sum(1)
    return [
        {name: array[index : index + 1, :length].astype(np.int64) for name, array in arrays.items()}
        for index, length in enumerate(lengths)
    ]


def pooled(path: Path) -> list[NDArray[Any]]:
    """The embedding of each sentence: the mean of its tokens."""
    one = session(path)
    return [one.run(None, sample)[0].mean(1) for sample in sentences()]


@pytest.mark.parametrize("strategy", LEAST)
def test_embeddings_stay_close(strategy: str, folder: Path) -> None:
    report, path = quantized(strategy, folder)
    found = [cosine(a, b) for a, b in zip(pooled(MODEL), pooled(path), strict=True)]
    assert np.mean(found) >= LEAST[strategy]
    assert report.bytes_before >= 3.58 * report.bytes_after


@pytest.mark.parametrize("strategy", LEAST)
def test_every_layer_is_integer(strategy: str, folder: Path, tmp_path: Path) -> None:
    _, path = quantized(strategy, folder)
    graph = executed(path, tmp_path).graph
    found = operators(graph)
    integer = found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"]
    assert integer >= 36  # six layers: q, k, v, attention output, two of the feed-forward network
    # scores and context of attention multiply two activations; a fused Attention has neither
    assert sum(found[kind] for kind in FLOAT_LAYERS) <= 12


def test_interfaces_stay(folder: Path) -> None:
    _, path = quantized("ACWC", folder)
    wanted, found = (onnx.load(one, load_external_data=False).graph for one in (MODEL, path))
    assert list(wanted.input) == list(found.input)
    assert list(wanted.output) == list(found.output)


def test_padding_and_batches(folder: Path) -> None:
    """A batch of padded sentences: ALWC takes a scale for all, a scale for each token does not."""
    arrays = {name: np.load(TEXTS / f"{file}.npy")[:8] for name, file in FILES.items()}
    feeds = {name: array.astype(np.int64) for name, array in arrays.items()}
    mask = feeds["attention_mask"][..., None]
    wanted = session(MODEL).run(None, feeds)[0] * mask
    for strategy, least in TOKENS.items():
        _, path = quantized(strategy, folder)
        found = session(path).run(None, feeds)[0] * mask
        assert cosine(wanted, found) >= least
