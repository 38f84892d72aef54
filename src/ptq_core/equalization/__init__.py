"""Cross-layer equalization: rescale channels so that one weight scale per layer serves them all.

A channel between two layers may be divided by any positive factor if the weights that read it are
multiplied by the same: Relu, pools and residual sums let it pass. Which channels may be rescaled
and which belong together is found once (``channels``); the factors come from the weights alone
(``ranges``) or, much better, from the weights and a look at some samples (``noise``).
"""

from __future__ import annotations

from ptq_core.equalization.model import Equalization, equalize, rescale, watched
from ptq_core.equalization.statistics import ChannelStatistics, Watched, observe

__all__ = [
    "ChannelStatistics",
    "Equalization",
    "Watched",
    "equalize",
    "observe",
    "rescale",
    "watched",
]
