"""Archives ``.ptqz``: models entropy-coded for distribution, given back byte for byte.

``pack`` finds where a model's constants lie in its file, stores each in the form that suits it, and
the rest compressed; ``unpack`` puts the files together again; ``load`` gives the model to a
runtime without writing it.
"""

from __future__ import annotations

from ptq_core.archive.packing import pack
from ptq_core.archive.report import PackedTensor, PackReport, UnpackReport
from ptq_core.archive.unpacking import load, unpack

__all__ = ["PackReport", "PackedTensor", "UnpackReport", "load", "pack", "unpack"]
