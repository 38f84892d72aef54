"""Try a target out: is its data plausible, and does a small network pass through it?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ptq_core.config import config_from_values
from ptq_core.emulation import CheckedArithmetic
from ptq_core.errors import Problem, did_you_mean
from ptq_core.graph import operators as ops
from ptq_core.graph.merging import MERGED_SINCE
from ptq_core.jobs.full import full_quant
from ptq_core.jobs.report import Report, Settings
from ptq_core.plugins import PluginHost, PluginRecord
from ptq_core.target_types import Arithmetic, OperatorRule, TargetEntry, TargetSpec

_WIDE = 21  # QuantizeLinear of 16 bits
_SAMPLES = 16
_COSINE = 0.98  # of a network this small, with 8 bits and data that suit it

# A layer of each kind, a residual Add, movers, a pool: what most networks are made of.
_NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
trial (
  float[1, 16, 8, 8] x, float[16, 16, 3, 3] w1, float[16] b1, float[16, 16, 3, 3] w2,
  float[16] b2, float[16, 16] w3, float[16] b3, float[16, 16] w4
) => (float[1, 16] y)
{
  c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r1 = Relu (c1)
  c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
  a = Add (c2, r1)
  r2 = Relu (a)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
  g = GlobalAveragePool (p)
  f = Flatten (g)
  d = Gemm <transB = 1> (f, w3, b3)
  r3 = Relu (d)
  y = MatMul (r3, w4)
}
"""


def data_problems(entry: TargetEntry) -> Iterator[Problem]:
    """What of the data can have no effect, or contradicts."""
    spec = entry.spec
    for name, rule in spec.operators.items():
        for message, hint in _rule_problems(name, rule, spec):
            yield Problem(message=f"operators.{name}: {message}", hint=hint)
    if not any(
        name in spec.operators and spec.operators[name].quantize == "always" for name in ops.LINEAR
    ):
        layers = ", ".join(ops.LINEAR)
        yield Problem(
            message=f'no layer with weights ({layers}) has quantize = "always": full '
            "quantization for it finds nothing to do",
        )
    newest = spec.maximum_opset
    if newest is not None and newest < spec.minimum_opset:
        yield Problem(
            message=f"minimum_opset is {spec.minimum_opset}, maximum_opset {newest}: no model fits"
        )
    for merged in spec.merge:
        if newest is not None and newest < MERGED_SINCE[merged]:
            yield Problem(
                message=f"merge: {merged} is an operator of opset {MERGED_SINCE[merged]}, and "
                f"maximum_opset is {newest}",
                hint="leave it out of merge",
            )
    if spec.activation.bits > 8 and spec.minimum_opset < _WIDE:
        yield Problem(
            message=f"activation: {spec.activation.dtype} needs opset {_WIDE}, and minimum_opset "
            f"is {spec.minimum_opset}",
            hint=f"minimum_opset = {_WIDE}",
        )


def _rule_problems(name: str, rule: OperatorRule, spec: TargetSpec) -> Iterator[tuple[str, str]]:
    known = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
    if name not in known:
        yield "is no operator of ONNX", did_you_mean(name, known)
        return
    attributes = {
        key
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.name == name and not schema.domain
        for key in schema.attributes
    }
    for key in rule.attributes:
        if key not in attributes:
            yield f"attributes: it has no '{key}'", did_you_mean(key, attributes)
    for key in rule.fuse:
        if key not in ops.BOUNDED:
            yield f"fuse: '{key}' is not merged", f"there are: {', '.join(sorted(ops.BOUNDED))}"
    if rule.two_activations and name != "MatMul":
        yield "two_activations has no effect: it is for MatMul", ""
    if rule.quantize == "residual" and name != "Add":
        yield 'quantize = "residual" has no effect: it is for Add', ""
    if rule.per_channel and name not in ops.LINEAR:
        yield "per_channel has no effect: it has no weights", ""
    if rule.same_parameters and rule.fixed_output is not None:
        yield "same_parameters and fixed_output contradict each other", "keep one"
    if rule.fixed_output is not None:
        scheme, fixed = spec.activation, rule.fixed_output
        if fixed.scale <= 0 or not scheme.qmin <= fixed.zero_point <= scheme.qmax:
            yield (
                f"fixed_output: scale {fixed.scale:g}, zero point {fixed.zero_point}; expected a "
                f"positive scale and {scheme.qmin} to {scheme.qmax}, which {scheme.dtype} has",
                "",
            )


def trial(entry: TargetEntry, host: PluginHost, config_name: str) -> Report:
    """Quantize a small network of random numbers for the target.

    Args:
        entry: of the target.
        host: the plugins.
        config_name: by which a config finds the target: a name, or a TOML file.

    Raises:
        PtqError: it does not pass through.
    """
    model = onnx.parser.parse_model(_NETWORK)
    rng = np.random.default_rng(0)
    source, *weights = model.graph.input
    for value in weights:
        shape = _dims(value)
        array = rng.normal(0.0, 1.0 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    data = [rng.normal(size=_dims(source)).astype(np.float32) for _ in range(_SAMPLES)]
    values = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"target_device": config_name},
    }
    with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
        path = Path(folder) / "trial.onnx"
        onnx.save(model, path)
        config = config_from_values(values, has_data=True)
        settings = Settings(min_cosine=_COSINE)
        return full_quant(path, Path(folder) / "out.onnx", config, host, data, settings, None)


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def arithmetic_problems(arithmetic: Arithmetic, record: PluginRecord) -> Iterator[Problem]:
    """Where a device's arithmetic is further from the definition than rounding explains.

    Raises:
        PluginError: it fails, or gives something else than such arrays.
    """
    arithmetic = CheckedArithmetic(arithmetic, record)
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2, 4096).astype(np.float32)
    found = arithmetic.quantize(values, 0.05, 3, -128, 127)
    wanted = np.clip(np.rint(values / 0.05) + 3, -128, 127)
    yield from _compared("quantize", found, wanted, 1.0)
    sums = rng.integers(-60_000, 60_000, (512, 8))
    scale = rng.uniform(0.001, 0.02, 8).astype(np.float32)
    real = sums * 0.02 * scale.astype(np.float64)
    found = arithmetic.requantize(sums, 0.02, scale, 0.05, -5, -128, 127)
    yield from _compared("requantize", found, np.clip(np.rint(real / 0.05) - 5, -128, 127), 1.0)
    found = arithmetic.dequantize(sums, 0.02, scale)
    yield from _compared("dequantize", found, real, float(np.abs(real).max()) * 1e-3)


def _compared(
    name: str, found: NDArray[Any], wanted: NDArray[Any], allowed: float
) -> Iterator[Problem]:
    worst = float(np.abs(np.asarray(found, np.float64) - wanted).max())
    if not worst <= allowed:
        yield Problem(
            message=f"arithmetic.{name}: differs from its definition by {worst:g}, expected at "
            f"most {allowed:g}"
        )
