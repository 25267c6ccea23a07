"""Whole matrices of similarities, for the losses that no sum over tiles expresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.core.ids import ABSENT

MASKED = -1e30
"""Logit of what is no negative. Finite, so that its gradient is 0 and not nan."""


@dataclass(frozen=True)
class Candidates:
    """What every anchor is compared with: the keys of the batch, then all hard negatives."""

    positive: Tensor
    """[B]: similarity to the own key."""

    similarity: Tensor
    """[B, C]."""

    negative: Tensor
    """bool [B, C]: neither the own key nor absent nor, as far as ids tell, the same text or image."""

    def logits(self, temperature: float | Tensor) -> Tensor:
        """Compute the differences to the positive, in units of the temperature, [B, C]; MASKED for no negative."""
        differences = (self.similarity - self.positive[:, None]) / temperature
        return differences.masked_fill(~self.negative, MASKED)

    @property
    def some(self) -> Tensor:
        """bool [B]: which anchors have a negative; the others count 0."""
        return self.negative.any(1)


def candidates(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
) -> Candidates:
    """Compare every query with every candidate. Arguments as a loss is called with them; rows of any length."""
    sides = [side for side in (ids, key_ids) if side is not None]
    texts = torch.stack(sides, 1) if sides else torch.full((len(queries), 1), -1, device=queries.device)
    own = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    similarity, negative = [queries @ keys.T], [~(own | same_text(texts, texts))]
    if negatives is not None:
        similarity.append(queries @ negatives.flatten(0, 1).T)
        said = torch.full((similarity[1].shape[1],), -1, device=queries.device)
        said = said if negative_ids is None else negative_ids.flatten()
        negative.append(~same_text(texts, said[:, None]) & (said != ABSENT))
    return Candidates((queries * keys).sum(1), torch.cat(similarity, 1), torch.cat(negative, 1))


def is_nearer(similarity: Tensor, bound: Tensor) -> Tensor:
    """Find which similarities [B, C] are above their row's bound [B, 1], by more than rounding.

    What is embedded alike is equally near, and no nearer than the bound, in whatever order sums are rounded: so that
    ranks, micro-batches and sizes of batches leave out the same. Rounding is taken to be eps^(3/4): 6e-6 in single
    precision, 2e-12 in double.
    """
    limit: Tensor = bound + torch.finfo(similarity.dtype).eps ** 0.75
    return similarity > limit


def same_text(these: Tensor, those: Tensor) -> Tensor:
    """Find where a side of one pair says what a side of another says, bool [n, m]. Both int64, a column a side; -1 says
    nothing."""
    same = torch.zeros(len(these), len(those), dtype=torch.bool, device=these.device)
    for one in these.T:
        for other in those.T:
            same |= (one[:, None] == other) & (one[:, None] != -1)
    return same
