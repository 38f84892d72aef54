"""A decoder of a transformer, in small: cross-attention, a growing cache, a tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests import tiny_models as tiny
from tests.tiny_models import node, normal

VOCABULARY, WIDTH, HEADS, HIDDEN, LAYERS = 200, 32, 2, 64, 2
HEAD = WIDTH // HEADS
OPSET = 17
Arrays = dict[str, NDArray[Any]]


def constants() -> Arrays:
    """Of both forms of the decoder."""
    found: Arrays = {
        "table": normal(VOCABULARY, WIDTH, scale=1.0),
        "heads": np.array([0, 0, HEADS, HEAD]),
        "whole": np.array([0, 0, WIDTH]),
        "root": np.asarray(HEAD**-0.5, np.float32),
    }
    for layer in range(LAYERS):
        for number, block in enumerate(("self", "cross")):
            for index, one in enumerate("qkvo"):
                seed = 100 * layer + 10 * number + index + 1
                found[f"{block}{layer}_w{one}"] = normal(WIDTH, WIDTH, seed=seed, scale=0.18)
                found[f"{block}{layer}_b{one}"] = normal(WIDTH, seed=seed, scale=0.05)
        found[f"up{layer}_w"] = normal(WIDTH, HIDDEN, seed=layer + 50, scale=0.18)
        found[f"up{layer}_b"] = normal(HIDDEN, seed=layer + 50, scale=0.05)
        found[f"down{layer}_w"] = normal(HIDDEN, WIDTH, seed=layer + 60, scale=0.12)
        found[f"down{layer}_b"] = normal(WIDTH, seed=layer + 60, scale=0.05)
        for block in ("self", "cross", "down"):
            found[f"{block}{layer}_gamma"] = np.ones(WIDTH, np.float32)
            found[f"{block}{layer}_beta"] = np.zeros(WIDTH, np.float32)
    return found


def dense(name: str, source: str, weight: str) -> list[Any]:
    """``name`` is both the result and what nodes are called after."""
    return [
        node("MatMul", f"{source} {weight}", f"{name}_m", f"{name}_matmul"),
        node("Add", f"{name}_m {weight.replace('_w', '_b')}", name, f"{name}_bias"),
    ]


def split(name: str, source: str) -> list[Any]:
    return [
        node("Reshape", f"{source} heads", f"{name}_r", f"{name}_heads"),
        node("Transpose", f"{name}_r", name, f"{name}_turn", perm=[0, 2, 1, 3]),
    ]


def attention(block: str, source: str, states: str, cached: bool) -> list[Any]:
    """With ``cached``, keys and values are behind those of the past, and given back."""
    nodes = []
    for one, given in (("q", source), ("k", states), ("v", states)):
        nodes += dense(f"{block}_{one}", given, f"{block}_w{one}")
        nodes += split(f"{block}_{one}h", f"{block}_{one}")
    keys, values = f"{block}_kh", f"{block}_vh"
    if cached:
        for kind, new in (("key", keys), ("value", values)):
            text = f"past_{kind}_{block} {new}"
            nodes.append(node("Concat", text, f"present_{kind}_{block}", f"{block}_{kind}", axis=2))
        keys, values = f"present_key_{block}", f"present_value_{block}"
    return [
        *nodes,
        node("Transpose", keys, f"{block}_kt", f"{block}_kt_turn", perm=[0, 1, 3, 2]),
        node("MatMul", f"{block}_qh {block}_kt", f"{block}_scores", f"{block}_scores_matmul"),
        node("Mul", f"{block}_scores root", f"{block}_scaled", f"{block}_scale"),
        node("Softmax", f"{block}_scaled", f"{block}_weights", f"{block}_softmax", axis=-1),
        node("MatMul", f"{block}_weights {values}", f"{block}_context", f"{block}_context_matmul"),
        node("Transpose", f"{block}_context", f"{block}_ct", f"{block}_ct_turn", perm=[0, 2, 1, 3]),
        node("Reshape", f"{block}_ct whole", f"{block}_c", f"{block}_join"),
        *dense(f"{block}_o", f"{block}_c", f"{block}_wo"),
        *residual(block, source, f"{block}_o"),
    ]


def residual(block: str, source: str, result: str) -> list[Any]:
    return [
        node("Add", f"{source} {result}", f"{block}_sum", f"{block}_add"),
        node("LayerNormalization", f"{block}_sum {block}_gamma {block}_beta", f"{block}_out",
             f"{block}_norm", axis=-1),
    ]  # fmt: skip


def body(cached: bool = True) -> list[Any]:
    """From ``ids`` and ``states`` to ``logits``."""
    nodes = [node("Gather", "table ids", "embedded", "embedding")]
    source = "embedded"
    for layer in range(LAYERS):
        nodes += attention(f"self{layer}", source, source, cached)
        nodes += attention(f"cross{layer}", f"self{layer}_out", "states", False)
        nodes += dense(f"up{layer}", f"cross{layer}_out", f"up{layer}_w")
        nodes.append(node("Relu", f"up{layer}", f"act{layer}", f"act{layer}_relu"))
        nodes += dense(f"down{layer}", f"act{layer}", f"down{layer}_w")
        nodes += residual(f"down{layer}", f"cross{layer}_out", f"down{layer}")
        source = f"down{layer}_out"
    return [
        *nodes,
        node("Transpose", "table", "table_t", "tie", perm=[1, 0]),
        node("MatMul", f"{source} table_t", "logits", "head"),
    ]


def caches(prefix: str, length: str) -> dict[str, tiny.Shape]:
    return {
        f"{prefix}_{kind}_self{layer}": ["batch", HEADS, length, HEAD]
        for layer in range(LAYERS)
        for kind in ("key", "value")
    }


def decoder() -> onnx.ModelProto:
    """One step: token ids, the encoder's states and the past; logits and the present."""
    inputs = [
        tiny.info("ids", ["batch", "new"], TensorProto.INT64),
        tiny.info("states", ["batch", "source", WIDTH]),
        *(tiny.info(name, shape) for name, shape in caches("past", "past").items()),
    ]
    outputs = {"logits": ["batch", "new", VOCABULARY], **caches("present", "total")}
    return tiny.model(body(), inputs, outputs, constants(), opset=OPSET)


def merged() -> onnx.ModelProto:
    """Both forms in an If: with the cache, or the first step, where there is none to be read.

    Constants belong to the main graph; the first branch has the names of the second with a prefix.
    """
    names = {one for each in body() for one in each.output} | {one.name for one in body()}

    def renamed(name: str) -> str:
        return f"first_{name}" if name in names else name

    kept = ["logits", *caches("present", "")]
    later = helper.make_graph(body(), "later", [], [tiny.info(name, None) for name in kept])
    first_nodes = []
    for one in body(cached=False):
        one.name = renamed(one.name)
        one.input[:] = [renamed(name) for name in one.input]
        one.output[:] = [renamed(name) for name in one.output]
        first_nodes.append(one)
    ends = ["first_logits"] + [
        f"first_self{layer}_{one}h" for layer in range(LAYERS) for one in "kv"
    ]
    first = helper.make_graph(first_nodes, "first", [], [tiny.info(name, None) for name in ends])
    outer = [f"out_{name}" for name in kept]
    inputs = [*decoder().graph.input, tiny.info("use_cache", [], TensorProto.BOOL)]
    shapes = {"logits": ["batch", "new", VOCABULARY], **caches("present", "total")}
    return tiny.model(
        [node("If", "use_cache", " ".join(outer), "if", then_branch=later, else_branch=first)],
        inputs,
        {f"out_{name}": shape for name, shape in shapes.items()},
        constants(),
        opset=OPSET,
    )


def greedy(session: Any, steps: int = 6, *, forced: list[Any] | None = None) -> list[Any]:
    """Decode from a token, a step at a time; returns the logits of all steps.

    Args:
        session: of onnxruntime, of either form.
        steps: how many.
        forced: tokens to take instead of the best ones, so that two models see the same.
    """
    names = [one.name for one in session.get_outputs()]
    switch = {one.name for one in session.get_inputs()} & {"use_cache"}
    feeds: dict[str, Any] = {
        "ids": np.array([[3, 17], [8, 5]]),
        "states": normal(2, 7, WIDTH, seed=77, scale=1.0),
        **{name: np.zeros((2, HEADS, 0, HEAD), np.float32) for name in caches("past", "")},
    }
    found = []
    for step in range(steps):
        given = {**feeds, **{name: np.array(step > 0) for name in switch}}
        results: Mapping[str, Any] = dict(zip(names, session.run(None, given), strict=True))
        logits = next(value for name, value in results.items() if name.endswith("logits"))
        found.append(logits)
        best = logits[:, -1:].argmax(-1) if forced is None else forced[step]
        feeds["ids"] = best.astype(np.int64)
        for name, value in results.items():
            if "present" in name:
                feeds[name[name.index("present") :].replace("present", "past")] = value
                assert value.shape[2] == 2 + step
    return found
