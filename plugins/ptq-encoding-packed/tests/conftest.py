from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from ptq_core.api import Encoded

Array = NDArray[Any]
Check = Callable[[Encoded, Array, int], None]
IR_VERSION = {13: 7, 17: 8, 18: 8, 21: 10, 25: 12}


def model_of(encoded: Encoded, shape: tuple[int, ...], opset: int) -> onnx.ModelProto:
    """``y = codes + x``, the codes decoded as core writes it."""
    values = [
        onnx_ir.to_proto(onnx_ir.tensor(array, name=name))
        for name, array in encoded.constants.items()
    ]
    imports = [helper.make_opsetid("", opset)]
    functions = []
    if encoded.function:
        function = parser.parse_function(encoded.function)
        del function.opset_import[:]
        function.opset_import.extend(imports)
        functions.append(function)
        imports.append(helper.make_opsetid(function.domain, 1))
        values.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
        names = [value.name for value in values]
        node = helper.make_node(function.name, names, ["c"], domain=function.domain)
    else:
        node = helper.make_node("Cast", [values[0].name], ["c"], to=onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["c", "x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        values,
    )
    return helper.make_model(
        graph, opset_imports=imports, functions=functions, ir_version=IR_VERSION[opset]
    )


@pytest.fixture
def decodes(tmp_path: Any) -> Check:
    """Assert that runtimes get the codes back, and that onnxruntime does so at load time."""

    def check(encoded: Encoded, codes: Array, opset: int) -> None:
        made = model_of(encoded, codes.shape, opset)
        onnx.checker.check_model(made, full_check=True)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3  # a warning says that the optimized model is for this device
        session = onnxruntime.InferenceSession(
            made.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"x": np.zeros(1, np.float32)}
        expected = codes.astype(np.float32)
        np.testing.assert_array_equal(session.run(None, feeds)[0], expected)
        left = onnx.load(options.optimized_model_filepath).graph.node
        assert [node.op_type for node in left] == ["Add"]
        np.testing.assert_array_equal(ReferenceEvaluator(made).run(None, feeds)[0], expected)

    return check
