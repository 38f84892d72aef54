from __future__ import annotations

from pathlib import Path

import pytest

from ptq_core.config import load_config, parse_config
from ptq_core.config.toml import read_toml

FULL = """\
[common_quant_param]
quant_type = "FULL_QUANT"
[full_quant_param]
[data_preprocess_param]
calibrate_size = 100
input_type = "BIN"
"""


def parse(text):
    return parse_config(text, file="job.toml", syntax="toml")


def test_native_types():
    config = parse(
        """
        [common_quant_param]
        quant_type = "WEIGHT_QUANT"
        bit_num = 0
        skip_quant_node = ["a,b", " c "]
        debug_info_save_path = 'C:\\debug'
        [weight_quant_param]
        per_channel = false
        [mixed_bit_weight_quant_param]
        init_scale = 0.1
        """
    )
    assert config.common.bit_num == 0
    assert config.common.skip_quant_node == ("a,b", "c")
    assert config.common.debug_info_save_path == "C:\\debug"
    assert config.weight.per_channel is False
    assert config.mixed.init_scale == 0.1


def test_lists_may_be_written_as_in_ini():
    text = '[common_quant_param]\nquant_type = "WEIGHT_QUANT"\nskip_quant_node = "a, b"\n'
    assert parse(text).common.skip_quant_node == ("a", "b")


@pytest.mark.parametrize(
    "path",
    [
        'calibrate_path = "a:x,b:0:y"',
        'calibrate_path = { a = "x", "b:0" = "y" }',
        '[data_preprocess_param.calibrate_path]\na = "x"\n"b:0" = "y"',
    ],
)
def test_calibrate_path(path):
    data = parse(FULL + path).data
    assert data is not None
    assert data.calibrate_path == {"a": "x", "b:0": "y"}


def test_plugin_sections():
    config = parse(
        FULL
        + 'calibrate_path = "x:d"\n[calibrator.KL]\nbins = 2048\n["calibrator.Mine"]\nq = [1]\n'
        + '[runner]\nname = "onnxruntime"\n[runner.onnxruntime]\nthreads = 2\n'
    )
    assert config.runner == "onnxruntime"
    assert config.plugin_options == {
        ("calibrator", "kl"): {"bins": 2048},
        ("calibrator", "mine"): {"q": [1]},
        ("runner", "onnxruntime"): {"threads": 2},
    }
    assert config.locate("calibrator.KL", "bins").line == 9
    assert config.locate("calibrator.Mine", "q").line == 11
    assert config.locate("runner.onnxruntime", "threads").line == 15


def test_byte_order_mark_and_crlf():
    text = '\ufeff[common_quant_param]\r\nquant_type = "WEIGHT_QUANT"\r\nbit_num = 4\r\n'
    config = parse(text)
    assert config.locate("common_quant_param", "bit_num").line == 3


def test_lines_of_keys_in_every_notation(errors):
    text = """\
common_quant_param.quant_type = "WEIGHT_QUANT"
common_quant_param . "bit_num" = 17
weight_quant_param = { per_channel = 1 }

[ mixed_bit_weight_quant_param ] # header
init_scale = [
  [1, 2]
]
auto_tune = "maybe"
"""
    assert [line for line, _ in errors(text, "toml")] == [2, 3, 6, 9]


def test_text_in_arrays_is_no_section():
    text = '[s]\nk = [\n[1], # ]\n["t"]\n]\nlast = "]"\n[t]\n'
    document = read_toml(text)
    assert document.locate("s", "last").line == 6
    assert document.locate("t").line == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[s\nk = 1", 1),
        ("[s]\nk = WEIGHT_QUANT\n", 2),
        ("[s]\nk = 1\nk = 2\n", 3),
        ("[s]\nk =", 2),
    ],
)
def test_syntax_errors_have_a_line(errors, text, line):
    ((found, message),) = errors(text, "toml")
    assert found == line
    assert message.startswith("not TOML: ")
    assert "(at " not in message


@pytest.mark.parametrize("text", ["k = " + "9" * 5000, "k = " + "[" * 5000])
def test_what_the_parser_gives_up_on_is_an_error_of_the_config(errors, text):
    ((_, message),) = errors(text, "toml")
    assert message.startswith("not TOML: ")


def test_keys_above_sections_and_lists_of_tables(errors):
    text = 'bit_num = 8\n[[common_quant_param]]\nquant_type = "WEIGHT_QUANT"\n'
    assert errors(text, "toml") == [
        (1, "'bit_num' stands above the first section"),
        (2, "[[common_quant_param]] is a list"),
    ]


def test_suffix_chooses_the_syntax(tmp_path: Path):
    ini = "[common_quant_param]\nquant_type=WEIGHT_QUANT"
    toml = ini.replace("WEIGHT_QUANT", '"WEIGHT_QUANT"')
    for name, text in {"a.cfg": ini, "a.ini": ini, "a.txt": ini, "a": ini, "A.TOML": toml}.items():
        (tmp_path / name).write_text(text)
        config = load_config(tmp_path / name)
        assert config.common.quant_type == "WEIGHT_QUANT"
        assert config.source == tmp_path / name
