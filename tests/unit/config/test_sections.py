"""Defaults and ranges: each key at, and just beyond, the ends of its range."""

from __future__ import annotations

import pytest

from ptq_core.config import config_from_values
from ptq_core.config.sections import (
    CommonQuantParam,
    DataPreprocessParam,
    DynamicQuantParam,
    FullQuantParam,
    MixedBitWeightQuantParam,
    WeightQuantParam,
)
from ptq_core.errors import ConfigError

JOBS = {
    "data_preprocess_param": "FULL_QUANT",
    "full_quant_param": "FULL_QUANT",
    "dynamic_quant_param": "DYNAMIC_QUANT",
}
MODELS = {
    "common_quant_param": "common",
    "weight_quant_param": "weight",
    "mixed_bit_weight_quant_param": "mixed",
    "full_quant_param": "full",
    "data_preprocess_param": "data",
    "dynamic_quant_param": "dynamic",
}


def value(section, key, written):
    sections = {"common_quant_param": {"quant_type": JOBS.get(section, "WEIGHT_QUANT")}}
    if sections["common_quant_param"]["quant_type"] == "FULL_QUANT":
        sections["full_quant_param"] = {}
    sections.setdefault(section, {})[key] = written
    together = {"resize_width": 9, "resize_height": 9, "resize_method": "LINEAR"}
    together |= {"center_crop_width": 1, "center_crop_height": 1}
    if key in together:
        group = [k for k in together if k.split("_")[0] == key.split("_")[0]]
        sections[section] = {k: together[k] for k in group} | sections[section]
    config = config_from_values(sections, has_data=True)
    return getattr(getattr(config, MODELS[section]), key)


def test_defaults_are_the_guides():
    assert CommonQuantParam(quant_type="WEIGHT_QUANT").model_dump() == {
        "quant_type": "WEIGHT_QUANT",
        "bit_num": 8,
        "min_quant_weight_size": 0,
        "min_quant_weight_channel": 16,
        "skip_quant_node": (),
        "debug_info_save_path": None,
        "enable_encode": True,
    }
    assert WeightQuantParam().model_dump() == {
        "dequant_strategy": None,
        "per_channel": True,
        "bias_correction": True,
        "encoding": None,
        "quant_strategy": None,
        "group_size": None,
    }
    assert MixedBitWeightQuantParam().model_dump() == {
        "init_scale": 0.02,
        "auto_tune": False,
        "scales": None,
        "target_cosine": 0.995,
    }
    assert FullQuantParam().model_dump() == {
        "activation_quant_method": "MAX_MIN",
        "bias_correction": True,
        "per_channel": True,
        "target_device": None,
        "smoothing": True,
    }
    assert DynamicQuantParam().model_dump() == {
        "quant_strategy": "ALWC",
        "attention": False,
        "convolution": False,
        "smoothing": True,
    }
    assert not any(DataPreprocessParam().model_dump().values())


COMMON, DATA, MIXED = "common_quant_param", "data_preprocess_param", "mixed_bit_weight_quant_param"


@pytest.mark.parametrize(
    ("section", "key", "low", "high"),
    [
        (COMMON, "bit_num", 0, 16),
        (COMMON, "min_quant_weight_size", 0, 65535),
        (COMMON, "min_quant_weight_channel", 0, 65535),
        (DATA, "calibrate_size", 1, 65535),
        (DATA, "resize_width", 1, 65535),
        (DATA, "resize_height", 1, 65535),
        (DATA, "center_crop_width", 1, 65535),
        (DATA, "center_crop_height", 1, 65535),
    ],
)
def test_whole_numbers(section, key, low, high):
    for number in (low, high):
        if "crop" in key and number == high:
            continue  # larger than the picture it is cut from
        assert value(section, key, number) == number
        assert value(section, key, f" {number} ") == number
    for wrong in (low - 1, high + 1, str(high + 1), True, 1.0, "1.0", "", "1 2", "٣", 10**5000):
        with pytest.raises(ConfigError, match=f"expected a whole number from {low} to {high}"):
            value(section, key, wrong)


@pytest.mark.parametrize("number", [5e-324, 0.02, 1 - 2**-53, "0.5", "5e-1", ".5", "+0.5"])
def test_init_scale_inside_its_interval(number):
    assert value(MIXED, "init_scale", number) == float(number)


@pytest.mark.parametrize("number", [0, 1, 0.0, 1.0, "0", "1", -0.1, float("nan"), "nan", "x", True])
def test_init_scale_outside_its_interval(number):
    with pytest.raises(ConfigError, match="expected a number above 0 and below 1"):
        value(MIXED, "init_scale", number)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        (COMMON, "quant_type", ("WEIGHT_QUANT", "FULL_QUANT", "DYNAMIC_QUANT")),
        ("weight_quant_param", "dequant_strategy", ("ON_THE_FLY",)),
        ("weight_quant_param", "quant_strategy", ("MAX_MIN", "MSE", "GPTQ")),
        (DATA, "image_to_format", ("RGB", "GRAY", "BGR")),
        (DATA, "resize_method", ("LINEAR", "NEAREST", "CUBIC")),
        (DATA, "input_data_format", ("NCHW", "NHWC")),
        ("dynamic_quant_param", "quant_strategy", ("ALWC", "ACWL", "ACWC")),
    ],
)
def test_words_in_any_case(section, key, words):
    for word in words:
        if word != "FULL_QUANT":  # needs more than this key
            assert value(section, key, word) == word
            assert value(section, key, word.lower()) == word
    expected = " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
    with pytest.raises(ConfigError, match=f"{key} = other: expected {expected}$"):
        value(section, key, "other")
    with pytest.raises(ConfigError, match=f"{key} = 1: expected"):
        value(section, key, 1)


def test_nearest_in_the_guides_other_spelling():
    assert value(DATA, "resize_method", "NEARST") == "NEAREST"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (COMMON, "enable_encode"),
        ("weight_quant_param", "per_channel"),
        ("weight_quant_param", "bias_correction"),
        (MIXED, "auto_tune"),
        ("full_quant_param", "per_channel"),
        ("full_quant_param", "bias_correction"),
    ],
)
def test_booleans(section, key):
    for word in ("true", "True", "TRUE", True):
        assert value(section, key, word) is True
    for word in ("false", "False", False):
        assert value(section, key, word) is False
    for wrong in ("yes", "1", 1, 0, "", "on"):
        with pytest.raises(ConfigError, match="expected true or false"):
            value(section, key, wrong)


@pytest.mark.parametrize("written", ["a,b", " a , b ", '"a",b', ["a", "b"], ("a", " b")])
def test_skip_quant_node(written):
    assert value(COMMON, "skip_quant_node", written) == ("a", "b")


@pytest.mark.parametrize("written", ["a,,b", "a,", ",", "", [1], ["a", ""], 7, {"a": 1}])
def test_skip_quant_node_wrong(written):
    with pytest.raises(ConfigError, match="expected names with ',' between them"):
        value(COMMON, "skip_quant_node", written)


@pytest.mark.parametrize(
    ("written", "numbers"),
    [("[1]", (1,)), ("[ 1 , 2.5 ,3e0 ]", (1, 2.5, 3)), ([1, 2, 3], (1, 2, 3)), ((0.5,), (0.5,))],
)
def test_vectors(written, numbers):
    sections = {
        COMMON: {"quant_type": "FULL_QUANT"},
        "full_quant_param": {},
        DATA: {"normalize_mean": written, "normalize_std": written},
    }
    config = config_from_values(sections, has_data=True)
    assert config.data is not None
    assert config.data.normalize_mean == numbers


@pytest.mark.parametrize(
    "written",
    ["1,2,3", "[1,2]", "[]", "[1,2,3,4]", "[1,,3]", "[1,2,nan]", [1, 2, float("inf")], 1, ["1", 2]],
)
def test_vectors_wrong(written):
    with pytest.raises(ConfigError, match=r"normalize_mean = .*: expected \[m\] or \[m1, m2, m3\]"):
        value(DATA, "normalize_mean", written)


@pytest.mark.parametrize(
    ("written", "folders"),
    [
        ("x:/data", {"x": "/data"}),
        (" x : /data , y : rel/dir ", {"x": "/data", "y": "rel/dir"}),
        ("input:0:/data", {"input:0": "/data"}),
        ("serving/x:0:dir", {"serving/x:0": "dir"}),
        ("x:C:\\data", {"x": "C:\\data"}),
        ("x:C:/data", {"x": "C:/data"}),
        ("x:0:D:\\a,y:E:/b", {"x:0": "D:\\a", "y": "E:/b"}),
        ('x:"/with, comma",y:/b', {"x": "/with, comma", "y": "/b"}),
        ({"a:b": "C:x"}, {"a:b": "C:x"}),
    ],
)
def test_calibrate_path(written, folders):
    assert value(DATA, "calibrate_path", written) == folders


@pytest.mark.parametrize(
    "written",
    [
        "/data",
        "data",
        "C:\\data",
        ":/data",
        "x:",
        "x:/a,",
        "x:/a,/b",
        "",
        {},
        {"x": ""},
        {"x": 1},
        5,
    ],
)
def test_calibrate_path_wrong(written):
    with pytest.raises(ConfigError, match=r"expected (name:folder|a table like)"):
        value(DATA, "calibrate_path", written)


def test_an_input_has_one_folder():
    with pytest.raises(ConfigError, match="input 'x' is there twice"):
        value(DATA, "calibrate_path", "x:a,x:b")


def test_sections_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        WeightQuantParam().per_channel = False
