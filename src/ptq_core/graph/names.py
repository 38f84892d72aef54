"""Names that a model does not use yet."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


class Names:
    """The names of a model's tensors and nodes, bodies included, and the ones added since."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {name for graph in model.graphs() for name in _names(graph)}

    def free(self, wanted: str) -> str:
        """A name that is free; the wanted one, or with a number behind it."""
        unique, count = wanted, 0
        while unique in self._taken:
            count += 1
            unique = f"{wanted}_{count}"
        self._taken.add(unique)
        return unique


def _names(graph: ir.Graph) -> Iterator[str]:
    for value in (*graph.inputs, *graph.initializers.values()):
        yield value.name or ""
    for node in graph:
        yield node.name or ""
        for output in node.outputs:
            yield output.name or ""
