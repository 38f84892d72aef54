"""A plugin's options, from both syntaxes into its own dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ptq_core.config import parse_config, unused_options, validate_options
from ptq_core.errors import ConfigError, PluginError
from ptq_core.types import NoOptions

FULL = """\
[common_quant_param]
quant_type="FULL_QUANT"
[full_quant_param]
[data_preprocess_param]
calibrate_path="x:dir"
calibrate_size=100
input_type="IMAGE"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KL:
    bins: int = 2048
    tail: Annotated[float, Field(gt=0, lt=0.5)] = 1e-4
    exact: bool = False
    side: Literal["Both", "One"] = "Both"
    width: Literal[8, 16] = 8
    levels: tuple[int, ...] = ()
    names: tuple[str, ...] | None = None
    path: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    low: float
    high: float = 1.0

    def __post_init__(self):
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    image_to_format: Literal["RGB", "GRAY", "BGR"] | None = None
    normalize_mean: tuple[float, ...] = ()
    normalize_std: tuple[float, ...] = ()
    threads: int = 1


def options(options_type, section="", kind="calibrator", name="KL", syntax="ini", **more):
    config = parse_config(FULL + section, file="job.cfg", syntax=syntax)
    return validate_options(options_type, kind, name, config, **more)


def problems(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        options(*args, **kwargs)
    return [(p.location.line, p.message) for p in caught.value.problems]


def test_defaults():
    assert options(KL) == (KL(), ())
    assert options(NoOptions) == (NoOptions(), ())


@pytest.mark.parametrize(
    ("syntax", "section"),
    [
        (
            "ini",
            "[calibrator.kl]\nbins=64\ntail=0.25\nexact=True\nside=one\nwidth= 16\nlevels=[1, 2]\n"
            "names=a, b\npath=/d",
        ),
        (
            "toml",
            '[calibrator.Kl]\nbins=64\ntail=0.25\nexact=true\nside="One"\nwidth=16\nlevels=[1, 2]\n'
            'names=["a", "b"]\npath="/d"',
        ),
    ],
)
def test_both_syntaxes_give_the_same(syntax, section):
    found, warnings = options(KL, section, syntax=syntax)
    assert found == KL(
        bins=64,
        tail=0.25,
        exact=True,
        side="One",
        width=16,
        levels=(1, 2),
        names=("a", "b"),
        path=Path("/d"),
    )
    assert warnings == ()


def test_empty_lists():
    assert options(KL, "[calibrator.KL]\nlevels=[]\n")[0].levels == ()


def test_all_problems_at_once():
    section = "[calibrator.KL]\nbin=1\nbins=many\ntail=0.5\nside=left\nlevels=[1,x]\nexact=5\n"
    found = problems(KL, section)
    assert [line for line, _ in found] == [9, 10, 11, 12, 13, 14]
    assert found[0] == (9, "unknown key 'bin' for calibrator KL")
    assert found[1][1].startswith("bins = many: expected a valid integer")
    assert found[2][1] == "tail = 0.5: expected less than 0.5"
    assert found[3][1] == "side = left: expected 'Both' or 'One'"
    with pytest.raises(ConfigError) as caught:
        options(KL, section)
    assert caught.value.problems[0].hint == "did you mean 'bins'?"


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_numbers_are_finite(number):
    ((line, _),) = problems(Checked, f"[calibrator.KL]\nlow={number}")
    assert line == 9


def test_required_keys():
    assert problems(Checked, "[calibrator.KL]\nhigh=2") == [(8, "calibrator KL needs 'low'")]
    assert problems(Checked) == [(None, "calibrator KL needs 'low'")]


def test_the_dataclass_checks_too():
    ((line, message),) = problems(Checked, "[calibrator.KL]\nlow=3")
    assert line == 8
    assert message == "options of calibrator KL: low = 3.0 is not below high = 1.0"


def test_a_plugin_without_options():
    with pytest.raises(ConfigError) as caught:
        options(NoOptions, "[calibrator.KL]\nbins=1")
    assert caught.value.problems[0].hint == "KL has no options"


def test_options_that_cannot_be_read_are_the_plugins_fault():
    @dataclass(frozen=True)
    class Broken:
        value: Nowhere = None  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match="Nowhere"):
        options(Broken)


def test_aliases_name_the_same_section():
    section = "[calibrator.REMOVAL_OUTLIER]\nbins=3\n"
    found, _ = options(KL, section, name="RemovalOutlier", aliases=("REMOVAL_OUTLIER",))
    assert found.bins == 3
    both = section + "[calibrator.removaloutlier]\nbins=4\n"
    assert problems(KL, both, name="RemovalOutlier", aliases=("REMOVAL_OUTLIER",)) == [
        (9, "'bins' is set here and in [calibrator.removaloutlier], which is the same")
    ]


def test_a_preprocessor_takes_its_keys_of_the_data_section():
    section = (
        "image_to_format=RGB\nnormalize_mean=[1,2,3]\nnormalize_std=[4,5,6]\n"
        "center_crop_width=2\ncenter_crop_height=2\n[preprocessor.image]\nthreads=3\n"
    )
    found, warnings = options(Image, section, kind="preprocessor", name="IMAGE")
    assert found == Image(
        image_to_format="RGB", normalize_mean=(1, 2, 3), normalize_std=(4, 5, 6), threads=3
    )
    assert [(p.location.line, p.message) for p in warnings] == [
        (11, "'center_crop_width' has no effect with input_type = IMAGE"),
        (12, "'center_crop_height' has no effect with input_type = IMAGE"),
    ]


def test_a_key_of_the_data_section_is_set_in_one_place():
    section = "image_to_format=RGB\n[preprocessor.IMAGE]\nimage_to_format=BGR\n"
    assert problems(Image, section, kind="preprocessor", name="IMAGE") == [
        (10, "'image_to_format' is set here and in [data_preprocess_param]")
    ]


def test_options_of_plugins_that_are_not_used():
    section = "[calibrator.KL]\nbins=1\n[calibrator.MAX_MIN]\n[runner.x]\nn=1\n"
    config = parse_config(FULL + section, file="job.cfg", syntax="ini")
    unused = unused_options(config, [("calibrator", "kl")])
    assert [(p.location.line, p.message) for p in unused] == [
        (10, "[calibrator.max_min] has no effect: the job does not use this calibrator"),
        (11, "[runner.x] has no effect: the job does not use this runner"),
    ]
