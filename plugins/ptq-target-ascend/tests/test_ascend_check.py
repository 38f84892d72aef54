"""Each code is found where it should be, and nothing in our own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import ptq_core
from ptq_core.api import Finding
from ptq_target_ascend import check
from tests import tiny_models as tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """A small network's and a transformer's file with Q/DQ and for the compiler."""
    folder = tmp_path_factory.mktemp("check")
    made = {}
    for name in ("conv_bn_relu", "transformer"):
        model = getattr(tiny, name)()
        source = tiny.save(model, folder, f"{name}.onnx")
        data = [tiny.feeds(model, seed=seed, batch=1) for seed in range(4)]
        ptq_core.quantize(source, folder / f"{name}_q.onnx", target="ASCEND", data=data)
        for kind in ("q", "q_deploy"):
            made[f"{name}_{kind}"] = onnx.load(folder / f"{name}_{kind}.onnx")
    return made


def findings(model: onnx.ModelProto) -> list[Finding]:
    return list(check(model.SerializeToString()))


def test_our_own_files_are_clean(files: dict[str, onnx.ModelProto]) -> None:
    assert all(not findings(model) for model in files.values())


def nth(model: onnx.ModelProto, op_type: str, index: int = 0) -> onnx.NodeProto:
    return [one for one in model.graph.node if one.op_type == op_type][index]


def put(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    found = next(one for one in model.graph.initializer if one.name == name)
    found.CopyFrom(numpy_helper.from_array(array, name))


def get(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(o for o in model.graph.initializer if o.name == name))


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def whole_scale(model: onnx.ModelProto) -> None:
    set_attribute(nth(model, "AscendQuant"), "scale", 20)


def negative_scale(model: onnx.ModelProto) -> None:
    set_attribute(nth(model, "AscendQuant"), "scale", -2.0)


def half_offset(model: onnx.ModelProto) -> None:
    set_attribute(nth(model, "AscendQuant"), "offset", 0.5)


def unsigned_offset(model: onnx.ModelProto) -> None:
    set_attribute(nth(model, "AscendQuant"), "offset", 200.0)


def wide_codes(model: onnx.ModelProto) -> None:
    set_attribute(nth(model, "AscendQuant"), "dst_type", "INT16")


def other_reader(model: onnx.ModelProto) -> None:
    codes = nth(model, "AscendQuant").output[0]
    model.graph.node.append(helper.make_node("Relu", [codes], ["other"], "other"))


def float_weights(model: onnx.ModelProto) -> None:
    name = nth(model, "Conv").input[1]
    put(model, name, get(model, name).astype(np.float32))


def float_bias(model: onnx.ModelProto) -> None:
    name = nth(model, "Conv").input[2]
    put(model, name, get(model, name).astype(np.float32))


def short_bias(model: onnx.ModelProto) -> None:
    name = nth(model, "Conv").input[2]
    put(model, name, get(model, name)[:-1])


def no_dequant(model: onnx.ModelProto) -> None:
    conv = nth(model, "Conv")
    dequant = next(o for o in model.graph.node if o.input[0] == conv.output[0])
    model.graph.node.remove(dequant)
    conv.output[0] = dequant.output[0]


def float_param(model: onnx.ModelProto) -> None:
    name = nth(model, "AscendDequant").input[1]
    put(model, name, get(model, name).astype(np.float32))


def short_param(model: onnx.ModelProto) -> None:
    name = nth(model, "AscendDequant").input[1]
    put(model, name, get(model, name)[:-1])


def offset_of_weights(model: onnx.ModelProto) -> None:
    name = nth(model, "AscendDequant").input[1]
    put(model, name, get(model, name) | np.uint64(1 << 32))


def zero_scale(model: onnx.ModelProto) -> None:
    name = nth(model, "AscendDequant").input[1]
    put(model, name, get(model, name) * np.uint64(0))


def left_qdq(model: onnx.ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["left"], "left_over")
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (whole_scale, "A-QUANT-SCALE"),
        (negative_scale, "A-QUANT-SCALE"),
        (half_offset, "A-QUANT-OFFSET"),
        (unsigned_offset, "A-QUANT-OFFSET"),
        (wide_codes, "A-QUANT-TYPE"),
        (other_reader, "A-DEPLOY-OPERATOR"),
        (float_weights, "A-DEPLOY-WEIGHT"),
        (float_bias, "A-DEPLOY-BIAS"),
        (short_bias, "A-DEPLOY-BIAS"),
        (no_dequant, "A-DEPLOY-DEQUANT"),
        (float_param, "A-DEPLOY-PARAM"),
        (short_param, "A-DEPLOY-PARAM"),
        (offset_of_weights, "A-DEPLOY-PARAM"),
        (zero_scale, "A-DEPLOY-PARAM"),
        (left_qdq, "A-DEPLOY-QDQ"),
    ],
)
def test_each_code(
    change: Callable[[onnx.ModelProto], None], code: str, files: dict[str, onnx.ModelProto]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(files["conv_bn_relu_q_deploy"])
    change(model)
    assert {one.code for one in findings(model)} == {code}


def test_the_bias_of_a_product(files: dict[str, onnx.ModelProto]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(files["transformer_q_deploy"])
    sums = {one.output[0] for one in model.graph.node if one.op_type == "MatMul"}
    int32 = {o.name for o in model.graph.initializer if o.data_type == onnx.TensorProto.INT32}
    add = next(o for o in model.graph.node if o.op_type == "Add" and o.input[0] in sums
               and o.input[1] in int32)  # fmt: skip
    put(model, add.input[1], get(model, add.input[1]).astype(np.float32))
    (found,) = findings(model)
    assert (found.code, found.node) == ("A-DEPLOY-BIAS", add.name or add.output[0])


def test_a_bias_that_is_cut_off(files: dict[str, onnx.ModelProto]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(files["conv_bn_relu_q"])
    name = next(o.name for o in model.graph.initializer if o.data_type == onnx.TensorProto.INT32
                and o.name.endswith("_quantized"))  # fmt: skip
    codes = get(model, name).copy()
    codes[0] = np.iinfo(np.int32).min
    put(model, name, codes)
    (found,) = findings(model)
    assert (found.code, found.tensor) == ("A-BIAS-RANGE", name)


def test_every_code_is_documented() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "ascend-target.md"
    source = Path(__file__).parents[1] / "src" / "ptq_target_ascend" / "findings.py"
    words = source.read_text().replace('"', " ").replace(",", " ").split()
    codes = {word for word in words if word.startswith(("A-", "A-DEPLOY"))}
    assert len(codes) == 10
    assert all(f"`{code}`" in page.read_text() for code in codes)
