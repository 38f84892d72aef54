"""onnx-neural-compressor: QDQ, u8 activations, s8 per-channel weights, as for onnxruntime."""

from __future__ import annotations

from onnx_neural_compressor.data_reader import CalibrationDataReader
from onnx_neural_compressor.quantization import CalibrationMethod, QuantFormat, QuantType, quantize
from onnx_neural_compressor.quantization.config import StaticQuantConfig
from samples import Samples, arguments


class Reader(CalibrationDataReader):
    """Feeds the samples one by one, and again."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.rewind()

    def get_next(self):
        return next(self._each, None)

    def rewind(self) -> None:
        self._each = map(self._samples.read, self._samples.names)


def main() -> None:
    methods = [method.name for method in CalibrationMethod]
    model, samples, output, setting = arguments(methods)
    config = StaticQuantConfig(
        Reader(samples),
        calibrate_method=CalibrationMethod[setting],
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibration_sampling_size=len(samples.names),
        execution_provider="CPUExecutionProvider",
    )
    quantize(str(model), str(output), config)


if __name__ == "__main__":
    main()
