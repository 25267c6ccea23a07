"""The sum over tokens, divided by the root of their count."""

from __future__ import annotations

from torch import Tensor

from jobs.models.poolings.mean import weighted


def mean_sqrt_len_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Sum the states that count, and divide by the root of their count."""
    total, count = weighted(states, mask)
    return total / count.sqrt()
