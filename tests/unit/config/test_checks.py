"""How keys go together: every error with its line, every warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptq_core.config import config_from_values, load_config, parse_config
from ptq_core.errors import ConfigError

FULL = """\
[common_quant_param]
quant_type=FULL_QUANT
[full_quant_param]
[data_preprocess_param]
calibrate_path=x:dir
calibrate_size=100
input_type=IMAGE
"""
WEIGHT = "[common_quant_param]\nquant_type=WEIGHT_QUANT\n"
DYNAMIC = "[common_quant_param]\nquant_type=DYNAMIC_QUANT\n"


def parse(text, **options):
    return parse_config(text, file="job.cfg", syntax="ini", **options)


def said(problems):
    return [(p.location.line, p.message) for p in problems]


def test_five_mistakes_are_five_problems(errors):
    found = errors(
        """\
[common_quant_param]
quant_typ=FULL_QUANT
bit_num=4
[full_quant_parm]
per_channel=maybe
[data_preprocess_param]
calibrate_path=/data
calibrate_size=100
input_type=BIN
"""
    )
    assert [line for line, _ in found] == [2, 3, 4, 5, 7]
    assert [message for _, message in found[:4]] == [
        "unknown key 'quant_typ' in [common_quant_param]",
        "bit_num = 4: FULL_QUANT works with 8 bits",
        "unknown section [full_quant_parm]",
        "per_channel = maybe: expected true or false",
    ]


def test_an_error_reads_well():
    with pytest.raises(ConfigError) as caught:
        parse("[common_quant_param]\nquant_type=WEIGHT\n")
    assert str(caught.value) == (
        "job.cfg:2, [common_quant_param]: quant_type = WEIGHT: "
        "expected WEIGHT_QUANT, FULL_QUANT or DYNAMIC_QUANT"
    )


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("[Common_Quant_Param]", 3, "unknown section [Common_Quant_Param]", "'common_quant_param'"),
        ("[calibrater.KL]", 3, "unknown section [calibrater.KL]", "'calibrator'"),
        ("[calibrator]\nbins=1", 3, "unknown section [calibrator]", "in [calibrator.NAME]"),
        ("Bit_Num=8", 3, "unknown key 'Bit_Num' in [common_quant_param]", "'bit_num'"),
        ("per_channel=true", 3, "unknown key 'per_channel' in [common_quant_param]",
         "it belongs in [weight_quant_param] or [full_quant_param]"),
        ("[runner]\nnam=x", 4, "unknown key 'nam' in [runner]", "'name'"),
        ("[ascend_context]\nprovidr=ge", 4, "unknown key 'providr' in [ascend_context]",
         "'provider'"),
    ],
)  # fmt: skip
def test_unknown_names(text, line, message, hint):
    with pytest.raises(ConfigError) as caught:
        parse(WEIGHT + text)
    (problem,) = caught.value.problems
    assert (problem.location.line, problem.message) == (line, message)
    assert hint in problem.hint


# -------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [(None, "[common_quant_param] is missing")]),
        ("\n[common_quant_param]\nbit_num=8", [(2, "quant_type is missing")]),
        ("[common_quant_param]\nquant_type=", [(2, "'quant_type' has no value")]),
    ],
)
def test_quant_type_is_mandatory(errors, text, found):
    assert errors(text) == found


def test_full_quant_needs_its_sections(errors):
    data = "FULL_QUANT needs a section [data_preprocess_param] with "
    assert errors("[common_quant_param]\nquant_type=FULL_QUANT") == [
        (2, "FULL_QUANT needs a section [full_quant_param]"),
        (2, data + "calibrate_path, calibrate_size, input_type"),
    ]


@pytest.mark.parametrize("key", ["calibrate_path", "calibrate_size", "input_type"])
def test_full_quant_needs_its_data(errors, key):
    text = "\n".join(line for line in FULL.split("\n") if not line.startswith(key))
    assert errors(text) == [(4, f"{key} is missing in [data_preprocess_param]")]
    assert parse(text, has_data=True).data is not None


def test_data_of_the_callers_own():
    config = parse("[common_quant_param]\nquant_type=FULL_QUANT\n[full_quant_param]", has_data=True)
    assert config.data is None


def test_a_wrong_value_is_not_missing_too(errors):
    text = FULL.replace("calibrate_size=100", "calibrate_size=0")
    assert errors(text) == [(6, "calibrate_size = 0: expected a whole number from 1 to 65535")]


def test_other_jobs_need_all_of_the_data_or_nothing(errors):
    text = WEIGHT + "debug_info_save_path=d\n"
    assert parse(text).data is None
    assert errors(text + "[data_preprocess_param]\ncalibrate_path=x:d\ninput_type=BIN") == [
        (4, "calibrate_size is missing in [data_preprocess_param]")
    ]


# ----------------------------------------------------------------------------------- contradictions


@pytest.mark.parametrize("job", [FULL, DYNAMIC])
@pytest.mark.parametrize("bits", [0, 1, 7, 9, 16])
def test_eight_bits_for_all_but_weights(errors, job, bits):
    text = job.replace("QUANT\n", f"QUANT\nbit_num={bits}\n", 1)
    ((line, message),) = errors(text)
    assert line == 3
    assert message.startswith(f"bit_num = {bits}: ")
    assert parse(text.replace(f"bit_num={bits}", "bit_num=8")).common.bit_num == 8


@pytest.mark.parametrize("bits", range(17))
def test_enable_encode_off(errors, bits):
    text = WEIGHT + f"bit_num={bits}\nenable_encode=false"
    if bits in (8, 16):
        assert parse(text).common.enable_encode is False
    else:
        ((line, message),) = errors(text)
        assert line == 4
        assert message.startswith(f"enable_encode = false with bit_num = {bits}")


@pytest.mark.parametrize("bits", range(17))
def test_on_the_fly_at_every_width_but_mixed(errors, bits):
    text = WEIGHT + f"bit_num={bits}\n[weight_quant_param]\ndequant_strategy=ON_THE_FLY"
    if bits:
        assert parse(text).weight.dequant_strategy == "ON_THE_FLY"
    else:
        ((line, message),) = errors(text)
        assert line == 5
        assert message.startswith("dequant_strategy = ON_THE_FLY with bit_num = 0")


@pytest.mark.parametrize(
    ("syntax", "line"),
    [("ini", "add the line provider=ge to"), ("toml", 'add the line provider = "ge" to')],
)
def test_on_the_fly_for_ascend_names_the_line_to_add(syntax, line):
    text = (
        '[common_quant_param]\nquant_type="WEIGHT_QUANT"\n'
        '[weight_quant_param]\ndequant_strategy="ON_THE_FLY"\n'
    )
    for ascend, options in (("[ascend_context]", {}), ("", {"target": "Ascend"})):
        with pytest.raises(ConfigError) as caught:
            parse_config(text + ascend, file="job", syntax=syntax, **options)
        (problem,) = caught.value.problems
        assert problem.location.line == 4
        assert problem.hint == f"{line} a section [ascend_context]"
    done = parse_config(text + '[ascend_context]\nprovider="GE"', file="job", syntax=syntax)
    assert done.target == "ASCEND"


def test_on_the_fly_with_another_provider(errors):
    text = WEIGHT + "[weight_quant_param]\ndequant_strategy=ON_THE_FLY\n[ascend_context]\n"
    ((line, message),) = errors(text + "provider=acl")
    assert line == 6
    assert message.endswith("needs provider = ge, which is 'acl'")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("resize_width=2", "resize_width without resize_height, resize_method"),
        ("resize_method=CUBIC", "resize_method without resize_width, resize_height"),
        ("resize_width=2\nresize_height=2", "resize_width, resize_height without resize_method"),
        ("center_crop_width=2", "center_crop_width without center_crop_height"),
        ("center_crop_height=2", "center_crop_height without center_crop_width"),
        ("normalize_mean=[1]", "normalize_mean without normalize_std"),
        ("normalize_std=[1,1,1]", "normalize_std without normalize_mean"),
    ],
)
def test_keys_that_go_together(errors, lines, message):
    assert errors(FULL + lines) == [(8, message)]


def test_a_crop_is_cut_out_of_the_resized_picture(errors):
    resize = "resize_width=8\nresize_height=6\nresize_method=LINEAR\n"
    assert parse(FULL + resize + "center_crop_width=8\ncenter_crop_height=6").data is not None
    assert errors(FULL + resize + "center_crop_width=9\ncenter_crop_height=7") == [
        (11, "center_crop_width = 9: pictures are resized to 8 before"),
        (12, "center_crop_height = 7: pictures are resized to 6 before"),
    ]


@pytest.mark.parametrize(
    ("colours", "mean", "std", "line", "message"),
    [
        ("RGB", "[1,2,3]", "[1]", 10, "normalize_std has length 1 and normalize_mean 3"),
        ("RGB", "[1]", "[1]", 9, "normalize_mean has length 1; RGB takes 3"),
        ("BGR", "[1]", "[1]", 9, "normalize_mean has length 1; BGR takes 3"),
        ("gray", "[1,2,3]", "[1,2,3]", 9, "normalize_mean has length 3; GRAY takes 1"),
        ("RGB", "[1,2,3]", "[1,0,3]", 10, "normalize_std: 0 cannot be divided by"),
    ],
)
def test_normalization(errors, colours, mean, std, line, message):
    keys = f"image_to_format={colours}\nnormalize_mean={mean}\nnormalize_std={std}"
    assert errors(FULL + keys) == [(line, message)]


@pytest.mark.parametrize(("colours", "values"), [("GRAY", "[1]"), ("RGB", "[1,2,3]")])
def test_as_many_values_as_channels(colours, values):
    keys = f"image_to_format={colours}\nnormalize_mean={values}\nnormalize_std={values}"
    assert parse(FULL + keys).data is not None


# ------------------------------------------------------------------------------------------ device


ON_NVGPU = FULL.replace("[full_quant_param]", "[full_quant_param]\ntarget_device=nvgpu")


@pytest.mark.parametrize(
    ("text", "option", "device"),
    [
        (FULL, None, "CPU"),
        (FULL, "DSP", "DSP"),
        (ON_NVGPU, None, "nvgpu"),
        (ON_NVGPU, "NVGPU", "NVGPU"),
        (FULL + "[ascend_context]", None, "ASCEND"),
        (FULL + "[ascend_context]", "ascend", "ascend"),
        (FULL.replace("[full_quant_param]", "[full_quant_param]\ntarget_device=./my.toml"), None,
         "./my.toml"),
        (WEIGHT, None, "CPU"),
        (WEIGHT, "DSP", "DSP"),
        (WEIGHT + "[ascend_context]", None, "ASCEND"),
        (DYNAMIC + "[ascend_context]", "ASCEND", "ASCEND"),
    ],
)  # fmt: skip
def test_device(text, option, device):
    assert parse(text, target=option).target == device


def test_devices_that_contradict(errors):
    assert errors(ON_NVGPU + "[ascend_context]\n") == [
        (9, "the section [ascend_context] on line 9 means ASCEND, but target_device on line 4 "
            "says nvgpu")
    ]  # fmt: skip
    assert errors(ON_NVGPU, target="CPU") == [
        (4, "target_device on line 4 means nvgpu, but the command line says CPU")
    ]


@pytest.mark.parametrize(
    ("keys", "line", "message"),
    [
        ("input_shape=x:[-1,3,8,8]", 4,
         "input 'x' has a dimension -1 but there is no dynamic_dims"),
        ("dynamic_dims=[1]", 4, "no dimension in input_shape is -1"),
        ("input_shape=x:[-1,3]\ndynamic_dims=[1]", 5,
         "input 'x' varies but has 2 dimensions; expected 4"),
        ("input_shape=x\n", 4,
         "input_shape = x: expected name:[1,32,32,4] with ';' between inputs; "
         "-1 is a varying dimension"),
    ],
)  # fmt: skip
def test_dynamic_shapes(errors, keys, line, message):
    assert errors(WEIGHT + "[ascend_context]\n" + keys) == [(line, message)]


# ------------------------------------------------------------------------------ warnings and notes


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (FULL.replace("[full", "min_quant_weight_size=5\n[full"), 3,
         "'min_quant_weight_size' has no effect with FULL_QUANT; it is for WEIGHT_QUANT"),
        (DYNAMIC + "min_quant_weight_channel=5", 3,
         "'min_quant_weight_channel' has no effect with DYNAMIC_QUANT; it is for WEIGHT_QUANT"),
        (FULL.replace("[full", "enable_encode=false\n[full"), 3,
         "'enable_encode' has no effect with FULL_QUANT; it is for WEIGHT_QUANT"),
        (FULL + "[weight_quant_param]\nper_channel=true\nbias_correction=true", 8,
         "[weight_quant_param] (per_channel, bias_correction) has no effect with FULL_QUANT: "
         "it is for WEIGHT_QUANT"),
        (WEIGHT + "[mixed_bit_weight_quant_param]\ninit_scale=0.1", 3,
         "[mixed_bit_weight_quant_param] (init_scale) has no effect with WEIGHT_QUANT and "
         "bit_num=8: it is for WEIGHT_QUANT with bit_num=0"),
        (WEIGHT + "bit_num=0\n[mixed_bit_weight_quant_param]\ninit_scale=0.1\nauto_tune=true", 5,
         "'init_scale' has no effect with auto_tune=true, which searches for it"),
        (WEIGHT + "[full_quant_param]\ntarget_device=DSP", 3,
         "[full_quant_param] (target_device) has no effect with WEIGHT_QUANT and bit_num=8: "
         "it is for FULL_QUANT; name the device on the command line, --target"),
        (DYNAMIC + "[dynamic_quant_param]\nquant_strategy=ACWC\nattention=true", 5,
         "'attention' has no effect with ACWC: only ALWC has it"),
        (DYNAMIC + "[dynamic_quant_param]\nsmoothing=true", 4,
         "'smoothing' has no effect without samples, which [data_preprocess_param] names"),
        (FULL + "[dynamic_quant_param]\n", 8,
         "[dynamic_quant_param] has no effect with FULL_QUANT: it is for DYNAMIC_QUANT"),
        (DYNAMIC + "[calibrator.KL]\nbins=1", 3,
         "[calibrator.KL] (bins) has no effect with DYNAMIC_QUANT: it is for FULL_QUANT"),
        (WEIGHT + "enable_encode=false\n[weight_quant_param]\nencoding=X", 5,
         "'encoding' has no effect with enable_encode=false"),
        (WEIGHT + "[weight_quant_param]\nmax_segments=1", 4, "'max_segments' has no effect here"),
        (WEIGHT + "[weight_quant_param]\nmax_segments=4", 4,
         "'max_segments' has no effect here"),
        (FULL.replace("[data", "smooth_alpha=0.5\n[data"), 4, "'smooth_alpha' has no effect here"),
        (WEIGHT + "bit_num=0\n[mixed_bit_weight_quant_param]\nmax_iterations=40", 5,
         "'max_iterations' has no effect here"),
        (WEIGHT + "[transform_quant_param]\nexport_precision_mode=QUANT", 3,
         "[transform_quant_param] has no effect: it concerns input models that are quantized "
         "already"),
        (WEIGHT + "[micro_param]\nanything=1", 3,
         "[micro_param] has no effect: ptq knows it but does not use it"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_said(text, line, message):
    config = parse(text)
    assert said(config.warnings) == [(line, message)]
    assert config.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        WEIGHT + "bit_num=0\n[mixed_bit_weight_quant_param]\nauto_tune=true\n",
        WEIGHT + "debug_info_save_path=d\n",
        DYNAMIC + "debug_info_save_path=d\n",
    ],
)
def test_data_that_other_jobs_read_is_no_mistake(text):
    config = parse(text + FULL[FULL.index("[data") :])
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("size", "noted"), [(1, True), (99, True), (100, False), (500, False), (501, True)]
)
def test_usual_numbers_of_samples(size, noted):
    config = parse(FULL.replace("=100", f"={size}"))
    expected = [(6, f"calibrate_size = {size}: 100 to 500 samples are usual")]
    assert said(config.notes) == (expected if noted else [])
    assert config.warnings == ()


def test_keys_of_the_original_that_ptq_does_not_need():
    config = parse(WEIGHT + "workspace=/tmp\n[ascend_context]\nprecision_mode=fp16\n")
    assert said(config.notes) == [
        (3, "'workspace': ptq needs no temporary folder; the key is not used"),
        (5, "'precision_mode': it is for Ascend's own compiler; ptq does not use it"),
    ]


# ---------------------------------------------------------------------------------- other entrances


def test_values_from_python():
    config = config_from_values(
        {
            "common_quant_param": {"quant_type": "full_quant", "bit_num": None},
            "full_quant_param": {"activation_quant_method": "KL"},
            "data_preprocess_param": {
                "calibrate_path": {"x": Path("some") / "dir"},
                "calibrate_size": "200",
                "input_type": "BIN",
            },
            "calibrator.KL": {"bins": 4},
        }
    )
    assert config.source is None
    assert config.common.model_fields_set == {"quant_type"}
    assert config.data is not None
    assert config.data.calibrate_path == {"x": str(Path("some") / "dir")}
    assert config.plugin_options == {("calibrator", "kl"): {"bins": 4}}


def test_values_from_python_are_located_by_section():
    with pytest.raises(ConfigError) as caught:
        config_from_values({"common_quant_param": {"quant_type": "WEIGHT_QUANT", "bit_num": 99}})
    assert str(caught.value) == (
        "[common_quant_param]: bit_num = 99: expected a whole number from 0 to 16"
    )


def test_locate():
    config = parse(FULL)
    assert str(config.locate("data_preprocess_param", "input_type")) == (
        "job.cfg:7, [data_preprocess_param]"
    )
    assert str(config.locate("data_preprocess_param", "resize_width")) == (
        "job.cfg:4, [data_preprocess_param]"
    )
    assert str(config.locate("weight_quant_param")) == "job.cfg"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [(b"[s]\n\xff", 2, "byte 0xff is not UTF-8"), (None, None, "the config cannot be read: ")],
)
def test_files_that_cannot_be_read(tmp_path, content, line, message):
    path = tmp_path / "job.cfg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    assert (problem.location.file, problem.location.line) == (str(path), line)
    assert problem.message.startswith(message)
