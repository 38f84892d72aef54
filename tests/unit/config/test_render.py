"""Configs as text: rendering and reading give the same, templates are valid, paths resolve."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from ptq_core.config import (
    TEMPLATES,
    config_from_values,
    load_config,
    parse_config,
    render_config,
    resolve_path,
    template,
    validate_options,
)
from ptq_core.errors import ConfigError, InputError
from ptq_core.types import NoOptions

SYNTAXES = ("ini", "toml")
relaxed = settings(deadline=None)  # the first example imports pydantic

# --------------------------------------------------------------------------------------- round trip

thresholds = st.integers(0, 65535)
sizes = st.integers(1, 65535)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.text("abcXYZ019_./- #,:äé名", min_size=1, max_size=9).filter(
    lambda text: text == text.strip()
)


def optional(**keys):
    return st.fixed_dictionaries({}, optional=keys)


def common(job, **more):
    return optional(skip_quant_node=st.lists(plain, max_size=3).filter(bool) | st.just(["a"]),
                    debug_info_save_path=plain, **more).map(
        lambda keys: {"quant_type": job, **keys}
    )  # fmt: skip


weight_jobs = st.fixed_dictionaries(
    {
        "common_quant_param": common(
            "WEIGHT_QUANT",
            bit_num=st.integers(0, 16),
            min_quant_weight_size=thresholds,
            min_quant_weight_channel=thresholds,
            enable_encode=st.just(True),
        )
    },
    optional={
        "weight_quant_param": optional(
            per_channel=st.booleans(), bias_correction=st.booleans(), encoding=plain
        ),
        "mixed_bit_weight_quant_param": optional(
            init_scale=st.floats(0, 1, exclude_min=True, exclude_max=True),
            auto_tune=st.booleans(),
        ),
        "ascend_context": st.sampled_from(
            [
                {},
                {"provider": "ge"},
                {"input_shape": "x:[-1,2,3,4];y:[5]", "dynamic_dims": "[1~4],[8]"},
                {"input_shape": {"x": [1, 2]}},
            ]
        ),
    },
)
vectors = st.lists(numbers.filter(bool), min_size=3, max_size=3)
full_jobs = st.fixed_dictionaries(
    {
        "common_quant_param": common("FULL_QUANT", bit_num=st.just(8)),
        "full_quant_param": optional(
            activation_quant_method=plain,
            bias_correction=st.booleans(),
            per_channel=st.booleans(),
            target_device=plain,
        ),
        "data_preprocess_param": st.builds(
            lambda **keys: {k: v for key in keys.values() for k, v in key.items()},
            needed=st.fixed_dictionaries(
                {
                    "calibrate_path": st.dictionaries(plain, plain, min_size=1, max_size=3),
                    "calibrate_size": sizes,
                    "input_type": plain,
                }
            ),
            normalize=st.just({})
            | st.fixed_dictionaries({"normalize_mean": vectors, "normalize_std": vectors}),
            resize=st.just({})
            | st.fixed_dictionaries(
                {
                    "resize_width": sizes,
                    "resize_height": sizes,
                    "resize_method": st.sampled_from(["LINEAR", "NEAREST", "CUBIC"]),
                }
            ),
            other=optional(
                image_to_format=st.sampled_from(["RGB", "BGR"]),
                input_data_format=st.sampled_from(["NCHW", "NHWC"]),
            ),
        ),
    },
    optional={
        "runner": st.fixed_dictionaries({"name": plain}),
        "calibrator.KL": st.dictionaries(
            st.text("abz_", min_size=1, max_size=5), numbers | st.integers() | st.booleans() | plain
        ),
    },
)


def same(one, other):
    """Whether two configs mean the same; options from INI are text."""
    for name in ("common", "weight", "mixed", "full", "data", "dynamic", "ascend"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.runner, one.target) == (other.runner, other.target)
    assert one.plugin_options.keys() == other.plugin_options.keys()


@relaxed
@given(weight_jobs | full_jobs)
def test_toml_round_trip(sections):
    config = config_from_values(sections)
    text = render_config(config, "toml")
    back = parse_config(text, file="job.toml", syntax="toml")
    same(back, config)
    assert back.plugin_options == config.plugin_options
    assert render_config(back, "toml") == text


@relaxed
@given(weight_jobs | full_jobs)
def test_ini_round_trip(sections):
    config = config_from_values(sections)
    try:
        text = render_config(config, "ini")
    except ConfigError:
        reject()  # more than a few of these would fail hypothesis' own health check
    back = parse_config(text, file="job.cfg", syntax="ini")
    same(back, config)
    assert render_config(back, "ini") == text
    assert render_config(back, "toml")


def test_ini_says_what_it_cannot_hold():
    sections = {"common_quant_param": {"quant_type": "WEIGHT_QUANT"}}
    for nodes in (["a,b"], ['a"b'], ["a\nb"]):
        sections["common_quant_param"]["skip_quant_node"] = nodes
        config = config_from_values(sections)
        with pytest.raises(ConfigError, match="INI cannot hold skip_quant_node = "):
            render_config(config, "ini")
        back = parse_config(render_config(config, "toml"), file="x", syntax="toml")
        assert back.common.skip_quant_node == tuple(nodes)


def test_only_what_was_set_is_written():
    sections = {"common_quant_param": {"quant_type": "weight_quant", "bit_num": "4"}}
    config = config_from_values(sections)
    assert render_config(config, "ini") == (
        "[common_quant_param]\nquant_type=WEIGHT_QUANT\nbit_num=4\n"
    )
    assert render_config(config, "toml") == (
        '[common_quant_param]\nquant_type = "WEIGHT_QUANT"\nbit_num = 4\n'
    )


def test_the_command_lines_device_is_written_where_there_is_a_place():
    full = {"common_quant_param": {"quant_type": "FULL_QUANT"}, "full_quant_param": {}}
    text = render_config(config_from_values(full, has_data=True, target="NVGPU"), "ini")
    assert "[full_quant_param]\ntarget_device=NVGPU" in text
    weight = {"common_quant_param": {"quant_type": "WEIGHT_QUANT"}}
    text = render_config(config_from_values(weight, target="DSP"), "toml")
    assert text.endswith("# on the command line: --target DSP\n")
    for device in (None, "CPU", "cpu"):
        assert "--target" not in render_config(config_from_values(weight, target=device), "toml")


# ---------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("device", [None, "CPU", "NVGPU", "DSP", "ASCEND", "./my_npu.toml"])
def test_templates_are_valid_and_the_same_in_both_syntaxes(name, device):
    ini, toml = (
        parse_config(template(name, syntax, device), file="x", syntax=syntax) for syntax in SYNTAXES
    )
    same(ini, toml)
    assert ini.warnings == ini.notes == toml.warnings == toml.notes == ()
    assert ini.target == device or ini.target == "CPU"
    if name == "full_quant" or device == "ASCEND":
        assert ini.target == (device or "CPU")
    elif device not in (None, "CPU"):
        assert f"--target {device}" in template(name, "ini", device)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_suggestion_in_a_template_is_valid_too(name, syntax):
    text = template(name, syntax)
    lines = text.split("\n")
    suggested = [i for i, line in enumerate(lines) if line.startswith("# ") and "=" in line
                 and line.removeprefix("# ").split("=")[0].strip().isidentifier()]  # fmt: skip
    assert suggested
    for index in suggested:
        changed = [*lines[:index], lines[index].removeprefix("# "), *lines[index + 1 :]]
        parse_config("\n".join(changed), file="x", syntax=syntax)


def test_templates_set_what_their_name_says():
    found = {
        name: parse_config(template(name, "ini"), file="x", syntax="ini").common
        for name in TEMPLATES
    }
    assert {name: (common.quant_type, common.bit_num) for name, common in found.items()} == {
        "full_quant": ("FULL_QUANT", 8),
        "fixed_bit_weight_quant": ("WEIGHT_QUANT", 8),
        "mixed_bit_weight_quant": ("WEIGHT_QUANT", 0),
        "dynamic_quant": ("DYNAMIC_QUANT", 8),
    }


def test_unknown_template():
    with pytest.raises(InputError, match="did you mean 'full_quant'"):
        template("full_qant", "ini")


# -------------------------------------------------------------------------------------------- paths


def test_relative_paths_start_at_the_config(tmp_path, monkeypatch):
    folder, here = tmp_path / "configs", tmp_path / "here"
    for path in (folder / "beside", here / "beside", here / "local"):
        path.mkdir(parents=True)
    monkeypatch.chdir(here)
    (folder / "job.cfg").write_text("[common_quant_param]\nquant_type=WEIGHT_QUANT")
    config = load_config(folder / "job.cfg")
    assert resolve_path(config, "beside") == (folder / "beside", None)
    assert resolve_path(config, "absent") == (folder / "absent", None)
    assert resolve_path(config, str(here / "local")) == (here / "local", None)
    path, note = resolve_path(config, "local")
    assert path == here / "local"
    assert note == f"'local' is not beside {folder / 'job.cfg'}; using {here / 'local'}"


# --------------------------------------------------------------------------------- hostile input

INI_PIECES = st.sampled_from(
    ["[", "]", "=", "#", '"', ",", ":", " ", "\t", "\r\n", "\n", "-1", "~", ";", "\ufeff", "\0",
     "common_quant_param", "quant_type", "WEIGHT_QUANT", "FULL_QUANT", "bit_num", "8", "0", "[s]",
     "[common_quant_param]\nquant_type=FULL_QUANT\n", "[ascend_context]\n", "input_shape=x:[-1,2]",
     "[data_preprocess_param]\n", "calibrate_path=", "normalize_std=[0]", "[calibrator.KL]\n",
     "[runner]\nname=x\n", "dynamic_dims=[1~2]", "true", "'", ".", "{", "}", "e", "_", '"""']
)  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES)
@relaxed
@given(text=st.text() | st.lists(INI_PIECES, max_size=30).map("".join))
def test_any_text_gives_a_config_or_a_config_error(syntax, text):
    try:
        config = parse_config(text, file="job.cfg", syntax=syntax)
    except ConfigError:
        return
    assert config.common.quant_type


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = {
    "weight_quant_param": ("per_channel", "encoding"),
    "data_preprocess_param": ("calibrate_path", "normalize_mean", "resize_method", "input_type"),
    "ascend_context": ("input_shape", "dynamic_dims", "provider"),
    "runner": ("name", "x"),
    "calibrator": ("KL",),
}


@relaxed
@given(
    st.fixed_dictionaries(
        {"common_quant_param": st.just({"quant_type": "DYNAMIC_QUANT"}) | values},
        optional={s: values | optional(**dict.fromkeys(k, values)) for s, k in KEYS.items()},
    )
)
def test_any_values_give_a_config_or_a_config_error(sections):
    try:
        config = config_from_values(sections)
    except ConfigError:
        return
    assert config.common.quant_type


# ------------------------------------------------------------------------------------------- import


def test_pydantic_is_imported_with_the_first_use_only():
    code = "import sys, ptq_core.config as c; assert 'pydantic' not in sys.modules; c.Config"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_can_be_imported():
    import ptq_core.config

    for name in ptq_core.config.__all__:
        assert getattr(ptq_core.config, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ptq_core.config.nothing


def test_options_of_the_same_config_in_both_syntaxes():
    sections = {"common_quant_param": {"quant_type": "WEIGHT_QUANT"}, "encoding.X": {}}
    config = config_from_values(sections)
    for syntax in SYNTAXES:
        back = parse_config(render_config(config, syntax), file="x", syntax=syntax)
        assert validate_options(NoOptions, "encoding", "x", back) == (NoOptions(), ())
