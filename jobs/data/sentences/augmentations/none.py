"""The sentence as it is: its two views differ by dropout alone, Gao et al. 2021 (arXiv:2104.08821)."""

from __future__ import annotations

from torch import Tensor


def none(tokens: Tensor) -> Tensor:
    """Return the tokens."""
    return tokens
