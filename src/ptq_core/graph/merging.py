"""Put operators together that exporters write as several."""

from __future__ import annotations

from collections.abc import Collection

from ptq_core.graph.prepared import Prepared


def merge_operators(prepared: Prepared, names: Collection[str]) -> None:
    """Recognise these operators in what stands for them, and write each as one node."""
