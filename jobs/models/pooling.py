"""How states of tokens become one vector: as sentence-transformers does it, of rows that are padded on the right."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(how: str, states: Tensor, mask: Tensor, *, skipped: int = 0) -> Tensor:
    """One vector of each row, [n, width]. states [n, length, width]; mask [n, length]: 1 for a token, 0 for padding.
    skipped: tokens at the beginning of each row that do not count."""
    if how == "cls":
        return states[:, skipped]
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    mask = mask * (places > skipped)
    if how == "lasttoken":
        last = (mask * places).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    if how == "max":
        return states.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)
    weights = (mask * places if how == "weightedmean" else mask).to(states.dtype)
    # A product, where a division of sums would do, keeps the padding's exact zeros out of the rounding.
    total, count = torch.einsum("nlc,nl->nc", states, weights), weights.sum(1, keepdim=True).clamp(min=1e-9)
    return total / (count.sqrt() if how == "mean_sqrt_len_tokens" else count)
