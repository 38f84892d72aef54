"""onnxruntime's MatMulNBits quantizer: weights of MatMul in blocks of 32, asymmetric.

``RTN4`` and ``RTN8`` round to nearest; ``HQQ4`` searches zero points and needs torch, ``GPTQ4``
needs samples. Both are taken as they come; what they raise is the reason why they are left out.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer
from samples import Samples, arguments

_BLOCK = 32


class Reader(CalibrationDataReader):
    """Feeds the samples one by one."""

    def __init__(self, samples: Samples) -> None:
        self._each = map(samples.read, samples.names)

    def get_next(self):
        return next(self._each, None)


def main() -> None:
    model, samples, output, setting = arguments(["RTN4", "RTN8", "HQQ4", "GPTQ4"])
    logging.disable(logging.WARNING)
    bits = int(setting[-1])
    match setting[:-1]:
        case "HQQ":
            config = matmul_nbits_quantizer.HQQWeightOnlyQuantConfig(block_size=_BLOCK, bits=bits)
        case "GPTQ":
            config = matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(
                calibration_data_reader=Reader(samples), block_size=_BLOCK
            )
        case _:
            config = matmul_nbits_quantizer.DefaultWeightOnlyQuantConfig(
                block_size=_BLOCK, is_symmetric=False, accuracy_level=0, bits=bits
            )
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(onnx.load(model), algo_config=config)
    quantizer.process()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.onnx"
        quantizer.model.save_model_to_file(str(made), False)
        onnx.save(onnx.load(made), output)


if __name__ == "__main__":
    main()
