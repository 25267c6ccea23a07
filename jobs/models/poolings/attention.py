"""The mean over tokens by weights that are learned: the softmax of a linear score of each token's state.

It begins as the mean. It is that of Lin et al. 2017 (arXiv:1703.03130) with one head and no hidden layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class attention(nn.Module):  # noqa: N801 - a built-in has its module's name
    """The scores' weights w, [width], 0 at first. A bias would cancel in the softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Average the states h that count, by the softmax of w . h."""
        scores = (states @ self.weight).masked_fill(mask == 0, torch.finfo(states.dtype).min)
        # Of a row in which nothing counts, the softmax weighs all alike.
        return torch.einsum("nlc,nl->nc", states, scores.softmax(1) * mask)
