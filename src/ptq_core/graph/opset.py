"""Raise a model's opset, only as far as the emitted operators need."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ptq_core.errors import ModelError
from ptq_core.graph.operators import has_subgraph, label

# Constants above this size travel as inputs through the converter, which would copy them.
_LARGE = 1024


def raise_opset(model: ir.Model, minimum: int) -> tuple[ir.Model, list[str]]:
    """The model at the opset, converted by onnx's own version converter where it is older.

    Raises:
        ModelError: the converter cannot do it.
    """
    found = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 1))
    if found >= minimum:
        return model, []
    hint = f"export the model again with opset {minimum} or newer"
    bodies = [node for node in model.graph if has_subgraph(node)]
    if bodies or model.functions:
        what = f"control flow ('{label(bodies[0])}')" if bodies else "functions"
        raise ModelError(
            f"its opset is {found}, {minimum} is needed, and models with {what} cannot be upgraded",
            hint=hint,
        )
    parked = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > _LARGE
    }
    for name in parked:
        value = model.graph.initializers.pop(name)
        model.graph.inputs.append(value)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), minimum)
    except Exception as error:
        for name, tensor in parked.items():  # as it was: the caller may make do with less
            value = next(one for one in model.graph.inputs if one.name == name)
            model.graph.inputs.remove(value)
            value.const_value = tensor
            model.graph.register_initializer(value)
        raise ModelError(
            f"its opset is {found}, {minimum} is needed, and the upgrade failed: {error}", hint=hint
        ) from error
    raised = ir.from_proto(proto)
    inputs = {value.name: value for value in raised.graph.inputs}
    for name, tensor in parked.items():
        value = inputs[name]
        raised.graph.inputs.remove(value)
        value.const_value = tensor
        raised.graph.register_initializer(value)
    return raised, [f"opset raised from {found} to {minimum}"]
