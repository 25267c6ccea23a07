"""Mean cosine of random pairs, Ethayarajh 2019 (arXiv:1909.00512): 0 where embeddings point everywhere alike, near 1 in
a narrow cone. Lower is more isotropic. It is the mean over all pairs of distinct rows, so that no draw is in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 8192


def random_pair_cosine(embeddings: Tensor) -> float | None:
    """Compute the mean cosine of two distinct rows of embeddings [n, D]. None of a single row."""
    count = len(embeddings)
    if count < 2:
        return None
    sums, squares = torch.zeros(embeddings.shape[1], dtype=torch.float64), 0.0
    for part in embeddings.split(ROWS_AT_ONCE):
        rows = F.normalize(part.double(), dim=-1)
        sums, squares = sums + rows.sum(0), squares + float(rows.square().sum())
    # The sum over all ordered pairs is the square of the sum, without the rows with themselves.
    return (float(sums.square().sum()) - squares) / (count * (count - 1))
