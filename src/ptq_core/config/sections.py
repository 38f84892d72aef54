"""The sections of a config: their keys, defaults and ranges.

Names, defaults and ranges are those of the guide of MindSpore Lite's post-training quantization,
release 2.2; what is ours says so. How keys go together is checked in ``checks``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ptq_core.config import ascend, values

QuantType = Literal["WEIGHT_QUANT", "FULL_QUANT", "DYNAMIC_QUANT"]
DequantStrategy = Literal["ON_THE_FLY"]
ImageFormat = Literal["RGB", "GRAY", "BGR"]
ResizeMethod = Literal["LINEAR", "NEAREST", "CUBIC"]
DataFormat = Literal["NCHW", "NHWC"]
DynamicStrategy = Literal["ALWC", "ACWL", "ACWC"]
WeightStrategy = Literal["MAX_MIN", "MSE", "GPTQ"]

_LARGEST = 65535


def _one_of(literal: Any, **spellings: str) -> BeforeValidator:
    return BeforeValidator(values.choice(get_args(literal), **spellings))


_Boolean: TypeAlias = Annotated[bool, BeforeValidator(values.boolean)]
_Text: TypeAlias = Annotated[str, BeforeValidator(values.text)]
_Threshold: TypeAlias = Annotated[int, BeforeValidator(values.whole(0, _LARGEST))]
_Size: TypeAlias = Annotated[int, BeforeValidator(values.whole(1, _LARGEST))]
_Vector: TypeAlias = Annotated[tuple[float, ...], BeforeValidator(values.vector)]
_OptionalText: TypeAlias = Annotated[str | None, BeforeValidator(values.text)]


class SectionModel(BaseModel):
    """A section. ``model_fields_set`` tells which keys were written."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CommonQuantParam(SectionModel):
    """``[common_quant_param]``: which job, and what concerns all of them."""

    quant_type: Annotated[QuantType, _one_of(QuantType)]
    bit_num: Annotated[int, BeforeValidator(values.whole(0, 16))] = 8
    min_quant_weight_size: _Threshold = 0
    min_quant_weight_channel: _Threshold = 16
    skip_quant_node: Annotated[tuple[str, ...], BeforeValidator(values.names)] = ()
    debug_info_save_path: _OptionalText = None
    enable_encode: _Boolean = True


class WeightQuantParam(SectionModel):
    """``[weight_quant_param]``; the last three keys are ours.

    ``encoding`` is the name of an encoding plugin, ``quant_strategy`` how codes are found (None:
    MSE up to 8 bits, MAX_MIN above), ``group_size`` how many weights share a scale (0: a channel;
    None: 64 for MatMul and Gemm).
    """

    dequant_strategy: Annotated[DequantStrategy | None, _one_of(DequantStrategy)] = None
    per_channel: _Boolean = True
    bias_correction: _Boolean = True
    encoding: _OptionalText = None
    quant_strategy: Annotated[WeightStrategy | None, _one_of(WeightStrategy)] = None
    group_size: Annotated[int | None, BeforeValidator(values.whole(0, _LARGEST))] = None


class MixedBitWeightQuantParam(SectionModel):
    """``[mixed_bit_weight_quant_param]``, in effect with ``bit_num = 0``.

    ``scales``, a file with the scales that an earlier run has found, and ``target_cosine``, what
    auto_tune aims at, are ours.
    """

    init_scale: Annotated[float, BeforeValidator(values.open_interval(0, 1))] = 0.02
    auto_tune: _Boolean = False
    scales: _OptionalText = None
    target_cosine: Annotated[float, BeforeValidator(values.open_interval(0, 1))] = 0.995


class FullQuantParam(SectionModel):
    """``[full_quant_param]``; method and device are names of plugins, looked up later.

    ``smoothing`` is ours.
    """

    activation_quant_method: _Text = "MAX_MIN"
    bias_correction: _Boolean = True
    per_channel: _Boolean = True
    target_device: _OptionalText = None
    smoothing: _Boolean = True


class DataPreprocessParam(SectionModel):
    """``[data_preprocess_param]``; ``input_data_format``, the layout of 4-D buffers, is ours.

    ``calibrate_path``, ``calibrate_size`` and ``input_type`` are empty, 0 and None only where the
    caller has samples of its own or the job does not read any.
    """

    calibrate_path: Annotated[dict[str, str], BeforeValidator(values.folders)] = {}
    calibrate_size: _Size = 0
    input_type: _OptionalText = None
    image_to_format: Annotated[ImageFormat | None, _one_of(ImageFormat)] = None
    normalize_mean: _Vector = ()
    normalize_std: _Vector = ()
    resize_width: Annotated[int | None, BeforeValidator(values.whole(1, _LARGEST))] = None
    resize_height: Annotated[int | None, BeforeValidator(values.whole(1, _LARGEST))] = None
    # the guide spells it NEARST in one place
    resize_method: Annotated[ResizeMethod | None, _one_of(ResizeMethod, NEARST="NEAREST")] = None
    center_crop_width: Annotated[int | None, BeforeValidator(values.whole(1, _LARGEST))] = None
    center_crop_height: Annotated[int | None, BeforeValidator(values.whole(1, _LARGEST))] = None
    input_data_format: Annotated[DataFormat | None, _one_of(DataFormat)] = None


class DynamicQuantParam(SectionModel):
    """``[dynamic_quant_param]``; the strategy ACWC and the other keys are ours.

    The first two letters are the activations, the last two the weights: ``L`` one scale for all,
    ``C`` a scale for each token and for each output channel. ``attention``: also products of two
    activations. ``convolution``: also Conv. ``smoothing`` needs samples.
    """

    quant_strategy: Annotated[DynamicStrategy, _one_of(DynamicStrategy)] = "ALWC"
    attention: _Boolean = False
    convolution: _Boolean = False
    smoothing: _Boolean = True


class AscendContext(SectionModel):
    """``[ascend_context]``: the device is ASCEND; what varies in its input shapes."""

    provider: _OptionalText = None
    input_shape: Annotated[dict[str, ascend.Shape], BeforeValidator(ascend.input_shapes)] = {}
    dynamic_dims: Annotated[
        tuple[tuple[ascend.Profile, ...], ...], BeforeValidator(ascend.dynamic_profiles)
    ] = ()


SECTIONS: dict[str, type[SectionModel]] = {
    "common_quant_param": CommonQuantParam,
    "weight_quant_param": WeightQuantParam,
    "mixed_bit_weight_quant_param": MixedBitWeightQuantParam,
    "full_quant_param": FullQuantParam,
    "data_preprocess_param": DataPreprocessParam,
    "dynamic_quant_param": DynamicQuantParam,
    "ascend_context": AscendContext,
}

RUNNER = "runner"  # ours: [runner] name = NAME
RUNNER_KEYS = ("name",)

# What the original tool reads and ptq has no use for. Such a key is accepted, and said.
NO_EFFECT_KEYS: dict[str, tuple[str, ...]] = {
    "weight_quant_param": ("update_mindir", "max_segments"),
    "mixed_bit_weight_quant_param": ("use_cv_data", "max_iterations"),
    "full_quant_param": ("smooth_alpha", "enable_smooth_shift"),
}
NOTED_KEYS: dict[str, tuple[tuple[str, ...], str]] = {
    "common_quant_param": (("workspace",), "ptq needs no temporary folder; the key is not used"),
    "ascend_context": (
        (
            "input_format", "precision_mode", "op_select_impl_mode",
            "fusion_switch_config_file_path", "buffer_optimize", "insert_op_config_file_path",
            "om_file_path", "aoe_mode", "plugin_custom_ops", "enable_custom_op",
            "custom_fusion_pattern", "op_attrs", "device_id", "output_type", "inputs_to_variable",
            "outputs_to_variable",
        ),
        "it is for Ascend's own compiler; ptq does not use it",
    ),
}  # fmt: skip
NO_EFFECT_SECTIONS: dict[str, str] = {
    "transform_quant_param": "it concerns input models that are quantized already",
    "registry": "plugins of ptq are installed, not listed in the config",
    "model_param": "ptq takes one model at a time, from its command line",
    "acl_option_cfg_param": "",
    "acl_init_options": "",
    "acl_build_options": "",
    "micro_param": "",
    "cpu_option_cfg_param": "",
    "graph_kernel_param": "",
    "om_converter": "",
}
