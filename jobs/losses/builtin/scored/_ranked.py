"""The ranking that CoSENT and AnglE share."""

from __future__ import annotations

import torch
from torch import Tensor


def ranking(similarity: Tensor, scores: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute log(1 + sum of exp((s_k - s_i) / temperature)) over all i, k with a higher score of i. Both [B]."""
    differences = (similarity - similarity[:, None]) / temperature
    terms = differences[scores[:, None] > scores]
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)
