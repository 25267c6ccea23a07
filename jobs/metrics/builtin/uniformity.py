"""Uniformity of embeddings on the sphere, Wang and Isola 2020 (arXiv:2005.10242)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

UNIFORMITY_ROWS = 5000
"""Uniformity compares all pairs of at most so many rows, evenly spaced."""

ROWS_AT_ONCE = 1024


def uniformity(unit: Tensor) -> float | None:
    """Compute the log of the mean over pairs of distinct rows of exp(-2 |x - y|^2); unit [n, D]. Lower is more uniform.
    None for a single row."""
    if len(unit) < 2:
        return None
    if len(unit) > UNIFORMITY_ROWS:
        unit = unit[torch.linspace(0, len(unit) - 1, UNIFORMITY_ROWS, dtype=torch.float64).long()]
    total, n = 0.0, len(unit)
    for start in range(0, n, ROWS_AT_ONCE):
        part = unit[start : start + ROWS_AT_ONCE]
        # |x - y|^2 = 2 - 2 x.y; rounding may put it just below 0.
        near = torch.exp(-4 * (1 - part @ unit.T).clamp_min(0))
        near.diagonal(start).zero_()
        total += float(near.sum(dtype=torch.float64))
    return float(np.log(total / (n * (n - 1))))
