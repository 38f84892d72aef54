"""What the benchmark of dynamic quantization rests on: its forms compute the layer, its ranks."""

from __future__ import annotations

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented

from benchmarks.dynamic import rank_correlation
from benchmarks.forms import CONVOLUTIONS, FORMS, model_of
from benchmarks.judge import FLOAT, open_model

_ERROR = 0.02  # of 8 bits on both sides


def _error(form, exact, weights, data):
    rank = data.ndim
    results = [
        open_model(model_of(one, weights, rank), 1).run(None, {"x": data}) for one in (form, exact)
    ]
    found, wanted = (np.concatenate([each.ravel() for each in one]) for one in results)
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("name", sorted(set(FORMS) - {FLOAT}))
def test_form_is_the_layer(name):
    random = np.random.default_rng(0)
    weights = [random.standard_normal((64, 48), np.float32) for _ in range(2)]
    data = random.standard_normal((7, 64), np.float32)
    assert 0 < _error(FORMS[name], FORMS[FLOAT], weights, data) < _ERROR


@pytest.mark.parametrize("name", sorted(set(CONVOLUTIONS) - {FLOAT}))
def test_form_is_the_convolution(name):
    random = np.random.default_rng(1)
    weights = [random.standard_normal((8, 4, 3, 3), np.float32)]
    data = random.standard_normal((1, 4, 9, 9), np.float32)
    try:
        error = _error(CONVOLUTIONS[name], CONVOLUTIONS[FLOAT], weights, data)
    except NotImplemented:
        assert name == "ConvInteger, int8 weights"
        pytest.skip("this onnxruntime has no ConvInteger with int8 weights")
    assert 0 < error < _ERROR


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2, 3, 4], [1.0, 8, 27, 64], 1),
        ([1.0, 2, 3, 4], [4.0, 3, 2, -9], -1),
        ([1.0, 2, 3], [3.0, 1, 2], -0.5),  # 1 - 6 * (4 + 1 + 1) / (3 * 8)
        ([1.0, 1, 2], [1.0, 2, 3], np.sqrt(3) / 2),  # ranks 1.5, 1.5, 3
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(np.array(first), np.array(second)) == pytest.approx(expected)
