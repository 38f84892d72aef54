"""``skip_quant_node``: which nodes the user's patterns name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import onnx_ir as ir

from ptq_core.errors import ConfigError, Location, Problem, did_you_mean
from ptq_core.graph import operators as ops
from ptq_core.graph.prepared import Prepared


def match_nodes(
    prepared: Prepared, patterns: Iterable[str], location: Location | None = None
) -> frozenset[str]:
    """Keys of the nodes that the patterns name: exact names, globs, ``type:OPERATOR``.

    Raises:
        ConfigError: patterns that match nothing, all at once, each with a suggestion.
    """
    nodes = list(prepared.model.graph.all_nodes())
    found: set[str] = set()
    problems: list[Problem] = []
    for pattern in patterns:
        matched = [node for node in nodes if _matches(prepared, node, pattern)]
        found.update(ops.key(node) for node in matched)
        if not matched:
            where = location or Location(section="common_quant_param")
            problems.append(_matches_nothing(prepared, nodes, pattern, where))
    if problems:
        raise ConfigError(problems=problems)
    return frozenset(found)


def _matches(prepared: Prepared, node: ir.Node, pattern: str) -> bool:
    if pattern.casefold().startswith("type:"):
        return node.op_type.casefold() == pattern[5:].strip().casefold()
    names = prepared.names(node)
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _matches_nothing(
    prepared: Prepared, nodes: list[ir.Node], pattern: str, location: Location
) -> Problem:
    if pattern in prepared.removed:
        return Problem(
            message=f"skip_quant_node: '{pattern}' is no longer there when quantization starts: "
            f"{prepared.removed[pattern]}",
            location=location,
            hint="take it out of skip_quant_node",
        )
    if pattern.casefold().startswith("type:"):
        hint = did_you_mean(pattern[5:], sorted({node.op_type for node in nodes}))
    else:
        names = (name for node in nodes for name in prepared.names(node))
        hint = did_you_mean(pattern, dict.fromkeys(names))
    return Problem(
        message=f"skip_quant_node: '{pattern}' matches no node of the model",
        location=location,
        hint=hint + "; `ptq plan MODEL` lists the names",
    )
