from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ptq_core.graph.model import serialize
from ptq_core.graph.prepare import prepare
from ptq_core.graph.prepared import Prepared

ALL = ("Gelu", "LayerNormalization", "LpNormalization")
ROOT = math.sqrt(2)
TANH = math.sqrt(2 / math.pi)

# A line for each node: operator, inputs (numbers are constants), result.
ERF = ["Div x 1.4142135 d", "Erf d e", "Add e 1 a"]
GELUS = {
    "factors in a row": [*ERF, "Mul x a m", "Mul m 0.5 y"],
    "half of x first": [*ERF, "Mul x 0.5 h", "Mul h a y"],
    "half of the sum first": [*ERF, "Mul a 0.5 h", "Mul h x y"],
    "divided by two": [*ERF, "Mul a x m", "Div m 2 y"],
    "with the reciprocal": ["Mul 0.70710677 x d", "Erf d e", "Add 1 e a", "Mul a x m",
                            "Mul 0.5 m y"],
    "halves apart": ["Div x 1.4142135 d", "Erf d e", "Mul 0.5 e f", "Add f 0.5 a", "Mul x a y"],
    "root computed": ["Sqrt 2 s", "Div x s d", "Erf d e", "Add e 1 a", "Mul x a m", "Mul m 0.5 y"],
}  # fmt: skip
INNER = ["Mul q 0.7978845608 t", "Tanh t e", "Add e 1 a", "Mul x 0.5 h", "Mul h a y"]
TANHS = {
    "power": ["Pow x 3 p", "Mul p 0.044715 c", "Add x c q", *INNER],
    "products": ["Mul x x s", "Mul s x p", "Mul 0.044715 p c", "Add c x q", *INNER],
    "factored out": ["Mul x x s", "Mul s 0.044715 p", "Add p 1 c", "Mul x c q", *INNER],
}
CENTRED = ["ReduceMean x [-1] m", "Sub x m d"]
NORMALIZED = {
    "power": [*CENTRED, "Pow d 2 p", "ReduceMean p [-1] v", "Add v 1e-5 w", "Sqrt w s",
              "Div d s n"],
    "product": [*CENTRED, "Mul d d p", "ReduceMean p [2] v", "Add 1e-5 v w", "Sqrt w s",
                "Div d s n"],
    "centred twice": [*CENTRED, "Sub x m c", "Pow c 2 p", "ReduceMean p [-1] v", "Add v 1e-5 w",
                      "Sqrt w s", "Div d s n"],
    "reciprocal": [*CENTRED, "Mul d d p", "ReduceMean p [-1] v", "Add v 1e-5 w", "Sqrt w s",
                   "Reciprocal s r", "Mul d r n"],
    "negative power": [*CENTRED, "Mul d d p", "ReduceMean p [-1] v", "Add v 1e-5 w",
                       "Pow w -0.5 r", "Mul d r n"],
}  # fmt: skip
AFFINE = ["Mul n factor f", "Add summand f y"]


def made(
    lines: list[str],
    opset: int = 20,
    end: str = "y",
    shape: Sequence[int | str] | None = ("N", 3, 16),
    **constants: np.ndarray,
) -> onnx.ModelProto:
    draw = np.random.default_rng(5)
    arrays = {
        "factor": draw.uniform(0.5, 2, 16).astype(np.float32),
        "summand": draw.standard_normal(16).astype(np.float32),
    }
    nodes = []
    for line in lines:
        op_type, *operands, result = line.split()
        for text in operands:
            if text.startswith("["):
                arrays[text] = np.array([int(text[1:-1])], np.int64)
            elif text.lstrip("-")[0].isdigit():
                arrays[text] = np.array(float(text), np.float32)
        nodes.append(helper.make_node(op_type, operands, [result], f"/{op_type}_{result}"))
    arrays |= constants
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "written out",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def merged(model: onnx.ModelProto, *names: str) -> Prepared:
    return prepare(ir.from_proto(model), 13, merge=names or ALL)


def run(content: bytes, given: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": given})[0]


def assert_same(
    model: onnx.ModelProto,
    prepared: Prepared,
    shape: Sequence[int] = (2, 3, 16),
    tolerance: float = 3e-6,
) -> None:
    given = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 2
    found, wanted = run(serialize(prepared.model), given), run(model.SerializeToString(), given)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


def operators(prepared: Prepared) -> Counter[str]:
    return Counter(node.op_type for node in prepared.model.graph)


@pytest.mark.parametrize("name", GELUS)
def test_gelu_of_erf(name: str) -> None:
    model = made(GELUS[name])
    prepared = merged(model)
    assert operators(prepared) == {"Gelu": 1}
    assert_same(model, prepared)
    assert "1 x Gelu put together from simpler operators" in prepared.notes


@pytest.mark.parametrize("name", TANHS)
def test_gelu_of_tanh(name: str) -> None:
    model = made(TANHS[name])
    prepared = merged(model)
    assert operators(prepared) == {"Gelu": 1}
    (node,) = prepared.model.graph
    assert node.attributes["approximate"].value == "tanh"
    assert_same(model, prepared)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", NORMALIZED)
def test_layer_normalization(name: str, affine: bool) -> None:
    lines = NORMALIZED[name] + AFFINE * affine
    model = made(lines, end="y" if affine else "n")
    prepared = merged(model)
    assert operators(prepared) == {"LayerNormalization": 1}
    (node,) = prepared.model.graph
    assert len(node.inputs) == (3 if affine else 2)
    assert_same(model, prepared)


def test_small_numbers_are_normalized_with_the_same_epsilon() -> None:
    model = made([*NORMALIZED["power"], *AFFINE])
    given = np.random.default_rng(1).standard_normal((1, 3, 16)).astype(np.float32) * 1e-3
    found = run(serialize(merged(model).model), given)
    np.testing.assert_allclose(found, run(model.SerializeToString(), given), atol=3e-6)


def test_factors_of_another_form_stay_behind_the_normalization() -> None:
    model = made([*NORMALIZED["power"], "Mul n 3 f", "Add f 1 y"])
    prepared = merged(model)
    assert operators(prepared) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}
    assert_same(model, prepared)


LENGTHS = {
    "divided": ["ReduceL2 x [-1] n", "Div x n y"],
    "clipped": ["ReduceL2 x [-1] n", "Clip n 1e-12 c", "Div x c y"],
    "at least": ["ReduceL2 x [2] n", "Max n 1e-8 c", "Div x c y"],
    "along another axis": ["ReduceL2 x [1] n", "Div x n y"],
}


@pytest.mark.parametrize("name", LENGTHS)
def test_division_by_the_length(name: str) -> None:
    model = made(LENGTHS[name])
    prepared = merged(model)
    assert operators(prepared) == {"LpNormalization": 1}
    assert_same(model, prepared)


def test_parts_are_still_names_of_the_node() -> None:
    prepared = merged(made(GELUS["factors in a row"]))
    (node,) = prepared.model.graph
    assert node.name == "/Mul_y"
    assert {"/Div_d", "/Erf_e", "/Add_a", "/Mul_m", "/Mul_y"} <= set(prepared.names(node))


def test_what_others_read_stays() -> None:
    model = made([*GELUS["factors in a row"], "Add y e z"], end="z")
    prepared = merged(model)
    assert operators(prepared) == {"Gelu": 1, "Div": 1, "Erf": 1, "Add": 1}
    assert_same(model, prepared)


OTHERS = {
    "another factor": [*ERF, "Mul x a m", "Mul m 0.4 y"],
    "another scale": ["Div x 1.5 d", "Erf d e", "Add e 1 a", "Mul x a m", "Mul m 0.5 y"],
    "of two tensors": ["Div x 1.4142135 d", "Erf d e", "Add e 1 a", "Neg x n", "Sin n o",
                       "Mul o a m", "Mul m 0.5 y"],
    "over another axis": ["ReduceMean x [1] m", "Sub x m d", "Mul d d p", "ReduceMean p [1] v",
                          "Add v 1e-5 w", "Sqrt w s", "Div d s y"],
    "a floor that counts": ["ReduceL2 x [-1] n", "Clip n 3 c", "Div x c y"],
    "length of something else": ["Sin x s", "ReduceL2 s [-1] n", "Div x n y"],
    "a ceiling": ["ReduceL2 x [-1] n", "Clip n 1e-12 3 c", "Div x c y"],
    "another ceiling": ["ReduceL2 x [-1] n", "Max n 1e-8 5 c", "Div x c y"],
    "not centred": ["Mul x x p", "ReduceMean p [-1] v", "Add v 1e-5 w", "Sqrt w s", "Div x s y"],
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_alike_stays(name: str) -> None:
    model = made(OTHERS[name])
    prepared = merged(model)
    assert sum(operators(prepared).values()) == len(OTHERS[name])
    assert_same(model, prepared)


RANK_5 = (1, 1, 1, 1)
EPSILON = np.full((*RANK_5, 1), 1e-5, np.float32)
FURTHER_AXES = {  # how many nodes are left where numbers bring further dimensions
    "half": (GELUS["factors in a row"], {"0.5": np.full((*RANK_5, 1), 0.5, np.float32)}, 5),
    "one": (GELUS["factors in a row"], {"1": np.ones((*RANK_5, 1), np.float32)}, 5),
    "epsilon": ([*NORMALIZED["power"], *AFFINE], {"1e-5": EPSILON}, 9),
    "factor": (
        [*NORMALIZED["power"], *AFFINE], {"factor": np.full((*RANK_5, 16), 2, np.float32)}, 3,
    ),
    "summand": (
        [*NORMALIZED["power"], *AFFINE], {"summand": np.full((*RANK_5, 16), 2, np.float32)}, 2,
    ),
    "guard": (LENGTHS["at least"], {"1e-8": np.full((*RANK_5, 1), 1e-8, np.float32)}, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", FURTHER_AXES)
def test_what_adds_dimensions_stays(name: str) -> None:
    lines, given, left = FURTHER_AXES[name]
    model = made(lines, **given)
    prepared = merged(model)
    assert sum(operators(prepared).values()) == left
    assert_same(model, prepared)


OPEN_WIDTHS = {
    "no rank, and axis 2": (None, (2, 3, 4, 16), "[2]", "factor"),
    "no width, one factor for all": (("N", 3, "W"), (2, 3, 16), "[-1]", "single"),
    "no width, the factors repeat": (("N", 3, "W"), (2, 3, 1), "[-1]", "factor"),
}


@pytest.mark.parametrize("name", OPEN_WIDTHS)
def test_a_normalization_of_unknown_width_stays(name: str) -> None:
    declared, shape, axis, factor = OPEN_WIDTHS[name]
    lines = [one.replace("[-1]", axis) for one in NORMALIZED["product"]]
    lines = [one.replace("[2]", axis) for one in lines]
    model = made([*lines, f"Mul n {factor} y"], shape=declared, single=np.array([2], np.float32))
    prepared = merged(model)
    assert operators(prepared)["LayerNormalization"] == 0
    assert_same(model, prepared, shape)


def test_names_that_are_taken() -> None:
    model = made([*NORMALIZED["power"], "Neg x y_factor", "Mul n factor y", "Mul y y_factor z"],
                 end="z")  # fmt: skip
    prepared = merged(model)
    assert operators(prepared) == {"LayerNormalization": 1, "Neg": 1, "Mul": 1}
    assert_same(model, prepared)


SPELLINGS = [
    *GELUS.values(), *TANHS.values(), *LENGTHS.values(),
    *([*lines, "Mul n factor f", "Add f summand y"] for lines in NORMALIZED.values()),
]  # fmt: skip
ALIKE = [{"Add", "Sub", "Mul", "Div", "Pow"}, {"Sqrt", "Reciprocal", "Tanh", "Erf", "Neg"},
         {"ReduceMean", "ReduceL2"}]  # fmt: skip


@st.composite
def near_misses(draw: st.DrawFn) -> list[str]:
    """A spelling with one operator, operand or number replaced by another."""
    lines = [line.split() for line in draw(st.sampled_from(SPELLINGS))]
    index = draw(st.integers(0, len(lines) - 1))
    op_type, *operands, _ = line = lines[index]
    number = next((at for at, one in enumerate(operands, 1) if one[-1].isdigit()), None)
    change = draw(st.sampled_from(["operator", "operand", "swap", *["number"] * bool(number)]))
    if change == "operator":
        kind = next((kind for kind in ALIKE if op_type in kind), {op_type})
        line[0] = draw(st.sampled_from(sorted(kind)))
    elif change == "operand" and not operands[0].startswith("["):
        line[1] = draw(st.sampled_from(["x", *(one[-1] for one in lines[:index])]))
    elif change == "swap" and op_type != "Clip" and not operands[-1].startswith("["):
        line[1:-1] = reversed(operands)
    elif number is not None:
        line[number] = str(float(line[number]) * draw(st.sampled_from([0.5, 0.9, 0.999, 1.001, 2])))
    return [" ".join(one) for one in lines]


@settings(max_examples=100, deadline=None)
@given(near_misses())
def test_near_misses_compute_the_same(lines: list[str]) -> None:
    model = made(lines)
    prepared = merged(model)
    assert_same(model, prepared, tolerance=1e-5)


def test_only_what_is_asked_for() -> None:
    lines = [line.replace(" x", " y") for line in NORMALIZED["power"]]
    lines = [line.replace(" m", " mean").replace(" d", " c") for line in lines]
    model = made([*GELUS["factors in a row"], *lines], end="n")
    for names in (("Gelu",), ("LayerNormalization",)):
        found = operators(merged(model, *names))
        assert {name for name in ALL if found[name]} == set(names)
    assert operators(merged(model)) == {"Gelu": 1, "LayerNormalization": 1}


def test_an_older_opset_is_raised_where_that_can_be_done() -> None:
    lines = GELUS["factors in a row"]
    assert operators(merged(made(lines, opset=17)))["Gelu"] == 1
    model = made(lines, opset=17)
    given = [onnx.helper.make_node("Relu", ["a"], ["b"])]
    opsets = [onnx.helper.make_opsetid("", 17)]
    own = onnx.helper.make_function("own", "Same", ["a"], ["b"], given, opsets)
    model.functions.append(own)  # which onnx's converter leaves as it is
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    prepared = merged(model)
    assert operators(prepared)["Gelu"] == 0
    assert "Gelu is not put together: it needs opset 20" in prepared.notes
