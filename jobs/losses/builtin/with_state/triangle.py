"""InfoNCE of distances with an additive margin, Su 2021 (kexue 8656), which makes a classification rank as well: the
distance sqrt(1 - cosine) obeys the triangle inequality, so a margin as wide as what belongs together is enough."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from jobs.losses.builtin.weighted._dense import candidates


class triangle(nn.Module):  # noqa: N801 - a built-in has its module's name
    """State: the margin m. The mean over anchors of log(1 + sum over negatives of exp((d_ii + m - d_ij) / tau)).

    d = sqrt(1 - cosine). Where d_ii + m < d_ij, with m the diameter of what belongs together, every two of one class
    are nearer than any two of two classes. margin: `diameter`, the mean distance of the two sides of a pair over the
    global batch, times `share`, without a gradient, as it is in step 1 and every `every` steps from there; or a number
    that stays.
    """

    def __init__(
        self, *, margin: Literal["diameter"] | float = "diameter", share: float = 1.0, every: int = 100
    ) -> None:
        super().__init__()
        if every < 1 or share < 0 or (margin != "diameter" and margin < 0):
            raise ValueError(
                f"loss.options: every = {every} counts steps, from 1; share = {share} and margin = {margin} are 0 or "
                "more"
            )
        self.every = every if margin == "diameter" else None
        self.share = share
        self.register_buffer("margin", torch.tensor(0.0 if margin == "diameter" else margin, dtype=torch.float64))
        self.margin: Tensor

    def forward(
        self,
        *,
        queries: Tensor,
        keys: Tensor,
        negatives: Tensor | None,
        ids: Tensor | None,
        key_ids: Tensor | None,
        negative_ids: Tensor | None,
        temperature: float | Tensor,
        step: int,
    ) -> Tensor:
        """Compute the mean over anchors; one without negatives counts 0."""
        found = candidates(
            queries=queries,
            keys=keys,
            negatives=negatives,
            ids=ids,
            key_ids=key_ids,
            negative_ids=negative_ids,
        )
        own, other = _distance(found.positive), _distance(found.similarity)
        if self.every is not None and (step - 1) % self.every == 0:
            self.margin.copy_(self.share * own.detach().mean())
        # What training has changed the buffer to is read now: it may change before backward.
        reach = own + self.margin.clone().to(own.dtype)
        some = found.some
        v = ((reach[:, None] - other) / temperature).masked_fill(~found.negative, -torch.inf)[some].logsumexp(1)
        return torch.logaddexp(v, torch.zeros_like(v)).sum() / len(queries)


def _distance(cosine: Tensor) -> Tensor:
    """Compute sqrt(1 - cosine), which has no slope where rounding leaves nothing of it."""
    return (1 - cosine).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
