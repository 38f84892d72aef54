from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ptq_core.errors import InputError, ModelError
from ptq_core.graph import model as model_module
from ptq_core.graph.model import (
    check_writable,
    load_model,
    runnable,
    save_model,
    serialize,
    with_outputs,
)
from ptq_core.graph.prepare import prepare
from tests import tiny_models as tiny
from tests.tiny_models import node

# ---------------------------------------------------------------------------------------- load


def refused(path: Path, *parts: str) -> None:
    """Loading is a ModelError that names the file and says all these things."""
    with pytest.raises(ModelError) as caught:
        load_model(path)
    text = str(caught.value)
    for part in (str(path), *parts):
        assert part in text


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.onnx", "there is no such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    refused(tmp_path / "m.onnx", "is empty")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"hello, this is no model\n" * 10, "looks like a text file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "git lfs pull",
        ),
        (bytes(range(256)) * 4, "export or copy the model again"),
        (b"\x00" * 100, "export or copy the model again"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, "is not an ONNX model", hint)


def test_a_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "weights")
    refused(path, "ZIP archive")


def test_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00")
    refused(path, "is not an ONNX model")


def test_every_truncation_is_an_error_or_a_whole_model(tmp_path: Path) -> None:
    """A protobuf that is cut at a field's end parses; it must not pass for the model."""
    content = tiny.gemm().SerializeToString()
    path = tmp_path / "m.onnx"
    passed = []
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        try:
            load_model(path)
        except ModelError:
            continue
        passed.append(size)
    # Only what follows the graph may be missing unnoticed; that is nothing but the opset's end.
    assert all(size > len(content) - 8 for size in passed), passed


def external(folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save_model(
        tiny.conv_bn_relu(), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    return path


def test_missing_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    refused(path, "w.bin", "is missing", "beside the model")


def test_external_data_cut_short(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = tmp_path / "w.bin"
    data.write_bytes(data.read_bytes()[:100])
    refused(path, "w.bin")


def test_external_data_is_loaded(tmp_path: Path) -> None:
    given = tiny.feeds(tiny.conv_bn_relu())
    wanted = tiny.run(tiny.conv_bn_relu(), given)
    with runnable(load_model(external(tmp_path))) as form:
        assert isinstance(form, bytes)
        np.testing.assert_array_equal(tiny.run(form, given)["y"], wanted["y"])


def test_a_quantized_model_is_refused_and_its_first_node_named(tmp_path: Path) -> None:
    made = tiny.model(
        [
            node("QuantizeLinear", "x s z", "q", "encode"),
            node("DequantizeLinear", "q s z", "y", "decode"),
        ],
        {"x": [1, 3]},
        {"y": [1, 3]},
        {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)},
    )
    refused(
        tiny.save(made, tmp_path),
        "already quantized: 2 of its nodes",
        "QuantizeLinear 'encode'",
        "float32 model",
    )


def test_a_quantized_body_is_found(tmp_path: Path) -> None:
    made = tiny.control_flow()
    branch = made.graph.node[2].attribute[0].g
    del branch.node[:]
    branch.node.extend([node("DynamicQuantizeLinear", "r", "then_out then_s then_z", "inner")])
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    refused(path, "already quantized", "inner")


def test_a_model_without_nodes_is_refused(tmp_path: Path) -> None:
    made = tiny.gemm()
    del made.graph.node[:]
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    refused(path)


# ---------------------------------------------------------------------------------------- save


def loaded(name: str = "conv_bn_relu") -> ir.Model:
    return ir.from_proto(tiny.MODELS[name]())


@pytest.mark.parametrize("name", tiny.MODELS)
def test_what_is_saved_loads_and_computes_the_same(tmp_path: Path, name: str) -> None:
    made = tiny.MODELS[name]()
    path = tmp_path / "out.onnx"
    assert save_model(ir.from_proto(made), path) == [path]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.onnx"]
    given = tiny.feeds(made)
    wanted, found = tiny.run(made, given), tiny.run(path.read_bytes(), given)
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array)


def test_the_same_model_gives_the_same_bytes() -> None:
    assert serialize(loaded()) == serialize(loaded())


@pytest.fixture
def low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "EXTERNAL_DATA_THRESHOLD", 1000)


@pytest.mark.usefixtures("low_threshold")
def test_large_models_get_a_file_for_their_weights(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    assert save_model(loaded(), path) == [path, tmp_path / "out.onnx.data"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    given = tiny.feeds(tiny.conv_bn_relu())
    with runnable(load_model(path)) as form:
        assert isinstance(form, Path)
        import onnxruntime

        session = onnxruntime.InferenceSession(str(form), providers=["CPUExecutionProvider"])
        found = session.run(["y"], given)[0]
    np.testing.assert_allclose(found, tiny.run(tiny.conv_bn_relu(), given)["y"], rtol=1e-5)
    assert not form.exists(), "the temporary file is gone"


@pytest.mark.usefixtures("low_threshold")
def test_a_large_model_can_be_saved_over_its_own_source(tmp_path: Path) -> None:
    """Its weights are mapped from the very file that is replaced."""
    path = tmp_path / "m.onnx"
    save_model(loaded(), path)
    first = path.read_bytes(), (tmp_path / "m.onnx.data").read_bytes()
    save_model(load_model(path), path)
    assert (path.read_bytes(), (tmp_path / "m.onnx.data").read_bytes()) == first


@pytest.mark.usefixtures("low_threshold")
def test_saving_and_running_leave_the_model_as_it_was(tmp_path: Path) -> None:
    """``runnable`` and ``save_model`` are called several times for one model."""
    model = loaded()
    with runnable(model) as first:
        assert isinstance(first, Path)
    save_model(model, tmp_path / "a.onnx")
    save_model(model, tmp_path / "b.onnx")
    a, b = ((tmp_path / f"{name}.onnx.data").read_bytes() for name in "ab")
    assert a == b
    given = tiny.feeds(tiny.conv_bn_relu())
    wanted = tiny.run(tiny.conv_bn_relu(), given)["y"]
    np.testing.assert_array_equal(tiny.run(serialize(model), given)["y"], wanted)


@pytest.mark.parametrize(("large", "failing"), [(False, 1), (True, 1), (True, 2)])
def test_an_interrupted_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool, failing: int
) -> None:
    if large:
        monkeypatch.setattr(model_module, "EXTERNAL_DATA_THRESHOLD", 1000)
    path = tmp_path / "out.onnx"
    path.write_bytes(b"what was there")
    calls = []

    def replace(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        os.rename(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises((OSError, InputError)):
        save_model(loaded(), path)
    assert path.read_bytes() == b"what was there"
    assert not list(tmp_path.glob(".ptq*"))


def test_a_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"what was there")

    def no_space(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises((OSError, InputError)):
        save_model(loaded(), path)
    assert path.read_bytes() == b"what was there"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.onnx"]


def test_the_saved_file_has_the_permissions_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_model(loaded(), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ----------------------------------------------------------------------------------- writable


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "none" / "out.onnx")
    with pytest.raises(InputError):
        check_writable(Path("/proc/out.onnx"))
    check_writable(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- other outputs


def test_with_outputs_shows_inner_tensors_and_leaves_the_model_alone() -> None:
    made = tiny.conv_bn_relu()
    model = ir.from_proto(made)
    inner = with_outputs(model, ["r2", "c1"])
    assert [value.name for value in model.graph.outputs] == ["y"]
    found = tiny.run(serialize(inner), tiny.feeds(made))
    assert list(found) == ["r2", "c1"]
    assert found["c1"].shape == (2, 8, 8, 8)
    weight = model.graph.initializers["w1"].const_value
    assert inner.graph.initializers["w1"].const_value is weight, "constants are shared"


@pytest.mark.parametrize("name", ["control_flow", "functions"])
def test_with_outputs_keeps_bodies_and_functions(name: str) -> None:
    made = tiny.MODELS[name]()
    prepared = prepare(ir.from_proto(made), 13)
    name = "c1" if made.functions else "r"
    given = tiny.feeds(made)
    assert list(tiny.run(serialize(with_outputs(prepared.model, [name])), given)) == [name]
