"""The mean over tokens, of the first layer and the last (Su et al. 2021, arXiv:2103.15316)."""

from __future__ import annotations

from torch import Tensor

from jobs.models.poolings.mean import mean


def first_last(states: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    """Average the states that count, of both layers, whose sum is made in the encoder's precision."""
    both = (first + states.to(first.dtype)) / 2
    return mean(both.to(states.dtype), mask)
