"""Archives: every model comes back byte for byte, small, or is refused with one clear error."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tracemalloc
import types
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ptq_core.api import Encoded, EncodingEntry, hookimpl
from ptq_core.archive import PackReport, forms, load, pack, unpack
from ptq_core.errors import InputError, ModelError, PluginError
from ptq_core.plugins import PluginHost, make_host
from tests import tiny_models

ptq_encoding_rans = pytest.importorskip("ptq_encoding_rans")

RNG = np.random.default_rng

# ---------------------------------------------------------------- an encoding, for these tests


class Halves:
    """Codes of 5 to 8 bits as low nibbles, two in a byte, and high ones, a byte each."""

    def __init__(self, order: int = 1) -> None:
        self.order = order

    def encode(self, codes: Any, bits: int, opset: int, /) -> Encoded:
        flat = (codes.reshape(-1).astype(np.int16) + 128).astype(np.uint8)[:: self.order]
        low = np.append(flat, np.zeros(flat.size % 2, np.uint8)) & 15
        packed = low[::2] | low[1::2] << 4
        return Encoded(constants={"low": packed, "high": flat >> 4}, function=FUNCTION)

    def decode(self, constants: Mapping[str, Any], bits: int, shape: Sequence[int], /) -> Any:
        low, high = constants["low"], constants["high"]
        both = np.stack([low & 15, low >> 4], 1).reshape(-1)[: high.size]
        codes = (both.astype(np.int16) | high.astype(np.int16) << 4) - 128
        return codes.astype(np.int8).reshape(shape)


# not what decodes them: only its name and the names of its inputs matter to an archive
FUNCTION = """
<domain: "ptq.halves", opset_import: ["" : 17]>
Halves <bits> (low, high, shape) => (codes)
{
  floats = Cast <to = 1> (high)
  codes = Reshape (floats, shape)
}
"""


def plugin(encoding: Any) -> Any:
    """A plugin that offers HALVES."""

    @hookimpl
    def ptq_encodings() -> Any:
        yield EncodingEntry(name="HALVES", summary="for tests", factory=lambda _: encoding)

    return types.SimpleNamespace(ptq_encodings=ptq_encodings, __version__="1.5")


def host_with(encoding: Any = None) -> PluginHost:
    plugins = {"ptq-encoding-rans": ptq_encoding_rans}
    return make_host(plugins | ({} if encoding is None else {"halves": plugin(encoding)}))


HOST = host_with(Halves())


def weights(*shape: int, seed: int = 0, spread: float = 12.0) -> Any:
    """Codes that have something to gain."""
    return np.clip(np.rint(RNG(seed).normal(0, spread, shape)), -128, 127).astype(np.int8)


def decoded_model(
    codes: Sequence[Any] = (weights(64, 96),), *, constants: Any = None, **changes: Any
) -> onnx.ModelProto:
    """A model with a decoder for each array of codes; ``changes`` are those of the first node."""
    nodes, tensors, outputs = [], [], []
    for number, array in enumerate(codes):
        made = constants or Halves().encode(array, 8, 17).constants
        names = [f"{key}{number}" for key in made] + [f"shape{number}"]
        arrays = [*made.values(), np.array(array.shape, np.int64)]
        tensors += [numpy_helper.from_array(*pair) for pair in zip(arrays, names, strict=True)]
        given = {"domain": "ptq.halves", "bits": 8, **(changes if number == 0 else {})}
        nodes.append(helper.make_node("Halves", names, [f"y{number}"], **given))
        outputs.append(helper.make_tensor_value_info(f"y{number}", 1, None))
    graph = helper.make_graph(nodes, "decoded", [], outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ptq.halves", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, functions=[onnx.parser.parse_function(FUNCTION)]
    )


# --------------------------------------------------------------------------------------- helpers


def write(path: Path, model: onnx.ModelProto | bytes) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def holding(*tensors: Any) -> onnx.ModelProto:
    """A model with these tensors as constants."""
    given = [
        one if isinstance(one, onnx.TensorProto) else numpy_helper.from_array(one, f"t{number}")
        for number, one in enumerate(tensors)
    ]
    graph = helper.make_graph([], "holding", [], [], given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def raw(name: str, data_type: int, array: Any) -> onnx.TensorProto:
    """A tensor of a type that NumPy does not have."""
    data = array.tobytes()
    return TensorProto(name=name, data_type=data_type, dims=array.shape, raw_data=data)


def round_trip(path: Path, host: PluginHost = HOST) -> PackReport:
    """Pack, unpack and load; every file has to come back, and nothing else be left."""
    archive, folder = path.parent / "packed" / "model.ptqz", path.parent / "again"
    archive.parent.mkdir()
    folder.mkdir()
    report = pack(path, archive, host=host)
    assert [*archive.parent.iterdir()] == [archive]
    assert report.bytes_after == archive.stat().st_size
    assert sum(one.bytes_before for one in report.tensors) == report.bytes_before
    done = unpack(archive, folder / path.name, host=host)
    files = [one for one in path.parent.rglob("*") if one.is_file()]
    sources = {
        one.relative_to(path.parent): one.read_bytes()
        for one in files
        if archive.parent not in one.parents and folder not in one.parents
    }
    assert {one.relative_to(folder): one.read_bytes() for one in done.files} == sources
    assert {one for one in folder.rglob("*") if one.is_file()} == set(done.files)
    assert done.bytes_after == report.bytes_before
    if len(sources) == 1:
        assert load(archive, host) == path.read_bytes() == load(path, host)
    return report


def kinds(report: PackReport) -> dict[str, str]:
    return {one.name: one.kind for one in report.tensors if one.name}


# ------------------------------------------------------------------------------- byte for byte


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16"])
def test_integers_are_entropy_coded(tmp_path, kind):
    codes = (weights(100, 101).astype(int) + (128 if kind.startswith("u") else 0)).astype(kind)
    report = round_trip(write(tmp_path / "m.onnx", holding(codes)))
    (one,) = (one for one in report.tensors if one.kind == "integers")
    counts = np.unique(codes, return_counts=True)[1]
    entropy = (counts * np.log2(codes.size / counts)).sum() / codes.size
    assert one.entropy == pytest.approx(entropy)
    assert (one.name, one.stored_as, one.elements) == ("t0", kind, codes.size)
    assert one.bytes_before == codes.nbytes
    assert entropy / 8 * codes.size < one.bytes_after < 1.02 * entropy / 8 * codes.size


@pytest.mark.parametrize("kind", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("count", [4096, 4097, 4099])
def test_several_elements_in_a_byte_are_entropy_coded(tmp_path, kind, count):
    bits = int(kind[-1])
    if not hasattr(TensorProto, kind.upper()):
        pytest.skip(f"this onnx has no {kind}")
    levels = RNG(0).choice(1 << bits, count, p=RNG(1).dirichlet(np.full(1 << bits, 0.3)))
    shifted = np.append(levels, np.zeros(-count % (8 // bits), int)).reshape(-1, 8 // bits)
    raw = (shifted << np.arange(0, 8, bits)).sum(1).astype(np.uint8).tobytes()
    data_type = getattr(TensorProto, kind.upper())
    tensor = TensorProto(name="w", data_type=data_type, dims=[count], raw_data=raw)
    report = round_trip(write(tmp_path / "m.onnx", holding(tensor)))
    (one,) = (one for one in report.tensors if one.kind == "integers")
    assert one.bytes_after < one.entropy * count / 8 + 80 < one.bytes_before


def test_bits_behind_the_last_element_come_back(tmp_path):
    raw = RNG(0).integers(0, 16, 2500, np.uint8).tobytes() + b"\xf3"
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[5001], raw_data=raw)
    round_trip(write(tmp_path / "m.onnx", holding(tensor)))


def test_numbers_are_stored_by_their_bytes(tmp_path):
    floats = RNG(0).normal(0, 0.05, (200, 100))
    kinds_ = ["float32", "float16", "float64", "complex64", "int32", "int64"]
    arrays = [(floats * 1000 if "int" in one else floats).astype(one) for one in kinds_]
    upper = (floats.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensors = [*arrays, raw("bfloat16", TensorProto.BFLOAT16, upper)]
    report = round_trip(write(tmp_path / "m.onnx", holding(*tensors)))
    before, after = (
        {one.stored_as: getattr(one, size) for one in report.tensors}
        for size in ("bytes_before", "bytes_after")
    )
    for name in ("float32", "float16", "float64", "bfloat16", "complex64", "int32", "int64"):
        assert after[name] < 0.95 * before[name], name
    assert after["int64"] < 0.3 * before["int64"]


def test_odd_tensors_come_back(tmp_path):
    ints = weights(50, 60)
    model = holding(
        np.zeros((0, 3), np.float32),
        np.zeros((0,), np.int8),
        np.float32(3.0),
        RNG(0).random(5000) < 0.1,
        raw("float8", TensorProto.FLOAT8E4M3FN, ints),
        helper.make_tensor("text", TensorProto.STRING, [2], [b"a\xff", b"b" * 1000]),
        helper.make_tensor("in_fields", TensorProto.INT8, ints.shape, ints.reshape(-1)),
        helper.make_tensor("floats", TensorProto.FLOAT, [3000], RNG(0).normal(size=3000)),
        helper.make_tensor("longs", TensorProto.INT64, [3000], range(3000)),
        TensorProto(name="wrong size", data_type=1, dims=[7, 7], raw_data=bytes(5000)),
        TensorProto(name="no type", dims=[5000], raw_data=bytes(5000)),
    )
    report = round_trip(write(tmp_path / "m.onnx", model))
    assert {"t3", "float8"} <= {one.name for one in report.tensors if one.kind == "integers"}
    assert "floats" in kinds(report)


def test_constants_anywhere_in_the_model_are_found(tmp_path):
    values = numpy_helper.from_array(weights(40, 50), "in_attribute")
    inner = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.INT8, None)],
        [numpy_helper.from_array(weights(40, 50, seed=1), "inner")],
    )
    nodes = [
        helper.make_node("Constant", [], ["a"], value=values),
        helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner),
    ]
    function = helper.make_function(
        "own", "F", [], ["y"], [helper.make_node("Constant", [], ["y"], value=values)], []
    )
    dense = numpy_helper.from_array(RNG(0).normal(size=3000).astype(np.float32), "dense")
    places = numpy_helper.from_array(np.arange(3000), "places")
    graph = helper.make_graph(
        nodes, "g", [], [], sparse_initializer=[helper.make_sparse_tensor(dense, places, [9000])]
    )
    model = helper.make_model(graph, functions=[function])
    report = round_trip(write(tmp_path / "m.onnx", model))
    found = [one.name for one in report.tensors if one.name]
    assert found.count("in_attribute") == 2
    assert found.count("inner") == 2
    assert {"dense", "places"} <= set(found)


def test_whoever_wrote_the_file_it_comes_back(tmp_path):
    # fields that we do not know, in an order that no library would write
    tensor = numpy_helper.from_array(weights(40, 50), "w").SerializeToString()
    tensor = b"\xfa\x7f\x03abc" + tensor + b"\xc5\x3eabcd" + b"\xc1\x3eabcdefgh"
    graph = b"\x2a" + _varint(len(tensor)) + tensor + b"\x12\x01g"
    model = b"\x3a" + _varint(len(graph)) + graph + b"\x08\x09" + b"\xf8\x7f\x85\x80\x00"
    report = round_trip(write(tmp_path / "m.onnx", model))
    assert kinds(report)["w"] == "integers"


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


@pytest.mark.parametrize("name", sorted(tiny_models.MODELS))
def test_tiny_models_come_back(tmp_path, name):
    round_trip(write(tmp_path / "m.onnx", tiny_models.MODELS[name]()))


def test_equal_models_make_equal_archives(tmp_path):
    model = write(tmp_path / "m.onnx", holding(weights(64, 64), RNG(0).normal(size=5000)))
    one, other = pack(model, tmp_path / "1", host=HOST), pack(model, tmp_path / "2", host=HOST)
    assert one.archive.read_bytes() == other.archive.read_bytes()


def test_large_constants_are_stored_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("ptq_core.archive.constants.BLOCK", 5000)
    gap = TensorProto(name="no type", dims=[5000], raw_data=RNG(0).bytes(22_222))
    model = holding(weights(111, 113), RNG(0).normal(size=12_345).astype(np.float32), gap)
    report = round_trip(write(tmp_path / "m.onnx", model))
    assert {one.elements for one in report.tensors} >= {111 * 113, 12_345}


def test_memory_does_not_grow_with_the_constants(tmp_path, monkeypatch):
    monkeypatch.setattr("ptq_core.archive.constants.BLOCK", 1 << 17)
    peaks = []
    for size in (500_000, 500_000, 2_500_000):  # the first time, kernels are loaded
        floats = RNG(0).normal(size=size // 4).astype(np.float32)
        model = write(tmp_path / "m.onnx", holding(weights(size), floats))
        del floats
        tracemalloc.start()
        try:
            pack(model, tmp_path / "m.ptqz", host=HOST)
            unpack(tmp_path / "m.ptqz", tmp_path / "again.onnx", host=HOST)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] - peaks[1] < 300_000  # of 4,000,000 bytes that the constants have more


@given(st.binary(max_size=400), st.integers(0, 40))
def test_compressed_bytes_come_back(data, times):
    whole = data * times
    assert forms.decompress(forms.compress(whole), len(whole)) == whole
    with pytest.raises(ValueError, match="expected"):
        forms.decompress(forms.compress(whole), len(whole) + 1)


@settings(deadline=None)
@given(st.sampled_from(sorted(forms.INTEGERS)), st.binary(min_size=1, max_size=64), st.data())
def test_codes_are_the_elements(kind, raw, data):
    bits, signed = forms.INTEGERS[kind]
    raw = raw * 2
    count = len(raw) * 8 // bits
    codes = forms.to_codes(raw, kind, count)
    number = int.from_bytes(raw, "little")
    elements = [number >> (bits * at) & ((1 << bits) - 1) for at in range(count)]
    half = 1 << (bits - 1)
    expected = [(one ^ half) - half if signed else one - half for one in elements]
    assert codes.tolist() == expected
    assert codes.dtype == (np.int16 if bits > 8 else np.int8)
    assert forms.from_codes(codes, kind) == raw


# ------------------------------------------------------------------------------ external data


def externally(folder: Path, model: onnx.ModelProto, *places: Mapping[str, Any]) -> Path:
    """Write the model, its first constants being wherever it is said."""
    for tensor, place in zip(model.graph.initializer, places, strict=False):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
    return write(folder / "m.onnx", model)


@pytest.fixture
def external(tmp_path):
    """A model with constants in two files, one of them read twice, with other bytes between."""
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    codes, floats = weights(64, 64), RNG(0).normal(size=4096).astype(np.float32)
    (folder / "a.bin").write_bytes(b"x" * 10 + codes.tobytes() + b"y" * 6 + floats.tobytes())
    (folder / "deep" / "b.bin").write_bytes(weights(64, 64, seed=1).tobytes())
    return externally(
        folder,
        holding(codes, codes, floats, codes, np.arange(4)),
        {"location": "a.bin", "offset": 10, "length": 4096},
        {"location": "a.bin", "offset": 10, "length": 4096},
        {"location": "a.bin", "offset": 4112},
        {"location": "deep/b.bin"},
    )


def test_external_data_are_taken_in_and_given_back(external):
    report = round_trip(external)
    found = kinds(report)
    assert found["t0"] == found["t3"] == "integers"
    assert found["t2"] == "numbers"


def test_constants_that_overlap_come_back(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.bin").write_bytes(weights(10_000).tobytes())
    round_trip(
        externally(
            folder,
            holding(weights(6000), weights(6000), weights(2000)),
            {"location": "a.bin", "offset": 3000},
            {"location": "a.bin", "offset": 0},
            {"location": "a.bin", "offset": 0, "length": 2000},
        )
    )


def test_load_puts_external_data_into_the_model(external, tmp_path):
    pack(external, tmp_path / "m.ptqz", host=HOST)
    expected = onnx.load(external)
    for path in (tmp_path / "m.ptqz", external):
        found = onnx.load_from_string(load(path, HOST))
        for one, other in zip(found.graph.initializer, expected.graph.initializer, strict=True):
            np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_a_model_too_large_for_one_piece_is_refused_by_load(external, tmp_path, monkeypatch):
    pack(external, tmp_path / "m.ptqz", host=HOST)
    monkeypatch.setattr("ptq_core.archive.unpacking._LARGEST", 20_000)
    with pytest.raises(InputError, match=r"too many for one piece.*\n.*ptq unpack"):
        load(tmp_path / "m.ptqz", HOST)
    with pytest.raises(InputError, match="too many for one piece"):
        load(external, HOST)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "missing.bin"}, "external data file 'missing.bin' is missing"),
        ({"location": "../out.bin"}, "expected a file in the model's folder"),
        ({"location": "/etc/hostname"}, "expected a file in the model's folder"),
        ({"location": "C:\\out.bin"}, "expected a file in the model's folder"),
        ({"location": "m.onnx"}, "expected a file in the model's folder"),
        ({"offset": 0}, "expected a file in the model's folder"),
        ({"location": "a.bin", "offset": 1000}, "was cut short"),
        ({"location": "a.bin", "offset": -5}, "was cut short"),
        ({"location": "a.bin", "offset": "many"}, "was cut short"),
    ],
)
def test_external_data_that_cannot_be_used_are_refused(tmp_path, place, message):
    (tmp_path / "a.bin").write_bytes(bytes(4096))
    (tmp_path.parent / "out.bin").write_bytes(bytes(4096))
    model = externally(tmp_path, holding(weights(64, 64)), place)
    with pytest.raises(ModelError, match=message) as caught:
        pack(model, tmp_path / "m.ptqz", host=HOST)
    assert caught.value.problems[0].location.tensor == "t0"
    assert not (tmp_path / "m.ptqz").exists()


def test_other_files_are_not_replaced_by_external_data(external, tmp_path):
    pack(external, tmp_path / "m.ptqz", host=HOST)
    (tmp_path / "a.bin").write_bytes(b"somebody else's")
    with pytest.raises(InputError, match=r"a\.bin', and there is another one"):
        unpack(tmp_path / "m.ptqz", tmp_path / "again.onnx", host=HOST)
    assert (tmp_path / "a.bin").read_bytes() == b"somebody else's"
    assert not (tmp_path / "again.onnx").exists()
    (tmp_path / "a.bin").write_bytes((external.parent / "a.bin").read_bytes())
    assert len(unpack(tmp_path / "m.ptqz", tmp_path / "again.onnx", host=HOST).files) == 3


# ----------------------------------------------------------------- constants of our decoders


def test_what_decoders_read_is_stored_as_codes(tmp_path):
    codes = weights(64, 96)
    report = round_trip(write(tmp_path / "m.onnx", decoded_model([codes])))
    (one,) = (one for one in report.tensors if one.kind == "encoded")
    assert (one.name, one.stored_as, one.elements) == ("low0", "HALVES 8 bits", codes.size)
    assert one.bytes_before == codes.size * 3 // 2
    assert one.bytes_after < 1.02 * one.entropy * codes.size / 8


def test_constants_that_two_decoders_share_come_back(tmp_path):
    model = decoded_model([weights(64, 96), weights(64, 96)])
    model.graph.node[1].input[:2] = model.graph.node[0].input[:2]
    other = decoded_model([weights(64, 96), weights(96, 64, seed=3)])
    other.graph.node[1].input[0] = "low0"  # of the one, with the high nibbles of the other
    for number, one in enumerate((model, other)):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = round_trip(write(folder / "m.onnx", one))
        assert sum(found.kind == "encoded" for found in report.tensors) >= 1


def test_decoders_in_subgraphs_are_found(tmp_path):
    model = decoded_model()
    inner = helper.make_graph([model.graph.node[0]], "inner", [], [model.graph.output[0]])
    node = helper.make_node("If", ["c"], ["y0"], then_branch=inner, else_branch=inner)
    del model.graph.node[:]
    model.graph.node.append(node)
    report = round_trip(write(tmp_path / "m.onnx", model))
    assert [one.kind for one in report.tensors].count("encoded") == 1


class Forgetful(Halves):
    """Encodes in another way than whoever made the model."""

    def encode(self, codes: Any, bits: int, opset: int, /) -> Encoded:
        return super().encode(codes[::-1], bits, opset)


class Failing(Halves):
    """Cannot decode."""

    def decode(self, constants: Any, bits: int, shape: Any, /) -> Any:
        raise RuntimeError("no such table")


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        (Forgetful(), "would encode the codes in another way"),
        (Failing(), "no such table"),
        (None, "no encoding named 'halves'"),
    ],
)
def test_what_would_not_come_back_is_stored_as_it_is(tmp_path, encoding, note):
    model = write(tmp_path / "m.onnx", decoded_model([weights(64, 96), weights(64, 96, seed=1)]))
    report = round_trip(model, host_with(encoding))
    assert len(report.notes) == 1
    assert note in report.notes[0]
    assert "2 decoders" in report.notes[0]
    assert "encoded" not in {one.kind for one in report.tensors}


@pytest.mark.parametrize(
    "changes", [{"bits": None}, {"domain": "ptq.other"}, {"op_type": "Elsewise"}]
)
def test_other_nodes_are_not_taken_for_decoders(tmp_path, changes):
    model = decoded_model()
    node = model.graph.node[0]
    for key, value in changes.items():
        if value is None:
            del node.attribute[:]
        else:
            setattr(node, key, value)
    report = round_trip(write(tmp_path / "m.onnx", model))
    assert "encoded" not in {one.kind for one in report.tensors}
    assert not report.notes


def test_a_plugin_that_changed_is_named(tmp_path):
    model = write(tmp_path / "m.onnx", decoded_model())
    pack(model, tmp_path / "m.ptqz", host=HOST)
    changed = plugin(Forgetful())
    changed.__version__ = "2.0"
    host = make_host({"ptq-encoding-rans": ptq_encoding_rans, "halves": changed})
    with pytest.raises(InputError, match=r"HALVES is of halves 2\.0, it was packed with halves 1"):
        unpack(tmp_path / "m.ptqz", tmp_path / "again.onnx", host=host)
    assert not (tmp_path / "again.onnx").exists()


def test_a_coder_that_loses_codes_is_found_out(tmp_path):
    class Losing:
        def encode(self, codes: Any, bits: int, opset: int, /) -> Encoded:
            return Encoded(constants={"stream": np.zeros(3, np.uint8)})

        def decode(self, constants: Any, bits: int, shape: Any, /) -> Any:
            return np.zeros(shape, np.int8)

    @hookimpl
    def ptq_encodings() -> Any:
        yield EncodingEntry(name="RANS", summary="for tests", factory=lambda _: Losing())

    host = make_host({"losing": types.SimpleNamespace(ptq_encodings=ptq_encodings)})
    model = write(tmp_path / "m.onnx", holding(weights(64, 64)))
    with pytest.raises(PluginError, match="'losing' 0: decodes other codes than it was given"):
        pack(model, tmp_path / "m.ptqz", host=host)
    assert [*tmp_path.iterdir()] == [model]


# --------------------------------------------------------------------------------------- refused


@pytest.fixture
def archive(tmp_path):
    """A small archive with every form."""
    model = decoded_model()
    model.graph.initializer.append(numpy_helper.from_array(weights(6000), "codes"))
    model.graph.initializer.append(numpy_helper.from_array(np.linspace(0, 1, 2000), "numbers"))
    path = tmp_path / "m.ptqz"
    pack(write(tmp_path / "m.onnx", model), path, host=HOST)
    return path


def refused(path: Path, host: PluginHost = HOST) -> str:
    """Why unpacking fails; nothing may be left behind."""
    folder = path.parent / "refused"
    folder.mkdir(exist_ok=True)
    for action in (
        lambda: unpack(path, folder / "again.onnx", host=host),
        lambda: load(path, host),
    ):
        with pytest.raises(InputError) as caught:
            action()
        assert caught.value.exit_code == 2
        assert all(one.location.file == str(path) for one in caught.value.problems)
    assert not [*folder.iterdir()]
    return str(caught.value)


def test_every_altered_byte_is_noticed(archive):
    whole = archive.read_bytes()
    for place in range(24, len(whole), 97):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="was altered: its content does not have the SHA-256"):
            load(archive, HOST)
    archive.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "was altered" in refused(archive)


def test_a_truncated_archive_is_refused(archive):
    whole = archive.read_bytes()
    for size in (9, 23, 24, 100, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:size])
        assert "was cut short: it has" in refused(archive)
    archive.write_bytes(whole + b"\0")
    assert "has bytes behind its end" in refused(archive)


def test_another_magic_or_version_is_refused(archive, tmp_path):
    whole = archive.read_bytes()
    archive.write_bytes(whole[:8] + struct.pack("<I", 7) + whole[12:])
    assert "archive of version 7, expected version 1" in refused(archive)
    for head in (b"PK\3\4", b"", b"\x89PTQZ\n\x1a"):  # the last one went through a text mode
        archive.write_bytes(head + whole[8:] if head else b"")
        with pytest.raises(InputError, match=r"no \.ptqz archive"):
            unpack(archive, tmp_path / "again.onnx", host=HOST)
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=message):
            unpack(path, tmp_path / "again.onnx", host=HOST)


def test_encodings_that_are_not_there_are_told_all_at_once(archive):
    message = refused(archive, make_host({}))
    assert "needs the encoding RANS of ptq-encoding-rans" in message
    assert "needs the encoding HALVES of halves 1.5: no encoding named 'HALVES'" in message
    assert "pip install ptq-encoding-rans" in message


def forge(path: Path, change: Any, data: Any = None) -> None:
    """Write the archive with another index, or other sections, and right checksums."""
    whole = path.read_bytes()
    magic, version, size, total = struct.unpack("<8sIIQ", whole[:24])
    index = json.loads(zlib.decompress(whole[total - 32 - size : total - 32]))
    body = bytearray(whole[24 : total - 32 - size])
    change(index, body)
    packed = zlib.compress(json.dumps(index).encode())
    head = struct.pack("<8sIIQ", magic, version, len(packed), 24 + len(body) + len(packed) + 32)
    text = head + body + packed
    path.write_bytes(text + hashlib.sha256(text).digest())


def section(index: Any, form: str) -> Any:
    return next(one for one in index["sections"] if one["form"] == form)


def test_a_forged_archive_with_right_checksums_comes_back_if_nothing_changed(archive):
    expected = load(archive, HOST)
    forge(archive, lambda index, body: None)
    assert load(archive, HOST) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, b: i.clear(), "index is malformed"),
        (lambda i, b: i.update(more=1), "index is malformed"),
        (lambda i, b: i["sections"].pop(), "index is malformed"),
        (lambda i, b: section(i, "codes").update(form="other"), "index is malformed"),
        (lambda i, b: section(i, "codes").update(bits=99), "index is malformed"),
        (lambda i, b: section(i, "codes").update(coder="ZIP"), "index is malformed"),
        (lambda i, b: section(i, "codes")["places"][0].__setitem__(1, 10**9), "outside of its"),
        (lambda i, b: section(i, "codes")["places"][0].__setitem__(0, 1), "outside of its file"),
        (lambda i, b: section(i, "codes")["places"][0].__setitem__(1, -1), "index is malformed"),
        (lambda i, b: section(i, "bytes").update(rest=5), "rest of no file"),
        (lambda i, b: i["files"].append({**i["files"][0], "size": 5}), "are in no section"),
        (lambda i, b: section(i, "encoded")["arrays"].pop(), "where its arrays belong"),
        (lambda i, b: section(i, "codes").update(shape=[1 << 50]), "cannot be decoded"),
        (lambda i, b: section(i, "codes").update(shape=[1 << 61, 16]), "cannot be decoded"),
        (lambda i, b: section(i, "codes").update(kind="int4"), "cannot be decoded"),
        (lambda i, b: section(i, "codes").update(crc32=5), "other bytes come out"),
        (lambda i, b: section(i, "planes").update(width=3), "cannot be decoded"),
        (lambda i, b: section(i, "encoded").update(shape=[6144, 2]), "cannot be decoded"),
        (lambda i, b: i["files"][0].update(sha256="00"), "does not come back"),
        (lambda i, b: b.__setitem__(slice(0, 60), bytes(60)), "cannot be decoded"),
        (lambda i, b: b.__setitem__(slice(-60, None), bytes(60)), "cannot be decoded"),
    ],
)
def test_forged_archives_are_refused(archive, change, message):
    forge(archive, change)
    assert message in refused(archive)


@pytest.mark.parametrize("name", ["../out", "/out", "C:\\out", "..", "", "again.onnx"])
def test_files_outside_of_the_folder_are_refused(archive, name):
    def change(index: Any, body: Any) -> None:
        empty = hashlib.sha256(b"").hexdigest()
        index["files"].append({"name": name, "size": 0, "sha256": empty})

    forge(archive, change)
    folder = archive.parent / "refused"
    folder.mkdir()
    with pytest.raises(InputError, match="expected one in the folder"):
        unpack(archive, folder / "again.onnx", host=HOST)
    assert not [*folder.iterdir()]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text, not a model\n",
        b"\x08\x09",
        b"\x3a\x05ab",
        bytes(100),
        b"\x0b\x0c",
        b"\xff" * 30,
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content):
    path = write(tmp_path / "m.onnx", content)
    with pytest.raises(ModelError, match="is not an ONNX model, or was cut short") as caught:
        pack(path, tmp_path / "m.ptqz", host=HOST)
    assert caught.value.problems[0].location.file == str(path)
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(ModelError, match="is not an ONNX model"):
        load(path)


def test_a_model_that_was_cut_short_is_refused(tmp_path):
    whole = decoded_model().SerializeToString()
    for size in range(0, len(whole) - 40, 211):
        with pytest.raises(ModelError, match="cut short"):
            pack(write(tmp_path / "m.onnx", whole[:size]), tmp_path / "m.ptqz", host=HOST)


def test_inputs_and_outputs_that_cannot_be_are_refused(archive, tmp_path):
    model = tmp_path / "m.onnx"
    for source, output, message in (
        (archive, tmp_path / "o", "is an archive already"),
        (model, model, "is a file of the model"),
        (model, tmp_path, "is a folder"),
        (model, tmp_path / "no" / "o", "does not exist"),
        (tmp_path / "none", tmp_path / "o", "no such file"),
        (tmp_path, tmp_path / "o", "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            pack(source, output, host=HOST)
    with pytest.raises(InputError, match="is the archive itself"):
        unpack(archive, archive, host=HOST)


def test_without_a_coder_integers_are_not_stored_in_another_way(tmp_path):
    model = write(tmp_path / "m.onnx", holding(weights(64, 64)))
    with pytest.raises(InputError, match="no encoding named 'RANS'"):
        pack(model, tmp_path / "m.ptqz", host=make_host({}))
    floats = write(tmp_path / "f.onnx", holding(RNG(0).normal(size=5000)))
    pack(floats, tmp_path / "f.ptqz", host=make_host({}))  # these need none
    assert load(tmp_path / "f.ptqz", make_host({})) == floats.read_bytes()


@pytest.mark.parametrize("stage", ["pack", "save"])
def test_an_interrupt_leaves_what_was_there(tmp_path, stage):
    model, output = write(tmp_path / "m.onnx", decoded_model()), tmp_path / "m.ptqz"
    output.write_bytes(b"old")

    def interrupt(event: Any) -> None:
        if event.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(model, output, host=HOST, progress=interrupt)
    assert output.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [model, output]


def test_progress_is_told(tmp_path):
    model, events = write(tmp_path / "m.onnx", decoded_model()), []
    pack(model, tmp_path / "m.ptqz", host=HOST, progress=events.append)
    unpack(tmp_path / "m.ptqz", tmp_path / "n.onnx", host=HOST, progress=events.append)
    told = [(one.stage, one.kind) for one in events if one.kind != "advance"]
    assert told == [
        (stage, kind) for stage in ("pack", "save", "unpack", "save") for kind in ("start", "end")
    ]
    for stage in ("pack", "unpack"):
        last = [one for one in events if one.stage == stage and one.kind == "advance"][-1]
        assert last.done == last.total


def test_defaults_are_beside_the_source(tmp_path):
    model = write(tmp_path / "m.onnx", decoded_model())
    assert pack(model, host=HOST).archive == tmp_path / "m.ptqz"
    model.unlink()
    assert unpack(tmp_path / "m.ptqz", host=HOST).files == [model]
    onnx.load(model)


def test_entropy_is_that_of_the_counts():
    counts = np.zeros(1 << 16, np.int64)
    forms.add_counts(np.array([-1, -1, 0, 5], np.int8), counts)
    forms.add_counts(np.array([-1, -1, -1, -1], np.int16), counts)
    expected = 6 / 8 * math.log2(8 / 6) + 2 * 1 / 8 * math.log2(8)
    assert forms.entropy(counts) == pytest.approx(expected)
    assert forms.entropy(np.zeros(1 << 16, np.int64)) == 0.0
