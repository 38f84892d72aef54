"""Weights and models that are out of the ordinary: the right result, or a clear error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ptq_runner_onnxruntime
import ptq_target_cpu
from ptq_core import quantize
from ptq_core.api import Encoded, EncodingEntry, hookimpl
from ptq_core.errors import ModelError, PluginError
from ptq_core.graph import model as model_module
from ptq_core.plugins import make_host
from tests import tiny_models as tiny
from tests.tiny_models import node, normal
from tests.weight_checks import (
    cosine,
    decoded,
    executed,
    operators,
    reasons,
    run,
    sections,
    shrink,
    weights,
)

ALL_FORMS = [0, 1, 4, 8, 11]


def dense(weight: np.ndarray, **given: Any) -> onnx.ModelProto:
    """One MatMul by a weight, and another layer, so that there is always something to do."""
    rows, columns = weight.shape
    return tiny.model(
        [
            node("MatMul", "x w", "a", "odd"),
            node("Flatten", "a", "f", "flatten"),
            node("MatMul", "x v", "y", "usual"),
        ],
        {"x": [3, rows]},
        {"f": [3, columns], "y": [3, 40]},
        {"w": weight, "v": normal(rows, 40, seed=9)},
        **given,
    )


def same_operators(folder: Path) -> None:
    """Nothing is left of ptq in what onnxruntime executes."""
    graphs = [executed(folder / one, folder).graph for one in ("model.onnx", "out.onnx")]
    float_model, result = ({**operators(graph), "Constant": 0} for graph in graphs)
    assert result == float_model  # but for constants in bodies, which are initializers now


# ------------------------------------------------------------------------------------ odd values


@pytest.mark.parametrize("bits", ALL_FORMS)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.7, 1e-30, 1e30])
def test_constant_weights_are_exact(value: float, bits: int, tmp_path: Path) -> None:
    made = dense(np.full((64, 48), value, np.float32))
    report = shrink(made, tmp_path, bits)
    found = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    np.testing.assert_array_equal(found, np.float32(value))
    one = weights(report)["w"]
    assert one.sqnr == float("inf")
    assert one.entropy == 0.0


@pytest.mark.parametrize("bits", ALL_FORMS)
def test_one_outlier_does_not_spoil_other_channels(bits: int, tmp_path: Path) -> None:
    weight = normal(96, 48)
    weight[5, 7] = 1000.0
    made = dense(weight)
    shrink(made, tmp_path, bits, weight={"group_size": 0} if bits else None)
    found = decoded(tmp_path / "out.onnx", ["w"], tiny.feeds(made))["w"]
    assert np.isfinite(found).all()
    assert found[5, 7] == pytest.approx(1000, rel=0.51 if bits == 1 else 0.2)
    if bits:
        others = np.arange(48) != 7
        least = {1: 0.75, 4: 0.98, 8: 0.9999, 11: 0.99999}[bits]
        assert cosine(found[:, others], weight[:, others]) > least


@pytest.mark.parametrize("bits", [0, 4, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_an_error_that_names_them(
    value: float, bits: int, tmp_path: Path
) -> None:
    weight = normal(64, 48)
    weight[3, 4] = value
    (tmp_path / "out.onnx").write_bytes(b"earlier")
    with pytest.raises(ModelError, match="NaN or infinite") as caught:
        shrink(dense(weight), tmp_path, bits)
    (problem,) = caught.value.problems
    assert problem.location.tensor == "w"
    assert (tmp_path / "out.onnx").read_bytes() == b"earlier"


def test_a_weight_that_is_no_number_can_be_skipped(tmp_path: Path) -> None:
    weight = normal(64, 48)
    weight[3, 4] = np.nan
    report = shrink(dense(weight), tmp_path, 4, common={"skip_quant_node": ["odd"]})
    assert set(weights(report)) == {"v"}


def test_an_empty_weight_stays_as_it_is(tmp_path: Path) -> None:
    made = dense(np.zeros((64, 0), np.float32))
    report = shrink(made, tmp_path, 4)
    assert set(weights(report)) == {"v"}
    assert reasons(report)["odd"] == "its weights are empty"
    assert run(tmp_path / "out.onnx", tiny.feeds(made))[0].shape == (3, 0)


def test_a_double_weight_stays_as_it_is(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Cast", "x", "wide", "cast", to=TensorProto.DOUBLE),
            node("MatMul", "wide w", "y", "odd"),
            node("MatMul", "x v", "z", "usual"),
        ],
        {"x": [3, 64]},
        [tiny.info("y", [3, 48], TensorProto.DOUBLE), tiny.info("z", [3, 40])],
        {"w": normal(64, 48).astype(np.float64), "v": normal(64, 40, seed=1)},
    )
    report = shrink(made, tmp_path, 4)
    assert set(weights(report)) == {"v"}
    assert reasons(report)["odd"] == "its weights are double, not float32"


def test_the_ends_of_float32_are_kept(tmp_path: Path) -> None:
    weight = normal(64, 48)
    weight[:, 0] *= 1e37
    weight[:, 1] *= 1e-33
    made = dense(weight)
    shrink(made, tmp_path, 6)
    found = decoded(tmp_path / "out.onnx", ["w"], {"x": np.zeros((3, 64), np.float32)})["w"]
    assert np.isfinite(found).all()
    for column in range(3):
        assert cosine(found[:, column], weight[:, column]) > 0.99


# ------------------------------------------------------------------------------ shared weights


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_a_shared_weight_is_stored_once(bits: int, tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("Conv", "x w b", "a", "first"),
            node("Relu", "a", "r", "relu"),
            node("Conv", "r w b", "y", "second"),
        ],
        {"x": ["N", 40, 3, 3]},
        {"y": ["N", 40, 3, 3]},
        {"w": normal(40, 40, 1, 1), "b": normal(40)},
    )
    report = shrink(made, tmp_path, bits)
    one = weights(report)["w"]
    assert one.readers == ("first", "second")
    assert report.bytes_after < report.bytes_before - one.bytes_before + one.bytes_after + 4200
    same_operators(tmp_path)


@pytest.mark.parametrize("bits", [0, 4, 8])
def test_a_table_that_is_the_last_layer_too(bits: int, tmp_path: Path) -> None:
    """Tied embeddings: looked up at first, transposed and multiplied by at the end."""
    made = tiny.model(
        [
            node("Gather", "table ids", "e", "embedding"),
            node("Relu", "e", "r", "relu"),
            node("Transpose", "table", "t", "transpose", perm=[1, 0]),
            node("MatMul", "r t", "y", "logits"),
        ],
        [tiny.info("ids", [2, 3], TensorProto.INT64)],
        {"y": [2, 3, 200]},
        {"table": normal(200, 32)},
    )
    report = shrink(made, tmp_path, bits)
    (one,) = report.weights
    assert one.readers == ("embedding", "transpose")
    assert report.bytes_after < one.bytes_after + 6000  # ENTROPY has the longest decoder
    feeds = {"ids": np.arange(6).reshape(2, 3)}
    table = decoded(tmp_path / "out.onnx", ["table"], feeds)["table"]
    (found,) = run(tmp_path / "out.onnx", feeds)
    expected = np.maximum(table[feeds["ids"]], 0) @ table.T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    same_operators(tmp_path)


def test_a_shared_weight_stays_float_if_one_reader_is_skipped(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("MatMul", "x w", "a", "first"),
            node("MatMul", "a w", "b", "second"),
            node("MatMul", "b v", "y", "third"),
        ],
        {"x": [3, 40]},
        {"y": [3, 40]},
        {"w": normal(40, 40), "v": normal(40, 40, seed=1)},
    )
    report = shrink(made, tmp_path, 4, common={"skip_quant_node": ["second"]})
    assert set(weights(report)) == {"v"}
    found = reasons(report)
    for name in ("first", "second"):
        assert found[name] == "'second' is named in skip_quant_node as a reader of 'w'"


# --------------------------------------------------------------------------------------- bodies


def branches(opset: int = tiny.OPSET) -> onnx.ModelProto:
    """An If: own initializers, a Constant node, and a constant of the outer graph."""
    own = numpy_helper.from_array(normal(32, 32, seed=1), "own")
    written = numpy_helper.from_array(normal(32, 32, seed=2), "value")
    then = helper.make_graph(
        [node("MatMul", "h own", "t1", "then_own"), node("MatMul", "t1 outer", "t2", "then_outer")],
        "then",
        [],
        [tiny.info("t2", None)],
        [own],
    )
    other = helper.make_graph(
        [
            node("Constant", "", "written", "constant", value=written),
            node("MatMul", "h written", "e1", "else_written"),
        ],
        "else",
        [],
        [tiny.info("e1", None)],
    )
    return tiny.model(
        [
            node("MatMul", "x outer", "h", "before"),
            node("If", "flag", "y", "if", then_branch=then, else_branch=other),
        ],
        [tiny.info("x", [3, 32]), tiny.info("flag", [], TensorProto.BOOL)],
        {"y": [3, 32]},
        {"outer": normal(32, 32)},
        opset=opset,
        ir_version=10,
    )


@pytest.mark.parametrize("bits", [0, 4, 8, 12])
@pytest.mark.parametrize("flag", [True, False])
def test_weights_in_branches(flag: bool, bits: int, tmp_path: Path) -> None:
    report = shrink(branches(), tmp_path, bits)
    found = weights(report)
    assert {"outer", "own"} <= set(found)
    assert len(found) == 3
    assert found["outer"].readers == ("before", "then_outer")
    feeds = {"x": normal(3, 32, seed=5), "flag": np.array(flag)}
    first, second = (run(tmp_path / one, feeds)[0] for one in ("model.onnx", "out.onnx"))
    assert cosine(first, second) > 0.98
    same_operators(tmp_path)


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_weights_in_branches_on_the_fly(bits: int, tmp_path: Path) -> None:
    on_the_fly = {"dequant_strategy": "ON_THE_FLY"}
    if bits > 8:
        with pytest.raises(ModelError, match=r"opset is 17, 21 is needed"):
            shrink(branches(), tmp_path, bits, weight=on_the_fly)
    shrink(branches(21), tmp_path, bits, weight=on_the_fly)
    for flag in (True, False):
        feeds = {"x": normal(3, 32, seed=5), "flag": np.array(flag)}
        first, second = (run(tmp_path / one, feeds)[0] for one in ("model.onnx", "out.onnx"))
        assert cosine(first, second) > 0.98


@pytest.mark.parametrize("bits", [0, 5])
def test_weights_in_a_loop(bits: int, tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            node("MatMul", "state w", "m", "inner"),
            node("Tanh", "m", "next", "tanh"),
            node("Identity", "going", "still", "identity"),
        ],
        "body",
        [
            tiny.info("i", [], TensorProto.INT64),
            tiny.info("going", [], TensorProto.BOOL),
            tiny.info("state", [3, 48]),
        ],
        [tiny.info("still", [], TensorProto.BOOL), tiny.info("next", [3, 48])],
        [numpy_helper.from_array(normal(48, 48, scale=0.1), "w")],
    )
    made = tiny.model(
        [node("Loop", "trips yes x", "y", "loop", body=body)],
        {"x": [3, 48]},
        {"y": [3, 48]},
        {"trips": np.array(3), "yes": np.array(True)},
    )
    report = shrink(made, tmp_path, bits)
    assert weights(report)["w"].readers == ("inner",)
    feeds = {"x": normal(3, 48, seed=5)}
    first, second = (run(tmp_path / one, feeds)[0] for one in ("model.onnx", "out.onnx"))
    assert cosine(first, second) > 0.995
    same_operators(tmp_path)


def test_equal_names_in_two_branches_are_not_mixed_up(tmp_path: Path) -> None:
    """A name is unique in its body only: these two may be anything to each other."""

    def branch(name: str, size: int, seed: int) -> onnx.GraphProto:
        constants = [
            numpy_helper.from_array(normal(32, size, seed=seed), "w"),
            numpy_helper.from_array(normal(size, 32, seed=seed + 1), f"{name}_back"),
        ]
        nodes = [
            node("MatMul", "x w", f"{name}_m", f"{name}_w"),
            node("MatMul", f"{name}_m {name}_back", f"{name}_y", f"{name}_v"),
        ]
        return helper.make_graph(nodes, name, [], [tiny.info(f"{name}_y", None)], constants)

    made = tiny.model(
        [
            node(
                "If",
                "flag",
                "y",
                "if",
                then_branch=branch("a", 4, 0),
                else_branch=branch("b", 64, 5),
            )
        ],
        [tiny.info("x", [3, 32]), tiny.info("flag", [], TensorProto.BOOL)],
        {"y": [3, 32]},
    )
    report = shrink(made, tmp_path, 8, common={"min_quant_weight_channel": 16})
    assert "w" not in weights(report)
    assert reasons(report)["b_w"] == "another body of the model has a constant 'w', too"
    for flag in (True, False):
        feeds = {"x": normal(3, 32, seed=5), "flag": np.array(flag)}
        first, second = (run(tmp_path / one, feeds)[0] for one in ("model.onnx", "out.onnx"))
        assert cosine(first, second) > 0.999


# -------------------------------------------------------------------------------- other models


def test_weights_in_external_data(tmp_path: Path) -> None:
    made = dense(normal(64, 48))
    plain = shrink(made, tmp_path, 4)
    content = (tmp_path / "out.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.unlink()
    onnx.save_model(made, path, save_as_external_data=True, location="model.data", size_threshold=0)
    report = shrink(path, tmp_path, 4)
    assert report.files == [tmp_path / "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == content
    assert report.bytes_before == sum(
        (tmp_path / name).stat().st_size for name in ("model.onnx", "model.data")
    )
    assert report.bytes_after == plain.bytes_after


def test_a_large_result_has_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "EXTERNAL_DATA_THRESHOLD", 3000)
    made = dense(normal(64, 48))
    report = shrink(made, tmp_path, 8)
    assert report.files == [tmp_path / "out.onnx", tmp_path / "out.onnx.data"]
    feeds = tiny.feeds(made)
    first, second = (run(tmp_path / one, feeds) for one in ("model.onnx", "out.onnx"))
    assert cosine(first[1], second[1]) > 0.999
    monkeypatch.undo()
    shrink(made, tmp_path, 8, name="one_file.onnx")
    whole = run(tmp_path / "one_file.onnx", feeds)
    for one, other in zip(second, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_constants_of_old_models_are_inputs(tmp_path: Path) -> None:
    made = tiny.opset_9()
    report = shrink(made, tmp_path, 8)
    assert set(weights(report)) >= {"w2", "w3"}
    proto = onnx.load(tmp_path / "out.onnx")
    assert proto.opset_import[0].version >= 13
    assert [one.name for one in proto.graph.input] == ["x"]
    feeds = tiny.feeds(made)
    first, second = (run(tmp_path / one, feeds)[0] for one in ("model.onnx", "out.onnx"))
    assert cosine(first, second) > 0.999


def test_opset_11_is_raised(tmp_path: Path) -> None:
    made = dense(normal(64, 48), opset=11, ir_version=6)
    shrink(made, tmp_path, 4)
    proto = onnx.load(tmp_path / "out.onnx")
    assert [one.version for one in proto.opset_import if not one.domain] == [13]
    assert proto.ir_version >= 8
    assert set(proto.functions[0].opset_import[0].ListFields()[-1][1:]) == {13}
    same_operators(tmp_path)


@pytest.mark.parametrize("opset", [13, 17, 21, 25])
@pytest.mark.parametrize("bits", [2, 4, 5])
def test_small_types_are_used_where_the_opset_has_them(
    bits: int, opset: int, tmp_path: Path
) -> None:
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this onnx knows opset {onnx.defs.onnx_opset_version()} and older ones")
    made = dense(normal(64, 48), opset=opset, ir_version=10)
    report = shrink(made, tmp_path, bits)
    kinds = {
        TensorProto.DataType.Name(one.data_type)
        for one in onnx.load(tmp_path / "out.onnx").graph.initializer
    }
    native = (bits == 4 and opset >= 21) or (bits == 2 and opset >= 25)
    assert (f"INT{bits}" in kinds) == native
    assert report.verification is not None
    assert len(onnx.load(tmp_path / "out.onnx").functions) == (0 if native else 1)
    same_operators(tmp_path)


def test_a_constant_that_is_an_output_stays_as_it_is(tmp_path: Path) -> None:
    made = dense(normal(64, 48))
    made.graph.output.append(tiny.info("w", [64, 48]))
    report = shrink(made, tmp_path, 4)
    assert set(weights(report)) == {"v"}
    assert reasons(report)["odd"] == "its weights are an output of the model"
    found = run(tmp_path / "out.onnx", tiny.feeds(made))
    np.testing.assert_array_equal(found[2], normal(64, 48))


def test_a_float16_model_is_widened(tmp_path: Path) -> None:
    half = np.float16
    made = tiny.model(
        [node("Conv", "x w b", "y", "conv")],
        [tiny.info("x", ["N", 32, 3, 3], TensorProto.FLOAT16)],
        [tiny.info("y", ["N", 48, 3, 3], TensorProto.FLOAT16)],
        {"w": normal(48, 32, 1, 1).astype(half), "b": normal(48).astype(half)},
    )
    report = shrink(made, tmp_path, 6)
    assert weights(report)["w"].bytes_before == 4 * 48 * 32
    assert any("widened" in one for one in report.notes)
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.998


def test_a_model_with_functions_of_its_own(tmp_path: Path) -> None:
    """One calls as our decoder is called, and a layer in it reads a weight of the model."""
    own = helper.make_function(
        "tiny", "Unpack4", ["a", "w"], ["b"],
        [node("MatMul", "a w", "s"), node("Mul", "s s", "b")],
        [helper.make_opsetid("", tiny.OPSET)],
    )  # fmt: skip
    call = node("Unpack4", "h v", "y", "call")
    call.domain = "tiny"
    made = tiny.model(
        [node("MatMul", "x w", "h", "matmul"), call],
        {"x": [3, 64]},
        {"y": [3, 40]},
        {"w": normal(64, 48), "v": normal(48, 40, seed=1)},
        functions=[own],
        opsets=[helper.make_opsetid("tiny", 1)],
    )
    report = shrink(made, tmp_path, 4)
    assert set(weights(report)) == {"w"}
    proto = onnx.load(tmp_path / "out.onnx")
    assert {(one.domain, one.name) for one in proto.functions} == {
        ("tiny", "Unpack4"), ("ptq.packed", "Unpack4"),
    }  # fmt: skip
    same_operators(tmp_path)


def test_names_that_are_taken_already(tmp_path: Path) -> None:
    """The model has tensors and nodes that are called as ours would be."""
    taken = ["data", "codes", "scale", "offset", "shape", "scaled", "shifted", "float", "whole"]
    made = tiny.model(
        [
            *(node("Relu", "x" if i == 0 else f"w.{taken[i - 1]}", f"w.{name}", f"w.{name}_mul")
              for i, name in enumerate(taken)),
            node("MatMul", f"w.{taken[-1]} w", "y", "w.decode"),
            node("MatMul", "y w.input_scale", "z", "w.scaled_mul_1"),
        ],
        {"x": [3, 64]},
        {"z": [3, 40]},
        {"w": normal(64, 48), "w.input_scale": normal(48, 40, seed=1)},
    )  # fmt: skip
    for bits in (0, 4, 8, 12):
        report = shrink(made, tmp_path, bits)
        assert set(weights(report)) == {"w", "w.input_scale"}
        proto = onnx.load(tmp_path / "out.onnx")
        onnx.checker.check_model(proto, full_check=True)
        feeds = tiny.feeds(made)
        first, second = (run(tmp_path / one, feeds)[0] for one in ("model.onnx", "out.onnx"))
        assert cosine(first, second) > 0.98
        same_operators(tmp_path)


def test_nodes_without_names(tmp_path: Path) -> None:
    made = dense(normal(64, 48))
    for one in made.graph.node:
        one.name = ""
    report = shrink(made, tmp_path, 4, common={"skip_quant_node": ["y"]})
    assert weights(report)["w"].readers == ("a",)
    assert reasons(report)["y"] == "'y' is named in skip_quant_node"


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("bits", [0, 4])
def test_every_tiny_model(name: str, bits: int, tmp_path: Path) -> None:
    """They have weights that are too small to gain; all the rest has to be right."""
    made = tiny.MODELS[name]()
    try:
        report = shrink(made, tmp_path, bits)
    except ModelError as error:
        assert "there is nothing to quantize" in str(error)  # noqa: PT017 - most are that small
        return
    assert report.verification is not None
    assert report.verification.cosine is not None
    assert report.verification.cosine > 0.9
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)


# --------------------------------------------------------------------------------- over 2 GiB


def large(folder: Path, tables: int = 4, rows: int = 140_000, width: int = 1024) -> Path:
    """Tables in a sparse file of 2.3 GB, nearly all zeros, and a small one."""
    data, size = folder / "model.data", rows * width * 4
    with data.open("wb") as file:
        file.truncate(size * tables)
    values = np.memmap(data, np.float32, "r+", shape=(tables, rows, width))
    for index in range(tables):
        values[index, :8] = normal(8, width, seed=index)
    values.flush()
    del values
    nodes = [node("Gather", f"t{i} ids", f"g{i}", f"look{i}") for i in range(tables)]
    nodes.append(node("Gather", "small ids", "g", "look_small"))
    nodes.append(node("Sum", "g " + " ".join(f"g{i}" for i in range(tables)), "y", "sum"))
    graph = helper.make_graph(
        nodes,
        "large",
        [tiny.info("ids", [4], TensorProto.INT64)],
        [tiny.info("y", [4, width])],
        [numpy_helper.from_array(normal(64, width, seed=9), "small")],
    )
    for index in range(tables):
        tensor = graph.initializer.add(name=f"t{index}", data_type=TensorProto.FLOAT)
        tensor.dims.extend([rows, width])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", data.name), ("offset", index * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def memory_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(one.split()[1]) for one in lines if one.startswith("MemAvailable")) * 1024


def test_a_model_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 8 << 30 or memory_available() < 6 << 30:
        pytest.skip("needs 8 GB on the disk and 6 GB of memory")
    path = large(tmp_path)
    try:
        skip = [f"look{index}" for index in range(4)]
        report = shrink(path, tmp_path, 8, common={"skip_quant_node": skip})
        assert report.bytes_before > 2 << 30
        assert set(weights(report)) == {"small"}
        assert report.files == [tmp_path / "out.onnx", tmp_path / "out.onnx.data"]
        assert report.bytes_after > 2 << 30
        feeds = {"ids": np.array([0, 5, 7, 1])}
        (found,) = run(tmp_path / "out.onnx", feeds)
        tables = [normal(8, 1024, seed=index)[feeds["ids"]] for index in range(4)]
        expected = sum(tables) + normal(64, 1024, seed=9)[feeds["ids"]]
        assert cosine(found, expected) > 0.9999
    finally:  # not to be kept with the other folders of the test run
        for one in tmp_path.iterdir():
            one.unlink()


# ------------------------------------------------------------------------- what is around the model


def test_a_model_that_generated_input_does_not_suit_is_quantized_and_not_compared(
    tmp_path: Path,
) -> None:
    """It takes seven rows at a time, which nobody can know."""
    made = tiny.model(
        [node("Reshape", "x seven", "r", "rows"), node("MatMul", "r w", "y", "layer")],
        {"x": ["n", 32]},
        {"y": [7, "m", 40]},
        {"seven": np.array([7, -1, 32]), "w": normal(32, 40)},
    )
    report = shrink(made, tmp_path, 4)
    assert report.verification is not None
    assert report.verification.outputs == ()
    (warning,) = (one for one in report.warnings if one.startswith("not compared"))
    assert "--data" in warning
    (found,) = run(tmp_path / "out.onnx", {"x": np.ones((14, 32), np.float32)})
    assert found.shape == (7, 2, 40)
    # the user's own samples are another matter
    with pytest.raises(PluginError, match="running"):
        shrink(made, tmp_path, 4, data=[np.ones((1, 32), np.float32)])


def test_an_encoding_that_loses_codes_is_blamed(tmp_path: Path) -> None:
    class Careless:
        def encode(self, codes: Any, bits: int, opset: int, /) -> Encoded:
            return Encoded(constants={"codes": np.abs(codes)})

        def decode(self, constants: Any, bits: int, shape: Any, /) -> Any:
            return constants["codes"]

    class Plugin:
        @hookimpl
        def ptq_encodings(self) -> list[EncodingEntry]:
            entry = EncodingEntry(name="CARELESS", summary="no signs", factory=lambda _: Careless())
            return [entry]

    given = {"ptq-careless": Plugin(), "ort": ptq_runner_onnxruntime, "cpu": ptq_target_cpu}
    config = sections(8, weight={"encoding": "CARELESS"})
    path = tiny.save(dense(normal(32, 40)), tmp_path)
    with pytest.raises(PluginError, match=r"ptq-careless.*does not give back the codes of 'w'"):
        quantize(path, tmp_path / "out.onnx", config=config, host=make_host(given))
    assert not (tmp_path / "out.onnx").exists()
