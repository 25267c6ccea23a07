"""Half a cosine to 0, Loshchilov and Hutter 2017 (arXiv:1608.03983)."""

from __future__ import annotations

import math


def cosine(passed: float) -> float:
    """Return (1 + cos(pi passed)) / 2."""
    return (1 + math.cos(math.pi * passed)) / 2
