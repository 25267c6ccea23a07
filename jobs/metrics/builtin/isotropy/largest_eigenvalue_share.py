"""Share of the largest eigenvalue of the covariance of unit rows: 1 / D where they spread alike in all directions, 1 on
a line. Lower is more isotropic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def largest_eigenvalue_share(embeddings: Tensor) -> float | None:
    """Compute the share of the variance along the direction that has most of it. embeddings [n, D], of any length.
    None where there is no variance."""
    rows = F.normalize(embeddings.double(), dim=-1)
    rows = rows - rows.mean(0)
    covariance = rows.T @ rows if rows.shape[1] <= len(rows) else rows @ rows.T
    total = float(covariance.trace())
    # What rounding leaves of n rows that are equal is no variance.
    return float(torch.linalg.eigvalsh(covariance)[-1]) / total if total > 1e-12 * len(rows) else None
