"""InfoNCE, van den Oord et al. 2018 (arXiv:1807.03748), computed as softplus of v, which does not cancel."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.losses.spec import RowLoss, RowSums


def value(sums: RowSums) -> Tensor:
    """Compute log(1 + exp v) of each row."""
    return torch.logaddexp(sums.v, torch.zeros_like(sums.v))


infonce = RowLoss(value, lambda sums: torch.sigmoid(sums.v).expand(2, *sums.v.shape))
