"""onnxruntime.quantization, with its best documented options for CPUs.

Static: QDQ, u8 asymmetric activations, s8 symmetric per-channel weights, after its own
pre-processing where there is something to fold. Dynamic: s8 per-channel weights.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from samples import Samples, arguments

_PER_CHANNEL_OPSET = 13
_IR_VERSION = 7  # of that time; 3 does not know constants that are no inputs


class Reader(CalibrationDataReader):
    """Feeds the samples one by one."""

    def __init__(self, samples: Samples) -> None:
        self._each = map(samples.read, samples.names)

    def get_next(self):
        return next(self._each, None)


def main() -> None:
    methods = [method.name for method in CalibrationMethod]
    model, samples, output, setting = arguments([*methods, "dynamic"])
    logging.disable(logging.WARNING)  # advice to pre-process models that have nothing to fold
    if setting == "dynamic":
        quantize_dynamic(model, output, per_channel=True, weight_type=QuantType.QInt8)
        return
    with tempfile.TemporaryDirectory() as folder:
        quantize_static(
            prepared(model, Path(folder)),
            output,
            Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[setting],
            extra_options={"ActivationSymmetric": False},
        )


def prepared(model: Path, folder: Path) -> Path:
    """A copy of the model that the quantizer can make the best of."""
    proto, path = onnx.load(model), folder / "prepared.onnx"
    constants = {one.name for one in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in constants]
    del proto.graph.input[:]  # constants that are inputs too would not be folded
    proto.graph.input.extend(inputs)
    if proto.opset_import[0].version < _PER_CHANNEL_OPSET:
        proto.ir_version = max(proto.ir_version, _IR_VERSION)
        proto = onnx.version_converter.convert_version(proto, _PER_CHANNEL_OPSET)
    onnx.save(proto, path)
    if any(node.op_type == "BatchNormalization" for node in proto.graph.node):
        quant_pre_process(path, folder / "folded.onnx")
        return folder / "folded.onnx"
    return path


if __name__ == "__main__":
    main()
