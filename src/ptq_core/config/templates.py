"""Commented starting points for a config, one per job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ptq_core.config.document import Syntax
from ptq_core.config.render import assignment
from ptq_core.errors import InputError, did_you_mean


@dataclass(frozen=True, slots=True)
class _Setting:
    key: str
    value: Any
    comment: str
    active: bool = True  # otherwise the line is a comment: a choice that the user may take


_Sections = dict[str, list[_Setting]]

_SKIP = _Setting(
    "skip_quant_node",
    ("node_1", "node_2"),
    "Nodes that stay float32. Run once with debug_info_save_path and look at report_*.csv: good\n"
    "candidates have a low CosineSimilarity, a high Clip, or (Add, Concat) inputs of very unlike\n"
    "ranges.",
    active=False,
)
_DEBUG = _Setting(
    "debug_info_save_path", "./debug", "Folder for reports on every tensor's error.", active=False
)
_SIZE = _Setting(
    "min_quant_weight_size",
    0,
    "Weights with more elements than this are quantized.",
)
_CHANNEL = _Setting(
    "min_quant_weight_channel",
    16,
    "Weights with more output channels than this are quantized.",
)
_PER_CHANNEL = _Setting(
    "per_channel",
    True,
    "A scale for each output channel (true) or for each layer (false). true is more accurate;\n"
    "false suits devices that cannot do it.",
)


def _full_quant(target: str) -> _Sections:
    full = [
        _Setting(
            "activation_quant_method",
            "MSE",
            "How the range of an activation is found.\n"
            "MSE: the range with the least squared error; the closest to float on our networks.\n"
            "MAX_MIN: smallest and largest value; the fastest, for samples like the real input.\n"
            "PERCENTILE: leaves out a share of all values; for noisy samples.\n"
            "KL: cuts rare large values where the distribution changes least; for noisy samples.\n"
            "RemovalOutlier: leaves out a share of each sample's values; for noisy samples.\n"
            "`ptq calibrate` tries several in one pass and says what each is worth.",
        ),
        _Setting(
            "bias_correction",
            target.casefold() != "dsp",  # as the guide has it
            "Makes good, in biases and scales, for what the layers' results lack in the mean.\n"
            "Recommended: it costs seconds and gains most of what was lost.",
        ),
        _PER_CHANNEL,
        _Setting(
            "smoothing",
            False,
            "Outliers of activations are moved into the weights of transformers where samples\n"
            "show that it helps; false leaves that out.",
            active=False,
        ),
    ]
    comment = "The device that runs the model: CPU, NVGPU, DSP, ASCEND, or a TOML file of your own."
    full.append(_Setting("target_device", target, comment))
    return {
        "common_quant_param": [
            _Setting("quant_type", "FULL_QUANT", "Weights and activations become integers."),
            _Setting("bit_num", 8, "Full quantization works with 8 bits."),
            _SKIP,
            _DEBUG,
        ],
        "full_quant_param": full,
        "data_preprocess_param": [
            _Setting(
                "calibrate_path",
                {"input": "./calibration"},
                "The folder with samples for each input of the model. Replace 'input' by the\n"
                "input's name; relative folders start at this file.",
            ),
            _Setting(
                "calibrate_size",
                100,
                "How many samples are used. 100 to 500 that look like the real input are enough.",
            ),
            _Setting(
                "input_type",
                "IMAGE",
                "IMAGE: picture files. BIN: files with the input's raw bytes. NPY: NumPy files.\n"
                "The keys below are for IMAGE, and are applied in this order.",
            ),
            _Setting("image_to_format", "RGB", "Order of the colours: RGB, BGR, or GRAY."),
            _Setting(
                "normalize_mean",
                (127.5, 127.5, 127.5),
                "(value - mean) / std, for values from 0 to 255. Use what the model was trained\n"
                "with; GRAY takes one number each.",
            ),
            _Setting("normalize_std", (127.5, 127.5, 127.5), ""),
            _Setting("resize_width", 224, "Size before the crop."),
            _Setting("resize_height", 224, ""),
            _Setting("resize_method", "LINEAR", "LINEAR, NEAREST or CUBIC."),
            _Setting("center_crop_width", 224, "The middle of the picture."),
            _Setting("center_crop_height", 224, ""),
        ],
    }


def _fixed_bit_weight_quant(target: str) -> _Sections:
    ascend = target.casefold() == "ascend"
    sections = {
        "common_quant_param": [
            _Setting(
                "quant_type", "WEIGHT_QUANT", "Weights become integers; the model runs in float32."
            ),
            _Setting(
                "bit_num",
                8,
                "1 to 16. Fewer bits: a smaller file, and less accuracy. 8 needs nothing else; at\n"
                "4 and fewer look at what is said of samples and quant_strategy below.",
            ),
            _SIZE,
            _CHANNEL,
            _SKIP,
            _DEBUG,
            _Setting(
                "enable_encode",
                True,
                "Store the integers compactly. false is possible with 8 and 16 bits.",
                active=False,
            ),
        ],
        "weight_quant_param": [
            _PER_CHANNEL,
            _Setting(
                "bias_correction",
                True,
                "Correct mean and variance of the weights; where there are samples, biases and\n"
                "scales of the layers as well, which decides at 4 bits and fewer. Recommended.\n"
                "For samples add a section [data_preprocess_param] like that of\n"
                "`ptq config new full_quant`.",
            ),
            _Setting(
                "quant_strategy",
                "MSE",
                "How codes are found, MSE up to 8 bits if this is not set.\n"
                "MSE: the grid with the least squared error; needs no samples.\n"
                "GPTQ: keeps what layers give on samples; the best at 4 bits and fewer, slower.\n"
                "MAX_MIN: from the smallest to the largest weight, as MindSpore Lite does.",
                active=False,
            ),
            _Setting(
                "group_size",
                32,
                "So many weights share a scale; 32 cost a bit for each weight. Not set: 64 for\n"
                "MatMul and Gemm, all of a channel elsewhere. For 4 bits and fewer.",
                active=False,
            ),
            _Setting(
                "dequant_strategy",
                "ON_THE_FLY",
                "Weights stay integers in memory and are dequantized on every run. Not for\n"
                "convolutional networks, which it slows down.",
                active=ascend,
            ),
        ],
    }
    return sections | _ascend_context(target)


def _mixed_bit_weight_quant(target: str) -> _Sections:
    return {
        "common_quant_param": [
            _Setting(
                "quant_type", "WEIGHT_QUANT", "Weights become integers; the model runs in float32."
            ),
            _Setting(
                "bit_num", 0, "0: a step for each weight, and as many bits as its codes carry."
            ),
            _SIZE,
            _Setting("min_quant_weight_channel", 5, _CHANNEL.comment),
            _SKIP,
            _DEBUG,
        ],
        "mixed_bit_weight_quant_param": [
            _Setting(
                "init_scale",
                0.02,
                "The relative error of each weight, between 0 and 1. Larger: a smaller file, less\n"
                "accuracy. 0.02 takes about 6 bits a weight, 0.05 about 4.7.",
            ),
            _Setting(
                "auto_tune",
                True,
                "Search a step for each weight such that the outputs keep a cosine similarity of\n"
                "about 0.995; init_scale above has no effect then. Smaller at equal closeness.\n"
                "Give samples: add a section [data_preprocess_param] like that of\n"
                "`ptq config new full_quant`. --save-scales keeps what was found, for the key\n"
                "scales.",
                active=False,
            ),
        ],
    } | _ascend_context(target)


def _dynamic_quant(target: str) -> _Sections:
    return {
        "common_quant_param": [
            _Setting(
                "quant_type",
                "DYNAMIC_QUANT",
                "Weights now, activations while the model runs. Needs no samples; for text models.",
            ),
            _Setting("bit_num", 8, "Dynamic quantization works with 8 bits."),
            _SKIP,
            _DEBUG,
        ],
        "dynamic_quant_param": [
            _Setting(
                "quant_strategy",
                "ALWC",
                "ALWC: activations one scale per layer, weights one per channel; the fastest.\n"
                "ACWC: activations one scale per token, weights one per channel; the closest.\n"
                "ACWL: activations one scale per token, weights one per layer.",
            ),
            _Setting(
                "smoothing",
                True,
                "Move outliers of activations into the weights where that helps. Needs samples:\n"
                "add a section [data_preprocess_param] like that of `ptq config new full_quant`.",
                active=False,
            ),
            _Setting(
                "attention",
                True,
                "Also products of two activations, in ALWC; they gain little.",
                active=False,
            ),
            _Setting("convolution", True, "Also Conv, which seldom gains.", active=False),
        ],
    } | _ascend_context(target)


def _ascend_context(target: str) -> _Sections:
    if target.casefold() != "ascend":
        return {}
    comment = "This section makes ASCEND the device; ON_THE_FLY needs the line in it."
    return {"ascend_context": [_Setting("provider", "ge", comment)]}


_MAKERS: dict[str, Callable[[str], _Sections]] = {
    "full_quant": _full_quant,
    "fixed_bit_weight_quant": _fixed_bit_weight_quant,
    "mixed_bit_weight_quant": _mixed_bit_weight_quant,
    "dynamic_quant": _dynamic_quant,
}

TEMPLATES: tuple[str, ...] = tuple(_MAKERS)


def template(name: str, syntax: Syntax, target: str | None = None) -> str:
    """A commented config for this job and device.

    Args:
        name: one of ``TEMPLATES``.
        syntax: of the text.
        target: the device, CPU if None.

    Raises:
        InputError: there is no such template.
    """
    if name not in _MAKERS:
        raise InputError(f"no template '{name}'", hint=did_you_mean(name, TEMPLATES))
    device = target or "CPU"
    sections = _MAKERS[name](device)
    lines = list(_head(name, device, sections))
    for section, settings in sections.items():
        lines += ["", f"[{section}]"]
        for setting in settings:
            if setting.comment:
                lines += ["", *(f"# {line}" for line in setting.comment.split("\n"))]
            line = assignment(setting.key, setting.value, syntax)
            lines.append(line if setting.active else f"# {line}")
    return "\n".join(lines) + "\n"


def _head(name: str, target: str, sections: _Sections) -> Iterator[str]:
    yield f"# {name}: ptq quantize MODEL -c THIS_FILE -o OUT"
    placed = "full_quant_param" in sections or "ascend_context" in sections
    if not placed and target.casefold() != "cpu":
        yield f"# The device is chosen on the command line for this job: --target {target}"
