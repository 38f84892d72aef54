from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ptq_core.api import Runner
from ptq_runner_onnxruntime import Options, ptq_runners

(ENTRY,) = ptq_runners()


def model(nodes: list[Any], outputs: dict[str, int], **constants: np.ndarray) -> bytes:
    """A model with one input x [N, 4]; outputs by name with their types."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(made.SerializeToString())


def runner(content: bytes | Path, **options: Any) -> Runner:
    return ENTRY.factory(content, Options(**options))


W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
DENSE = model(
    [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
    {"m": TensorProto.FLOAT, "y": TensorProto.FLOAT},
    w=W,
)
X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def test_the_entry() -> None:
    assert ENTRY.name == "onnxruntime"
    assert ENTRY.options is Options


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_every_output_comes_under_its_name(threads: int) -> None:
    found = runner(DENSE, threads=threads).run({"x": X})
    assert list(found) == ["m", "y"]
    np.testing.assert_allclose(found["m"], X @ W, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["y"], np.maximum(found["m"], 0))


def test_outputs_are_written_into_the_callers_arrays() -> None:
    made = runner(DENSE)
    first = made.run({"x": X})
    second = made.run({"x": X * 2}, first)
    assert all(second[name] is first[name] for name in first)
    np.testing.assert_allclose(second["m"], X @ W * 2, rtol=1e-5, atol=1e-6)


def test_arrays_that_do_not_fit_are_left_alone() -> None:
    made = runner(DENSE)
    small = made.run({"x": X[:2]})
    found = made.run({"x": X}, small)
    assert found["m"].shape == (5, 3)
    np.testing.assert_allclose(found["m"], X @ W, rtol=1e-5, atol=1e-6)


def test_outputs_whose_shape_depends_on_the_data() -> None:
    made = runner(model([helper.make_node("NonZero", ["x"], ["y"])], {"y": TensorProto.INT64}))
    sparse = np.zeros_like(X)
    sparse[0, 1] = 1
    found = made.run({"x": X})
    assert found["y"].shape == (2, 20)
    np.testing.assert_array_equal(made.run({"x": sparse}, found)["y"], [[0], [1]])
    np.testing.assert_array_equal(made.run({"x": X}, found)["y"].shape, (2, 20))


def test_inputs_that_are_read_only_or_not_contiguous() -> None:
    made = runner(DENSE)
    wide = np.repeat(X, 2, axis=1)
    view = wide[:, ::2]
    view.flags.writeable = False
    first = made.run({"x": view})
    second = made.run({"x": view}, {name: np.empty_like(array) for name, array in first.items()})
    for found in (first, second):
        np.testing.assert_allclose(found["m"], X @ W, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.DOUBLE, np.float64),
        (TensorProto.INT8, np.int8),
        (TensorProto.UINT8, np.uint8),
        (TensorProto.INT16, np.int16),
        (TensorProto.UINT16, np.uint16),
        (TensorProto.INT32, np.int32),
        (TensorProto.UINT32, np.uint32),
        (TensorProto.INT64, np.int64),
        (TensorProto.UINT64, np.uint64),
        (TensorProto.BOOL, np.bool_),
    ],
)
def test_outputs_of_every_type(kind: int, dtype: type) -> None:
    made = runner(model([helper.make_node("Cast", ["x"], ["y"], to=kind)], {"y": kind}))
    positive = np.abs(X) * 10
    first = made.run({"x": positive})
    second = made.run({"x": positive}, {"y": np.empty_like(first["y"])})
    for found in (first, second):
        assert found["y"].dtype == dtype
        np.testing.assert_array_equal(found["y"], positive.astype(dtype))


def test_a_model_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(
        onnx.load_from_string(DENSE),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    made = runner(path)
    np.testing.assert_allclose(made.run({"x": X})["m"], X @ W, rtol=1e-5, atol=1e-6)


def test_the_executed_graph_is_the_optimized_one() -> None:
    form = runner(DENSE).executed_model()
    assert form is not None
    assert {node.op_type for node in onnx.load_from_string(form).graph.node} == {"MatMul", "Relu"}
    idle = model(
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("MatMul", ["i", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ],
        {"y": TensorProto.FLOAT},
        w=W,
        b=np.ones(3, np.float32),
    )
    form = runner(idle).executed_model()
    assert form is not None
    assert [node.op_type for node in onnx.load_from_string(form).graph.node] == ["Gemm"]


def test_a_model_that_cannot_be_loaded_is_an_error() -> None:
    broken = model([helper.make_node("NoSuchOperator", ["x"], ["y"])], {"y": TensorProto.FLOAT})
    with pytest.raises(Exception, match="NoSuchOperator"):
        runner(broken)


def test_inputs_of_the_wrong_shape_are_an_error() -> None:
    with pytest.raises(Exception, match="x"):
        runner(DENSE).run({"x": np.zeros((1, 5), np.float32)})
