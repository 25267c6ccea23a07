"""Share of the largest eigenvalue of the covariance of unit rows: 1 / D where they spread alike in all directions, 1 on
a line. Lower is more isotropic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 8192


def largest_eigenvalue_share(embeddings: Tensor) -> float | None:
    """Compute the share of the variance along the direction that has most of it. embeddings [n, D], of any length.
    None where there is no variance. In parts, so that no copy in double precision is as large as a corpus."""
    parts = embeddings.split(ROWS_AT_ONCE)
    mean = sum((_unit(part).sum(0) for part in parts), start=torch.zeros(embeddings.shape[1], dtype=torch.float64))
    mean = mean / len(embeddings)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in parts:
        centred = _unit(part) - mean
        covariance += centred.T @ centred
    total = float(covariance.trace())
    # What rounding leaves of n rows that are equal is no variance.
    return float(torch.linalg.eigvalsh(covariance)[-1]) / total if total > 1e-12 * len(embeddings) else None


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.double(), dim=-1)
