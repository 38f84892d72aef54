"""What the flags of converter_lite mean here: acted on, noted, or refused with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ptq_core.errors import ConfigError, Problem
from ptq_core.types import Layout

if TYPE_CHECKING:
    from ptq_core.config import Config

_EXPORT = {
    "TF": "convert the model with tf2onnx",
    "TFLITE": "convert the model with tf2onnx --tflite",
    "CAFFE": "convert the model to ONNX",
    "PYTORCH": "export the model with torch.onnx.export",
    "MINDIR": "export the model from MindSpore with file_format='ONNX'",
    "MSLITE": "start from the model that the .ms file was made of",
    "OM": "start from the model that the .om file was made of",
}
_DATA_TYPES = ("FLOAT16", "FLOAT", "INT8", "UINT8", "INT32", "INT64", "DEFAULT")
_LAYOUTS: tuple[Layout, ...] = ("NCHW", "NHWC")


@dataclass(kw_only=True)
class Asked:
    """What a command line of converter_lite asks for.

    Attributes:
        model: None where the flag is missing, which is a problem then.
        output: likewise.
        config: likewise.
        target: the device that ``--optimize`` means.
        chip: the one that it names behind the device.
        input_shapes: of ``--inputShape``.
        data_layout: of ``--inputDataFormat``.
        fp16: whether ``--fp16=on``.
        problems: why it cannot be done.
        warnings: what has no effect although one might rely on it.
        notes: what has no effect.
    """

    model: Path | None = None
    output: Path | None = None
    config: Path | None = None
    target: str | None = None
    chip: str | None = None
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    data_layout: Layout | None = None
    fp16: bool = False
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, message: str, hint: str = "") -> None:
        """Add a problem."""
        self.problems.append(Problem(message=message, hint=hint))

    def contradictions(self, config: Config) -> Iterator[Problem]:
        """What the flags ask for and this config does not allow."""
        if self.fp16 and config.common.quant_type == "DYNAMIC_QUANT":
            yield Problem(
                message="--fp16=on: dynamic quantization does not support float16",
                location=config.locate("common_quant_param", "quant_type"),
                hint="leave --fp16 out",
            )
        own = config.data.input_data_format if config.data is not None else None
        if own is not None and self.data_layout not in (None, own):
            yield Problem(
                message=f"--inputDataFormat={self.data_layout}, but the config says {own}",
                location=config.locate("data_preprocess_param", "input_data_format"),
                hint="name one layout",
            )


def interpret(flags: Mapping[str, str]) -> Asked:
    """What the flags ask for, all problems included; by their names, without ``--``."""
    asked = Asked()
    _framework(flags, asked)
    for name in ("modelFile", "outputFile", "configFile"):
        if not flags.get(name):
            what = {
                "modelFile": "the ONNX file",
                "outputFile": "the file to write",
                "configFile": "the config; `ptq config new full_quant` writes one to start from",
            }[name]
            asked.refuse(f"--{name} is missing", f"give --{name}=PATH, {what}")
    asked.model = Path(flags["modelFile"]) if flags.get("modelFile") else None
    asked.config = Path(flags["configFile"]) if flags.get("configFile") else None
    _output(flags.get("outputFile", ""), asked)
    for name, value in flags.items():
        if name in _MEANINGS:
            _MEANINGS[name](value, asked)
    _encryption(flags, asked)
    return asked


# ------------------------------------------------------------------------- those with an effect


def _framework(flags: Mapping[str, str], asked: Asked) -> None:
    given = flags.get("fmk")
    if not given:
        asked.refuse("--fmk is missing", "write --fmk=ONNX")
    elif given.upper() != "ONNX":
        todo = _EXPORT.get(given.upper(), "export the model to ONNX")
        asked.refuse(f"--fmk={given}: ptq takes ONNX models", f"{todo}, then --fmk=ONNX")


def _output(text: str, asked: Asked) -> None:
    if text.endswith(("/", os.sep)):
        asked.refuse(f"--outputFile={text} is a folder", "add the name of the file to write")
    elif text:
        path = Path(text)
        asked.output = path if path.suffix else path.with_name(f"{path.name}.onnx")


def _input_shape(text: str, asked: Asked) -> None:
    from ptq_core.config import parse_input_shape

    try:
        asked.input_shapes = parse_input_shape(text, option="--inputShape")
    except ConfigError as error:
        asked.problems += error.problems


def _input_layout(text: str, asked: Asked) -> None:
    found = next((layout for layout in _LAYOUTS if layout == text.upper()), None)
    if found is None:
        asked.refuse(f"--inputDataFormat={text}: expected NHWC or NCHW")
    asked.data_layout = found


def _optimize(text: str, asked: Asked) -> None:
    kind, _, chip = text.partition(":")
    match kind.casefold():
        case "ascend_oriented":
            asked.target = "ASCEND"
            asked.chip = chip or None
        case "none":
            asked.warnings.append(
                "--optimize=none has no effect: BatchNormalization is folded and operators are "
                "fused as the device needs them"
            )
        case "gpu_oriented":
            asked.notes.append(
                "--optimize=gpu_oriented has no effect; target_device=NVGPU in the config "
                "quantizes for NVIDIA GPUs"
            )
        case "general":
            pass
        case _:
            asked.refuse(
                f"--optimize={text}: expected none, general, gpu_oriented or ascend_oriented[:chip]"
            )


def _fp16(text: str, asked: Asked) -> None:
    if _one_of("fp16", text, ("on", "off"), asked) == "on":
        asked.fp16 = True


# ---------------------------------------------------------------------- those without an effect


def _one_of(name: str, text: str, allowed: tuple[str, ...], asked: Asked) -> str | None:
    found = next((word for word in allowed if word.casefold() == text.casefold()), None)
    if found is None:
        asked.refuse(f"--{name}={text}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")
    return found


def _boolean(name: str, text: str, asked: Asked) -> bool | None:
    found = _one_of(name, text, ("true", "false"), asked)
    return None if found is None else found == "true"


def _weight_file(text: str, asked: Asked) -> None:
    asked.refuse("--weightFile is for CAFFE models", "leave it out; ptq takes ONNX models")


def _output_layout(text: str, asked: Asked) -> None:
    if _one_of("outputDataFormat", text, _LAYOUTS, asked):
        asked.warnings.append(
            f"--outputDataFormat={text} has no effect: outputs keep the model's own layout"
        )


def _data_type(name: str) -> Callable[[str, Asked], None]:
    def meaning(text: str, asked: Asked) -> None:
        if _one_of(name, text, _DATA_TYPES, asked) not in (None, "DEFAULT", "FLOAT"):
            asked.refuse(
                f"--{name}={text}: inputs and outputs keep the types that they have in the model",
                "leave it out",
            )

    return meaning


def _save_type(text: str, asked: Asked) -> None:
    asked.notes.append(f"--saveType={text}: the result is an ONNX file")


def _infer(text: str, asked: Asked) -> None:
    if _boolean("infer", text, asked) is not None:
        asked.notes.append(f"--infer={text}: the result is always run and compared")


def _train(text: str, asked: Asked) -> None:
    if _boolean("trainModel", text, asked):
        asked.refuse(
            "--trainModel=true: models for training cannot be quantized",
            "leave it out, and export the model for inference",
        )


def _decrypt_key(text: str, asked: Asked) -> None:
    asked.refuse(
        "--decryptKey: ptq reads plain ONNX files", "decrypt the model first and leave it out"
    )


def _decrypt_mode(text: str, asked: Asked) -> None:
    asked.notes.append("--decryptMode has no effect: ptq reads plain ONNX files")


def _device(text: str, asked: Asked) -> None:
    asked.notes.append(
        f"--device={text} has no effect; the device is target_device in the config, or "
        "--optimize=ascend_oriented"
    )


def _transformer(text: str, asked: Asked) -> None:
    if _boolean("optimizeTransformer", text, asked):
        asked.notes.append("--optimizeTransformer has no effect")


def _encryption(flags: Mapping[str, str], asked: Asked) -> None:
    wanted = _boolean("encryption", flags["encryption"], asked) if "encryption" in flags else None
    if wanted or (wanted is None and "encryptKey" in flags):
        asked.refuse(
            "ptq does not encrypt its result",
            "write --encryption=false without --encryptKey, and encrypt the file afterwards",
        )
    elif wanted is False:
        asked.notes.append("--encryption=false: ptq never encrypts")


_MEANINGS: dict[str, Callable[[str, Asked], None]] = {
    "inputShape": _input_shape,
    "inputDataFormat": _input_layout,
    "optimize": _optimize,
    "fp16": _fp16,
    "weightFile": _weight_file,
    "outputDataFormat": _output_layout,
    "inputDataType": _data_type("inputDataType"),
    "outputDataType": _data_type("outputDataType"),
    "saveType": _save_type,
    "infer": _infer,
    "trainModel": _train,
    "decryptKey": _decrypt_key,
    "decryptMode": _decrypt_mode,
    "device": _device,
    "optimizeTransformer": _transformer,
}
