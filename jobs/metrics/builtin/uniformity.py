"""Uniformity of embeddings on the sphere, Wang and Isola 2020 (arXiv:2005.10242)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNIFORMITY_ROWS = 5000
"""Uniformity compares all pairs of at most so many rows, evenly spaced."""

ROWS_AT_ONCE = 1024


def uniformity(unit: Tensor) -> float | None:
    """Compute the log of the mean over pairs of distinct rows of exp(-2 |x - y|^2); unit [n, D]. Lower is more uniform.
    None for a single row."""
    if len(unit) < 2:
        return None
    unit = unit[_compared(len(unit))]
    total, n = 0.0, len(unit)
    for start in range(0, n, ROWS_AT_ONCE):
        total += float(_near(unit, start).sum(dtype=torch.float64))
    return float(np.log(total / (n * (n - 1))))


def uniformity_without(unit: Tensor, blocks: NDArray[np.int64]) -> list[float]:
    """Compute uniformity without each block of rows. blocks [n]: of each row, from 0."""
    chosen = _compared(len(unit))
    unit, block = unit[chosen], torch.from_numpy(blocks)[chosen]
    count = int(blocks.max()) + 1
    member = torch.nn.functional.one_hot(block, count).double()
    sums = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, len(unit), ROWS_AT_ONCE):
        near = _near(unit, start).double()
        sums += member[start : start + len(near)].T @ (near @ member)
    left = len(unit) - member.sum(0)
    totals = sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()
    return torch.log(totals / (left * (left - 1))).tolist()


def _compared(rows: int) -> slice | Tensor:
    """Choose the rows of which pairs are compared."""
    if rows <= UNIFORMITY_ROWS:
        return slice(None)
    return torch.linspace(0, rows - 1, UNIFORMITY_ROWS, dtype=torch.float64).long()


def _near(unit: Tensor, start: int) -> Tensor:
    """Compute exp(-2 |x - y|^2) of some rows against all, 0 of a row against itself."""
    part = unit[start : start + ROWS_AT_ONCE]
    # |x - y|^2 = 2 - 2 x.y; rounding may put it just below 0.
    near = torch.exp(-4 * (1 - part @ unit.T).clamp_min(0))
    near.diagonal(start).zero_()
    return near
