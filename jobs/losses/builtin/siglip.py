"""SigLIP, Zhai et al. 2023 (arXiv:2303.15343): the sum over kept pairs of softplus(-+(l_ij + bias)), over B."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.losses.spec import RowLoss, RowSums


def weights(sums: RowSums) -> Tensor:
    """Weigh the negatives by 1, as each has its own sigmoid already, and the positive by 1 minus its sigmoid."""
    return torch.stack([torch.ones_like(sums.v), torch.sigmoid(-sums.bias - sums.positive.expand_as(sums.v))])


siglip = RowLoss(lambda sums: sums.streamed, weights, normaliser="sigmoid", learns_bias=True, same_side=False)
