"""InfoNCE by textbook cross entropy, whose p - 1 cancels; kept to measure the difference."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.losses.spec import RowLoss, RowSums


def weights(sums: RowSums) -> Tensor:
    """Compute weights, the positive's in the loss's dtype by the subtraction that every softmax minus one-hot is."""
    cross_entropy = sums.streamed.to(sums.dtype)
    return torch.stack([torch.exp(sums.v - sums.streamed), (1 - torch.exp(-cross_entropy)).double()])


infonce_ce = RowLoss(lambda sums: sums.streamed, weights, textbook=True)
