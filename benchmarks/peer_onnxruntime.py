"""onnxruntime.quantization on a ptq config: the named peer, with its best documented options.

Static: QDQ, MinMax, u8 asymmetric activations, s8 symmetric per-channel weights, after its own
pre-processing where there is something to fold. Dynamic: s8 per-channel weights.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import tomllib
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

from benchmarks.samples import read

_PER_CHANNEL_OPSET = 13
_IR_VERSION = 7  # of that time; 3 does not know constants that are no inputs


class Reader(CalibrationDataReader):
    """Feeds the samples one by one."""

    def __init__(self, samples):
        self._samples = iter(samples)

    def get_next(self):
        return next(self._samples, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--dynamic", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # advice to pre-process models that have nothing to fold
    if given.dynamic:
        quantize_dynamic(given.model, given.output, per_channel=True, weight_type=QuantType.QInt8)
        return
    data = tomllib.loads(given.config.read_text())["data_preprocess_param"]
    with tempfile.TemporaryDirectory() as folder:
        path = prepared(given.model, Path(folder))
        shapes = {
            one.name: [dim.dim_value or None for dim in one.type.tensor_type.shape.dim]
            for one in onnx.load(path).graph.input
        }
        quantize_static(
            path,
            given.output,
            Reader(read(data, shapes)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
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
