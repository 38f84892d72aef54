"""Every INI block of the guide, completed with what is mandatory, means what the guide says."""

# ruff: noqa: E501 - the guide's lines are as long as they are

from __future__ import annotations

import pytest

from ptq_core.config import parse_config

COMMON = """\
[common_quant_param]

# Supports WEIGHT_QUANT or FULL_QUANT
quant_type=WEIGHT_QUANT

# Weight quantization support the number of bits [0,16], Set to 0 is mixed bit quantization, otherwise it is fixed bit quantization

# Full quantization support 8bit
bit_num=8

# Layers with size of weights exceeds threshold `min_quant_weight_size` will be quantized.
min_quant_weight_size=0

# Layers with channel size of weights exceeds threshold `min_quant_weight_channel` will be quantized.
min_quant_weight_channel=16

# Set the name of the operator that skips the quantization, and use `,` to split between multiple operators.
skip_quant_node=node_name1,node_name2,node_name3

# Set the folder path where the quantization debug information file is saved.
debug_info_save_path=/home/workspace/mindspore/debug_info_save_path

# Enable tensor compression for weight quantization. If parameter bit_num not equal to 8 or 16, it can not be set to false.
enable_encode = true
"""

WEIGHT = """\
[weight_quant_param]
dequant_strategy=ON_THE_FLY

# If set to true, it will enable PerChannel quantization, or set to false to enable PerLayer quantization.
per_channel=True

# Whether to correct the quantization error. Recommended to set to true.
bias_correction=False
"""

MIXED = """\
[mixed_bit_weight_quant_param]
init_scale=0.02
auto_tune=false
"""

DATA = """\
[data_preprocess_param]

# Calibration dataset path, the format is input_name_1:input_1_dir,input_name_2:input_2_dir

# Full quantification must provide correction dataset
calibrate_path=input_name_1:/mnt/image/input_1_dir,input_name_2:input_2_dir

# Calibration data size
calibrate_size=100

# Input type supports IMAGE or BIN

# When set to IMAGE, the image data will be read

# When set to BIN, the `.bin` binary file will be read
input_type=IMAGE

# The output format of the preprocessed image

# Supports RGB or GRAY or BGR
image_to_format=RGB

# Image normalization

# dst = (src - mean) / std
normalize_mean=[127.5, 127.5, 127.5]
normalize_std=[127.5, 127.5, 127.5]

# Image resize
resize_width=224
resize_height=224

# Resize method supports LINEAR or NEAREST or CUBIC
resize_method=LINEAR

# Image center crop
center_crop_width=224
center_crop_height=224
"""

DYNAMIC = """\
[dynamic_quant_param]

# If set to ALWC, it will enable activation perlayer and weight perchannel quantization. If set to ACWL, it will enable activation perchannel and weight perlayer quantization. Default value is ALWC.
quant_strategy=ACWL
"""

MIXED_PROFILE = """\
[common_quant_param]
quant_type=WEIGHT_QUANT

# Weight quantization support the number of bits [0,16], Set to 0 is mixed bit quantization, otherwise it is fixed bit quantization
bit_num=0

# Layers with size of weights exceeds threshold `min_quant_weight_size` will be quantized.
min_quant_weight_size=5000

# Layers with channel size of weights exceeds threshold `min_quant_weight_channel` will be quantized.
min_quant_weight_channel=5

[mixed_bit_weight_quant_param]

# Initialization scale in (0,1).

# A larger value can get a larger compression ratio, but it may also cause a larger error.
init_scale=0.02
"""

FIXED_PROFILE = """\
[common_quant_param]
quant_type=WEIGHT_QUANT

# Weight quantization support the number of bits [0,16], Set to 0 is mixed bit quantization, otherwise it is fixed bit quantization
bit_num=8

# Layers with size of weights exceeds threshold `min_quant_weight_size` will be quantized.
min_quant_weight_size=0

# Layers with channel size of weights exceeds threshold `min_quant_weight_channel` will be quantized.
min_quant_weight_channel=16
"""

ON_THE_FLY_PROFILE = """\
[common_quant_param]
quant_type=WEIGHT_QUANT

# Weight quantization support the number of bits (0,16]
bit_num=8

# Layers with size of weights exceeds threshold `min_quant_weight_size` will be quantized.
min_quant_weight_size=5000

# Layers with channel size of weights exceeds threshold `min_quant_weight_channel` will be quantized.
min_quant_weight_channel=5
[weight_quant_param]
dequant_strategy=ON_THE_FLY

# If set to true, it will enable PerChannel quantization, or set to false to enable PerLayer quantization.
per_channel=True

# Whether to correct the quantization error. Recommended to set to true.
bias_correction=False

[ascend_context]

# The converted model is suitable for Ascend GE processes
provider=ge
"""

CPU_PER_CHANNEL = """\
[full_quant_param]

# Activation quantized method supports MAX_MIN or KL or REMOVAL_OUTLIER
activation_quant_method=MAX_MIN

# Whether to correct the quantization error. Recommended to set to true.
bias_correction=true

# If set to true, it will enable PerChannel quantization, or set to false to enable PerLayer quantization.
per_channel=true
"""

CPU_PER_LAYER = CPU_PER_CHANNEL.replace("per_channel=true", "per_channel=false")

FULL_COMMON = """\
[common_quant_param]
quant_type=FULL_QUANT

# Full quantization support 8bit
bit_num=8

"""

FULL_PROFILE = (
    FULL_COMMON
    + DATA
    + """
[full_quant_param]

# Activation quantized method supports MAX_MIN or KL or REMOVAL_OUTLIER
activation_quant_method=MAX_MIN

# Whether to correct the quantization error. Recommended to set to true.
bias_correction=true
"""
)

NVGPU = """\
[full_quant_param]

# Activation quantized method supports MAX_MIN or KL or REMOVAL_OUTLIER
activation_quant_method=MAX_MIN

# Whether to correct the quantization error. Recommended to set to true.
bias_correction=true

# Whether to support PerChannel quantization strategy. Recommended to set to true.
per_channel=true

# Supports specific hardware backends
target_device=NVGPU
"""

DSP = """\
[full_quant_param]

# Activation quantized method supports MAX_MIN or KL or REMOVAL_OUTLIER
activation_quant_method=MAX_MIN

# Whether to correct the quantization error.
bias_correction=false

# Supports specific hardware backends
target_device=DSP
"""

ASCEND_STATIC = """\
[full_quant_param]

# Activation quantized method supports MAX_MIN or KL or REMOVAL_OUTLIER
activation_quant_method=MAX_MIN

# Whether to correct the quantization error.
bias_correction=true

# Supports specific hardware backends
target_device=ASCEND
"""

ASCEND_DYNAMIC = (
    ASCEND_STATIC
    + """\
[ascend_context]
input_shape=input_1:[-1,32,32,4]
dynamic_dims=[1~4],[8],[16]

# "-1" in input_shape indicates that the batch size is dynamic.
"""
)

DYNAMIC_PROFILE = (
    """\
[common_quant_param]
quant_type=DYNAMIC_QUANT
bit_num=8

"""
    + DYNAMIC
)

DEBUG = """\
[common_quant_param]
debug_info_save_path=/home/workspace/mindspore/debug_info_save_path
"""

SKIP = """\
[common_quant_param]

# Supports WEIGHT_QUANT or FULL_QUANT
quant_type=FULL_QUANT

# Weight quantization support the number of bits [0,16], Set to 0 is mixed bit quantization, otherwise it is fixed bit quantization

# Full quantization support 8bit
bit_num=8

# Set the name of the operator that skips the quantization, and use `,` to split between multiple operators.
skip_quant_node=conv2d_1,add_8,concat_1
"""

FIXED = "[common_quant_param]\nquant_type=WEIGHT_QUANT\n"
FULL_DATA = FULL_COMMON + DATA  # what a block of [full_quant_param] lacks

WHOLE = {
    "common": COMMON,
    "weight": FIXED + WEIGHT,
    "mixed": FIXED + "bit_num=0\n" + MIXED,
    "data": FULL_COMMON + "[full_quant_param]\n" + DATA,
    "dynamic": "[common_quant_param]\nquant_type=DYNAMIC_QUANT\n" + DYNAMIC,
    "mixed profile": MIXED_PROFILE,
    "fixed profile": FIXED_PROFILE,
    "on the fly profile": ON_THE_FLY_PROFILE,
    "CPU per channel": FULL_DATA + CPU_PER_CHANNEL,
    "CPU per layer": FULL_DATA + CPU_PER_LAYER,
    "full profile": FULL_PROFILE,
    "NVGPU": FULL_DATA + NVGPU,
    "DSP": FULL_DATA + DSP,
    "ASCEND static": FULL_DATA + ASCEND_STATIC,
    "ASCEND dynamic": FULL_DATA + ASCEND_DYNAMIC,
    "dynamic profile": DYNAMIC_PROFILE,
    "debug": DEBUG + "quant_type=WEIGHT_QUANT\n",
    "skip": SKIP + "[full_quant_param]\n" + DATA,
}


def guide(name: str):
    return parse_config(WHOLE[name], file="guide.cfg", syntax="ini")


@pytest.mark.parametrize("name", WHOLE)
def test_every_block_is_accepted_without_complaint(name):
    config = guide(name)
    assert config.warnings == ()
    assert config.notes == ()


def test_common_block():
    common = guide("common").common
    assert common.model_dump() == {
        "quant_type": "WEIGHT_QUANT",
        "bit_num": 8,
        "min_quant_weight_size": 0,
        "min_quant_weight_channel": 16,
        "skip_quant_node": ("node_name1", "node_name2", "node_name3"),
        "debug_info_save_path": "/home/workspace/mindspore/debug_info_save_path",
        "enable_encode": True,
    }


def test_weight_block():
    weight = guide("weight").weight
    assert (weight.dequant_strategy, weight.per_channel, weight.bias_correction) == (
        "ON_THE_FLY",
        True,
        False,
    )


def test_mixed_block():
    config = guide("mixed")
    assert (config.mixed.init_scale, config.mixed.auto_tune) == (0.02, False)


@pytest.mark.parametrize("name", ["data", "full profile", "skip"])
def test_data_block(name):
    data = guide(name).data
    assert data is not None
    assert data.model_dump() == {
        "calibrate_path": {"input_name_1": "/mnt/image/input_1_dir", "input_name_2": "input_2_dir"},
        "calibrate_size": 100,
        "input_type": "IMAGE",
        "image_to_format": "RGB",
        "normalize_mean": (127.5, 127.5, 127.5),
        "normalize_std": (127.5, 127.5, 127.5),
        "resize_width": 224,
        "resize_height": 224,
        "resize_method": "LINEAR",
        "center_crop_width": 224,
        "center_crop_height": 224,
        "input_data_format": None,
    }


@pytest.mark.parametrize("name", ["dynamic", "dynamic profile"])
def test_dynamic_blocks(name):
    config = guide(name)
    assert (config.common.quant_type, config.dynamic.quant_strategy) == ("DYNAMIC_QUANT", "ACWL")
    assert config.full is None
    assert config.data is None
    assert config.ascend is None


def test_mixed_profile():
    config = guide("mixed profile")
    assert config.common.bit_num == 0
    assert config.common.min_quant_weight_size == 5000
    assert config.common.min_quant_weight_channel == 5
    assert config.mixed.init_scale == 0.02


def test_fixed_profile():
    config = guide("fixed profile")
    assert (config.common.bit_num, config.target) == (8, "CPU")


def test_on_the_fly_profile():
    config = guide("on the fly profile")
    assert config.target == "ASCEND"
    assert config.weight.dequant_strategy == "ON_THE_FLY"
    assert config.ascend is not None
    assert config.ascend.provider == "ge"


@pytest.mark.parametrize(
    ("name", "target", "per_channel", "bias_correction"),
    [
        ("CPU per channel", "CPU", True, True),
        ("CPU per layer", "CPU", False, True),
        ("full profile", "CPU", True, True),
        ("NVGPU", "NVGPU", True, True),
        ("DSP", "DSP", True, False),
        ("ASCEND static", "ASCEND", True, True),
        ("ASCEND dynamic", "ASCEND", True, True),
    ],
)
def test_full_blocks(name, target, per_channel, bias_correction):
    config = guide(name)
    assert config.target == target
    assert config.full is not None
    assert config.full.activation_quant_method == "MAX_MIN"
    assert config.full.per_channel is per_channel
    assert config.full.bias_correction is bias_correction


def test_ascend_dynamic_block():
    ascend = guide("ASCEND dynamic").ascend
    assert ascend is not None
    assert ascend.input_shape == {"input_1": (-1, 32, 32, 4)}
    assert ascend.dynamic_dims == ((((1, 4),), ((8, 8),), ((16, 16),)),)


def test_debug_block():
    path = guide("debug").common.debug_info_save_path
    assert path == "/home/workspace/mindspore/debug_info_save_path"


def test_skip_block():
    assert guide("skip").common.skip_quant_node == ("conv2d_1", "add_8", "concat_1")
