"""The mean over tokens, later ones weighing more (Muennighoff 2022, arXiv:2202.08904)."""

from __future__ import annotations

from torch import Tensor

from jobs.models.poolings.mean import places, weighted


def weightedmean(states: Tensor, mask: Tensor) -> Tensor:
    """Average the states that count, each weighted by its position, from 1."""
    total, count = weighted(states, mask * places(mask))
    return total / count
