"""What a rule hands over."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir


class Suspicion(NamedTuple):
    """Something that a rule has found; it counts where the target lists the code."""

    code: str
    node: ir.Node | None  # None: it is the whole model's
    tensor: str
    message: str
