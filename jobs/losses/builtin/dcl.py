"""Decoupled contrastive loss, Yeh et al. 2022 (arXiv:2110.06848): v, without the positive in the denominator."""

from __future__ import annotations

import torch

from jobs.losses.spec import RowLoss

dcl = RowLoss(
    lambda sums: sums.v.masked_fill(sums.v == -torch.inf, 0.0),
    lambda sums: sums.has_negatives.expand(2, *sums.v.shape),
)
