"""The mean over tokens, of the first layer and the last (Su et al. 2021, arXiv:2103.15316)."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.models.poolings.mean import mean


def first_last(states: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    """Average the states that count, of both layers as the encoder gives them."""
    both = (first + states) / 2
    return mean(both if both.dtype == torch.float64 else both.float(), mask)
