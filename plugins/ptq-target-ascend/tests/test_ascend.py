"""The target is what the file says, and the form that it asks for computes what it should."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

import ptq_core
from ptq_core.errors import InputError
from ptq_core.plugins import discover
from tests import tiny_models as tiny

ON_THE_FLY = {
    "common_quant_param": {"quant_type": "WEIGHT_QUANT", "bit_num": 8},
    "weight_quant_param": {"dequant_strategy": "ON_THE_FLY"},
    "ascend_context": {"provider": "ge"},
}


def network(path):
    nodes = [
        tiny.node("Gather", "table ids", "rows", "lookup"),
        tiny.node("MatMul", "rows w", "y", "multiply"),
    ]
    constants = {"table": tiny.normal(50, 64), "w": tiny.normal(64, 32, seed=1)}
    ids = tiny.info("ids", ["n"], onnx.TensorProto.INT64)
    onnx.save(tiny.model(nodes, [ids], {"y": ["n", 32]}, constants), path)
    return path


def test_it_is_found_by_name():
    assert discover().target("ascend").entry.spec.on_the_fly == "cast_add_mul"


@pytest.mark.parametrize("bits", [3, 8, 12])
def test_weights_are_cast_shifted_and_scaled_on_the_fly(tmp_path, bits):
    model = network(tmp_path / "m.onnx")
    config = {**ON_THE_FLY, "common_quant_param": {"quant_type": "WEIGHT_QUANT", "bit_num": bits}}
    report = ptq_core.quantize(model, tmp_path / "q.onnx", config=config)
    made = onnx.load(tmp_path / "q.onnx")
    assert not made.functions
    kinds = {one.name: one.data_type for one in made.graph.initializer}
    stored = onnx.TensorProto.INT8 if bits <= 8 else onnx.TensorProto.INT16
    assert kinds["table.codes"] == kinds["w.codes"] == stored
    assert {node.op_type for node in made.graph.node} <= {"Gather", "MatMul", "Cast", "Add", "Mul"}
    ids = {"ids": np.array([3, 49, 3, 0])}
    before, after = (
        onnxruntime.InferenceSession(str(path)).run(None, ids)[0]
        for path in (model, tmp_path / "q.onnx")
    )
    noise = min(one.sqnr for one in report.weights) - 6.0
    assert 10 * np.log10((before**2).sum() / ((before - after) ** 2).sum()) > noise


def test_its_command_is_beside_a_model_with_smaller_weights(tmp_path):
    report = ptq_core.quantize(network(tmp_path / "m.onnx"), tmp_path / "q.onnx", config=ON_THE_FLY)
    assert [path.name for path in report.extras] == ["q_atc.sh"]
    assert '--model="q.onnx"' in (tmp_path / "q_atc.sh").read_text()


def test_the_provider_is_demanded(tmp_path):
    config = {key: value for key, value in ON_THE_FLY.items() if key != "ascend_context"}
    with pytest.raises(InputError, match="provider"):
        ptq_core.quantize(
            network(tmp_path / "m.onnx"), tmp_path / "q.onnx", config=config, target="ASCEND"
        )


def test_it_is_found_in_milliseconds():
    """The rules are read while ptq starts: nothing heavy comes with them."""
    code = (
        "import sys, ptq_target_ascend as target; list(target.ptq_targets()); "
        "heavy = {'numpy', 'onnx', 'numba', 'onnx_ir'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
