"""SogCLR, Yuan et al. 2022 (arXiv:2202.12387): each row of the data has a moving average of its normaliser, so that a
small batch estimates the gradient of the loss over all of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jobs.losses.builtin.weighted._dense import candidates


class sogclr(nn.Module):  # noqa: N801 - a built-in has its module's name
    """State: log u of every row of the data, for the queries and, where `symmetric`, for the keys as anchors.

    With g the mean over an anchor's n negatives of exp d_ij, d_ij = (s_ij - s_ii) / temperature: u becomes
    (1 - gamma) u + gamma g, or g at the first visit; the value is the mean of log u, and the gradient is that of g / u,
    u held fixed. At gamma = 1 it is DCL's. A row that a batch has twice counts by its mean.
    """

    def __init__(self, data_rows: int, *, gamma: float = 0.9, symmetric: bool = False) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise ValueError(f"loss.options.gamma = {gamma} is the share of the newest batch: above 0, at most 1")
        self.gamma, self.symmetric = gamma, symmetric
        start = torch.full((1 + symmetric, data_rows), -torch.inf, dtype=torch.float64)
        self.register_buffer("log_normaliser", start)
        self.log_normaliser: Tensor

    def forward(
        self,
        *,
        queries: Tensor,
        keys: Tensor,
        negatives: Tensor | None,
        ids: Tensor | None,
        key_ids: Tensor | None,
        negative_ids: Tensor | None,
        rows: Tensor,
        temperature: float | Tensor,
    ) -> Tensor:
        """Compute the mean over anchors; one without negatives counts 0."""
        texts = {"ids": ids, "key_ids": key_ids}
        total = self._of_side(
            0, queries, keys, rows, temperature, negatives=negatives, negative_ids=negative_ids, **texts
        )
        if not self.symmetric:
            return total
        back = {"ids": key_ids, "key_ids": ids}
        return (total + self._of_side(1, keys, queries, rows, temperature, **back)) / 2

    def _of_side(
        self,
        side: int,
        anchors: Tensor,
        others: Tensor,
        rows: Tensor,
        temperature: float | Tensor,
        *,
        ids: Tensor | None,
        key_ids: Tensor | None,
        negatives: Tensor | None = None,
        negative_ids: Tensor | None = None,
    ) -> Tensor:
        found = candidates(
            queries=anchors, keys=others, negatives=negatives, ids=ids, key_ids=key_ids, negative_ids=negative_ids
        )
        some = found.some
        differences = found.logits(temperature)[some]
        log_g = differences.logsumexp(1) - found.negative[some].sum(1).to(differences.dtype).log()
        log_u = self._updated(side, rows[some], log_g.detach().double()).to(log_g.dtype)
        ratio = (log_g - log_u).exp()
        return (log_u + ratio - ratio.detach()).sum() / len(anchors)

    @torch.no_grad()
    def _updated(self, side: int, rows: Tensor, log_g: Tensor) -> Tensor:
        """Update the state by these anchors, and return log u of each."""
        known, place = rows.unique(return_inverse=True)
        largest = log_g.max() if len(log_g) else log_g.new_zeros(())
        sums = torch.zeros(len(known), dtype=torch.float64, device=rows.device)
        sums.index_add_(0, place, (log_g - largest).exp())
        new = sums.log() + largest - place.bincount(minlength=len(known)).double().log()
        before = self.log_normaliser[side, known].double()
        kept = before + (math.log(1 - self.gamma) if self.gamma < 1 else -math.inf)
        after = torch.where(before == -torch.inf, new, torch.logaddexp(kept, new + math.log(self.gamma)))
        self.log_normaliser[side, known] = after.to(self.log_normaliser.dtype)  # that of the model
        return after[place]
