"""The largest value of each column."""

from __future__ import annotations

from torch import Tensor


def max(states: Tensor, mask: Tensor) -> Tensor:  # noqa: A001
    """Take the largest of the states that count, column by column."""
    return states.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)
