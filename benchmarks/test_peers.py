"""What makes the comparison a fair one: the peers see the same arrays, of pinned versions."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from benchmarks import samples
from benchmarks.cases import example
from benchmarks.judge import FLOAT, closeness, figures_of
from benchmarks.measure import LEFT_OUT, ratio, table, turns
from benchmarks.peers.samples import Samples
from benchmarks.tools import PEERS, SCRIPTS

NORMALIZE = {"normalize_mean": [103.5, 116.25, 124], "normalize_std": [57.5, 58, 1]}


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(7)
    for index in range(3):
        pixels = rng.integers(0, 256, (41, 50, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.png"), pixels)
    cv2.imwrite(str(tmp_path / "3.jpg"), pixels)
    return {"calibrate_path": f"x:{tmp_path}", "calibrate_size": 9, "input_type": "IMAGE"}


@pytest.mark.parametrize(
    "options",
    [
        {"image_to_format": "BGR"},
        {"image_to_format": "RGB", **NORMALIZE, "center_crop_width": 32, "center_crop_height": 30},
        {"image_to_format": "GRAY", "normalize_mean": [127.5], "normalize_std": [127.5]},
        {
            "image_to_format": "RGB",
            **NORMALIZE,
            "resize_width": 64,
            "resize_height": 48,
            "resize_method": "LINEAR",
            "center_crop_width": 32,
            "center_crop_height": 32,
        },
    ],
    ids=["plain", "crop", "gray", "resize and crop"],
)
def test_peers_see_the_pictures_that_ptq_sees(pictures, options):
    data = pictures | options
    channels = 1 if options["image_to_format"] == "GRAY" else 3
    theirs = Samples(data)
    wanted = list(samples.read(data, {"x": [None, channels, None, None]}))
    assert theirs.names == samples.names(data) == ["0.png", "1.png", "2.png", "3.jpg"]
    for name, ours in zip(theirs.names, wanted, strict=True):
        np.testing.assert_array_equal(theirs.read(name)["x"], ours["x"], strict=True)


def test_an_option_that_the_peers_reader_lacks_is_an_error(pictures):
    with pytest.raises(ValueError, match="input_data_format"):
        Samples(pictures | {"input_data_format": "NHWC"})
    with pytest.raises(ValueError, match="CUBIC"):
        Samples(pictures | {"resize_method": "CUBIC"})


@pytest.mark.parametrize("peer", PEERS)
def test_every_version_is_pinned(peer):
    lines = (SCRIPTS / f"{peer}.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in wanted)
    assert any(line.startswith(f"{peer}==") for line in wanted)
    assert (SCRIPTS / f"run_{peer}.py").exists()


def test_every_other_round_goes_backwards():
    assert "".join(turns(3, "abc")) == "abccbaabc"


def test_a_ratio_is_that_of_the_rounds():
    assert ratio([2, 9, 4], [1, 3, 4]) == "2.00 (1.00-3.00)"
    assert ratio([3], [2]) == "1.50"


def test_what_is_left_out_is_told_below_the_table():
    rows = [{"model": "m", "tool": "a", "s": 1.23456}, {"model": "m", "tool": "b", LEFT_OUT: "why"}]
    lines = table(rows).splitlines()
    assert lines[2] == "| m | a | 1.235 |"
    assert lines[3:] == ["", "Left out of m: b: why"]


def test_a_model_is_as_close_to_itself_as_can_be():
    case = example()
    figures = closeness(case, {FLOAT: case.model, "same": case.model})
    ((_, found),) = figures.items()
    assert found["same"]["agreement"] == 100
    assert found["same"]["cosine"] == 1
    assert found["same"]["SQNR dB"] == np.inf
    assert found["same"]["top-1"] == found[FLOAT]["top-1"] > 90


def test_figures_of_closeness():
    wanted = [np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])]
    found = [np.array([[4.0, 3.0]]), np.array([[1.0, 0.0]])]
    figures = figures_of(wanted, found, logits=True, labels=np.array([0, 1]))
    assert figures["top-1"] == 50  # of two, the first is right
    assert figures["agreement"] == 50  # and of the two, the second has float's
    assert figures["cosine"] == (24 / 25 + 1) / 2
    assert figures["SQNR dB"] == round(10 * np.log10(26 / 2), 1)
