"""Weight quantization at every width that matters: size, closeness, load, speed, exactness."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.cases import Case
from benchmarks.judge import FLOAT, closeness, latencies, open_model
from benchmarks.measure import LEFT_OUT, Row, ratio
from benchmarks.suite import Options
from benchmarks.tools import Tool, run
from ptq_core import quantize
from ptq_core.errors import PtqError
from ptq_core.plugins import PluginHost, discover

_WIDTHS = (16, 8, 7, 6, 5, 4, 3, 2)
_WITH_DATA = (8, 4, 3)
_LOADS = 5  # sessions of each file
_LATENCY_ROUNDS = 9
_PEER_SETTINGS = ("RTN8", "RTN4", "HQQ4", "GPTQ4")  # for MatMul: of the text models
_OUTPUT = "sentence_embedding"  # of a text model, what counts

Sections = Mapping[str, Mapping[str, Any]]


def weights(case: Case, options: Options) -> list[Row]:
    """Every width without data and with it, mixed bits, and the strategies at few bits.

    ``exact``: whether what onnxruntime makes of every stored weight is equal, bit for bit, to
    ``(code * scale + offset) * input_scale`` in NumPy. ``left``: decoding nodes in its optimized
    graph. ``load``: milliseconds of making a session, the best of five. For text models
    onnxruntime's own quantizer of MatMul weights is beside it.
    """
    host = discover()
    files, facts = {FLOAT: case.model}, dict[str, Row]()
    rows: list[Row] = []
    for name, config, with_data in _settings():
        output = options.work / f"{case.name}.{name.replace(' ', '_')}.onnx"
        given = {**config, "data_preprocess_param": case.data} if with_data else dict(config)
        try:
            start = time.perf_counter()
            report = quantize(case.model, output, config=given, host=host)
        except PtqError as error:
            rows.append({"model": case.name, "tool": name, LEFT_OUT: str(error).split("\n")[0]})
            continue
        files[name] = output
        count = sum(one.size for one in report.weights)
        exact, left = _exact(output, host)
        facts[name] = {
            "s": time.perf_counter() - start,
            "MB": report.bytes_after / 1e6,
            "times smaller": report.bytes_before / report.bytes_after,
            "bits/weight": 8 * sum(one.bytes_after for one in report.weights) / count,
            "entropy": sum(one.entropy * one.size for one in report.weights) / count,
            "exact": exact,
            "left": left,
        }
        for note in report.notes:
            if note.startswith("auto_tune:"):
                print(f"{case.name}: {note}", flush=True)
    for setting in _PEER_SETTINGS if case.text else ():
        tool = Tool(name="onnxruntime-nbits", setting=setting)
        try:
            made = run(tool, case, options.work)
        except RuntimeError as error:
            rows.append({"model": case.name, "tool": str(tool), LEFT_OUT: str(error)})
            continue
        files[str(tool)] = made.file
        facts[str(tool)] = {
            "s": made.process.seconds,
            "MB": made.megabytes,
            "times smaller": case.model.stat().st_size / 1e6 / made.megabytes,
        }
    loads = {name: _load(path) for name, path in files.items()}
    speeds = latencies(case, files, _LATENCY_ROUNDS)
    closest = closeness(case, files, _OUTPUT if case.text else None)
    figures = next(iter(closest.values()))
    rows += [
        {
            "model": case.name,
            "weights": name,
            **facts.get(name, {"MB": case.model.stat().st_size / 1e6}),
            **figures[name],
            "load ms": loads[name],
            "float / file": ratio(speeds[FLOAT], speeds[name]),
        }
        for name in files
    ]
    return rows


def _settings() -> Iterator[tuple[str, Sections, bool]]:
    def fixed(bits: int, **weight: Any) -> Sections:
        common = {"quant_type": "WEIGHT_QUANT", "bit_num": bits}
        return {"common_quant_param": common, "weight_quant_param": weight}

    def mixed(**given: Any) -> Sections:
        common = {"quant_type": "WEIGHT_QUANT", "bit_num": 0}
        return {"common_quant_param": common, "mixed_bit_weight_quant_param": given}

    for bits in _WIDTHS:
        yield f"{bits} bits", fixed(bits), False
        if bits in _WITH_DATA:
            yield f"{bits} bits data", fixed(bits), True
    plain = {"quant_strategy": "MAX_MIN", "group_size": 0, "bias_correction": False}
    yield "4 bits plain rounding", fixed(4, **plain), False
    yield "4 bits GPTQ", fixed(4, quant_strategy="GPTQ"), True
    yield "4 bits GPTQ groups of 32", fixed(4, quant_strategy="GPTQ", group_size=32), True
    yield "3 bits GPTQ", fixed(3, quant_strategy="GPTQ"), True
    yield "mixed 0.02", mixed(init_scale=0.02), False
    yield "mixed 0.02 data", mixed(init_scale=0.02), True
    yield "mixed auto_tune", mixed(auto_tune=True), True
    yield "8 bits on the fly", fixed(8, dequant_strategy="ON_THE_FLY"), False
    yield "4 bits on the fly", fixed(4, dequant_strategy="ON_THE_FLY"), False


def _load(path: Path) -> float:
    def once() -> float:
        start = time.perf_counter()
        open_model(path, 1)
        return 1e3 * (time.perf_counter() - start)

    return min(once() for _ in range(_LOADS))


def _exact(path: Path, host: PluginHost) -> tuple[str, int]:
    """Whether all weights are as the arithmetic says, and what onnxruntime did not fold."""
    model = onnx.load(path)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    wanted: dict[str, NDArray[np.float32]] = {}
    for name in constants:
        if not name.endswith((".codes", ".data", ".high", ".classes", ".value")):
            continue
        tensor = name.rpartition(".")[0]
        if tensor in made and tensor not in wanted and made[tensor].op_type != "Gather":
            found = _computed(tensor, made, constants, host)
            if found is not None:
                wanted[tensor] = found
    del model.graph.input[:], model.graph.output[:]
    keep = _needed(model, set(wanted))
    nodes = [node for index, node in enumerate(model.graph.node) if index in keep]
    del model.graph.node[:]
    # a graph of constants only is refused
    model.graph.node.extend([*nodes, onnx.helper.make_node("Identity", ["x"], ["y"])])
    kind = onnx.TensorProto.FLOAT
    model.graph.input.append(onnx.helper.make_tensor_value_info("x", kind, [1]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", kind, [1]))
    for tensor in wanted:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    decoded = session.run(list(wanted), {"x": np.zeros(1, np.float32)})
    equal = sum(map(np.array_equal, decoded, wanted.values()))
    return f"{equal} of {len(wanted)}", _unfolded(path)


def _computed(
    tensor: str,
    made: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    host: PluginHost,
) -> NDArray[Any] | None:
    """A decoded weight, computed in NumPy."""
    if tensor in constants:
        return constants[tensor]
    node = made.get(tensor)
    if node is None:
        return None
    if node.domain.startswith("ptq."):
        encoding = host.encoding(node.domain.removeprefix("ptq."))
        codec = encoding.entry.factory(encoding.entry.options())
        suffixes = {name: constants[name] for name in node.input[:-1]}
        arrays = {name.rpartition(".")[2]: array for name, array in suffixes.items()}
        bits = next(one.i for one in node.attribute if one.name == "bits")
        codes = codec.decode(arrays, bits, tuple(constants[node.input[-1]].tolist()))
        return np.asarray(codes, np.float32)
    inputs = [_computed(name, made, constants, host) for name in node.input]
    if any(one is None for one in inputs):
        return None
    match node.op_type:
        case "Cast":
            return np.asarray(inputs[0], np.float32)
        case "Mul":
            return np.multiply(*inputs)
        case "Add":
            return np.add(*inputs)
        case "Reshape":
            return inputs[0].reshape(inputs[1])
    return None


def _needed(model: onnx.ModelProto, names: set[str]) -> set[int]:
    """The nodes that these tensors come from."""
    keep: set[int] = set()
    for index in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[index]
        if names & set(node.output):
            keep.add(index)
            names |= set(node.input)
    return keep


def _unfolded(path: Path) -> int:
    """Nodes that decode weights in the graph that onnxruntime runs."""
    optimized = path.with_suffix(".optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = onnx.load(optimized)
    optimized.unlink()
    decoders = {"BitShift", "CumSum", "DequantizeLinear", "MatMulInteger", "MatMulNBits"}
    return sum(node.op_type in decoders for node in model.graph.node)
