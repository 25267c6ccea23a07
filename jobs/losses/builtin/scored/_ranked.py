"""The ranking that CoSENT and AnglE share."""

from __future__ import annotations

import torch
from torch import Tensor


def ranking(similarity: Tensor, scores: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute log(1 + sum of exp((s_k - s_i) / temperature)) over all i, k with a higher score of i. Both [B]."""
    differences = (similarity - similarity[:, None]) / temperature
    terms = differences[scores[:, None] > scores]
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)


def check_scores(scores: Tensor, **_: object) -> None:
    """Raise ValueError for scores [n] of which no two differ."""
    if len(scores) and bool((scores == scores[0]).all()):
        raise ValueError(
            f"all scores are {float(scores[0]):g}, so that no pair ranks above another and nothing would be learned; "
            "give rows with several scores, or another loss.name"
        )
