"""Uniformity of embeddings on the sphere, Wang and Isola 2020 (arXiv:2005.10242). Lower is more uniform."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.outcomes import Outcomes

UNIFORMITY_ROWS = 5000
"""Uniformity compares all pairs of at most so many rows, evenly spaced."""

ROWS_AT_ONCE = 1024


def uniformity(embeddings: Tensor) -> Outcomes | None:
    """Compute it of embeddings [n, D], of any length; and without blocks of rows, each of which has its k-th part of
    the embeddings where there are k times as many of these. None for a single one."""
    unit = F.normalize(embeddings, dim=-1)
    value = over_pairs(unit)
    if value is None:
        return None
    return Outcomes(value, without=lambda blocks: over_pairs_without(unit, np.tile(blocks, len(unit) // len(blocks))))


def over_pairs(unit: Tensor) -> float | None:
    """Compute the log of the mean over pairs of distinct rows of exp(-2 |x - y|^2); unit [n, D]. Lower is more uniform.
    None for a single row."""
    if len(unit) < 2:
        return None
    unit = unit[_compared(len(unit))]
    total, n = 0.0, len(unit)
    for start in range(0, n, ROWS_AT_ONCE):
        total += float(_near(unit, start).sum(dtype=torch.float64))
    return float(np.log(total / (n * (n - 1))))


def over_pairs_without(unit: Tensor, blocks: NDArray[np.int64]) -> list[float]:
    """Compute uniformity without each block of rows. blocks [n]: of each row, from 0."""
    chosen = _compared(len(unit))
    unit, block = unit[chosen], torch.from_numpy(blocks)[chosen]
    count = int(blocks.max()) + 1
    member = F.one_hot(block, count).double()
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
