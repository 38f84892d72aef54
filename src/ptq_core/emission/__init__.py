"""Write the integer model."""

from __future__ import annotations

from ptq_core.emission.qdq import emit

__all__ = ["emit"]
