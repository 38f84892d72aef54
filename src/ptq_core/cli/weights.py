"""What became of the weights, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ptq_core.jobs import Report, StoredWeight

_SHOWN = 12  # weights in the summary; all with -v


def weights_json(weights: Sequence[StoredWeight]) -> list[dict[str, Any]]:
    """Every weight; what stands for each channel is in the order of its channels (or groups)."""
    return [
        {
            "name": one.tensor,
            "nodes": list(one.readers),
            "shape": list(one.shape),
            "bits": one.bits,
            "encoding": one.encoding,
            "bytes_before": one.bytes_before,
            "bytes_after": one.bytes_after,
            "bits_per_weight": one.bits_per_weight,
            "entropy": one.entropy,
            "sqnr": one.sqnr,
            "step": one.step,
            "scale": one.scale.ravel().tolist(),
            "offset": one.offset.ravel().tolist(),
            "zero_point": one.zero_point.ravel().tolist(),
            "correction_var": one.variance.ravel().tolist(),
            "correction_mean": one.mean.ravel().tolist(),
            "input_scale": None if one.input_scale is None else one.input_scale.ravel().tolist(),
        }
        for one in weights
    ]


def print_weights(console: Console, report: Report, *, every: bool = False) -> None:
    """The largest weights in a table, and what all take together."""
    from ptq_core.cli.report import size
    from ptq_core.cli.state import make_table

    weights = report.weights
    columns = ["weight", "shape", "bits", "bytes", "bits/weight", "entropy", "SQNR dB"]
    stepped = all(one.step is not None for one in weights)
    table = make_table(*columns, *(["scale"] if stepped else []))
    largest = sorted(weights, key=lambda one: -one.bytes_after)
    shown = largest if every else largest[:_SHOWN]
    for one in shown:
        table.add_row(
            one.tensor,
            "x".join(map(str, one.shape)),
            str(one.bits),
            str(one.bytes_after),
            f"{one.bits_per_weight:.2f}",
            f"{one.entropy:.2f}",
            "exact" if math.isinf(one.sqnr) else f"{one.sqnr:.1f}",
            *([] if one.step is None else [f"{one.step:.6g}"]),
        )
    console.print(table, soft_wrap=False)
    if len(shown) < len(weights):
        console.print(f"and {len(weights) - len(shown)} smaller ones; -v shows all")
    count = sum(one.size for one in weights)
    taken = sum(one.bytes_after for one in weights)
    bound = sum(one.entropy * one.size for one in weights) / count
    rest = report.bytes_after - taken
    console.print(
        f"{len(weights)} weights of {count} numbers: {size(taken)}, {8 * taken / count:.2f} bits "
        f"each with their parameters (entropy of the codes: {bound:.2f}); everything else in the "
        f"file: {size(rest)}"
    )
