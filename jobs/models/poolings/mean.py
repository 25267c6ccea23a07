"""The mean over tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """Average the states that count."""
    total, count = weighted(states, mask)
    return total / count


def places(mask: Tensor) -> Tensor:
    """Number the tokens of a row, from 1."""
    return torch.arange(1, mask.shape[1] + 1, device=mask.device)


def weighted(states: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum states [n, L, width] times weights [n, L] to [n, width], and the weights to [n, 1]."""
    weights = weights.to(states.dtype)
    # A product, where a division of sums would do, keeps the padding's exact zeros out of the rounding.
    return torch.einsum("nlc,nl->nc", states, weights), weights.sum(1, keepdim=True).clamp(min=1e-9)
