"""A user's module of components, as it would stand outside the package: what the open doors are tried with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from jobs.losses import softmax_loss


@softmax_loss
def focal(v: Tensor, *, gamma: float = 2.0) -> Tensor:
    """InfoNCE of each row, times (1 - p) to the power of gamma."""
    return F.softplus(v) * torch.sigmoid(v) ** gamma


@softmax_loss(weight=torch.ones_like)
def flat(v: Tensor) -> Tensor:
    """FlatNCE, written outside."""
    return F.softplus(v)


def vicreg(
    queries: Tensor, keys: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """VICReg (Bardes et al. 2022, arXiv:2105.04906): covariances over the batch, which no row sum expresses."""
    total = invariance * F.mse_loss(queries, keys)
    for side in (queries, keys):
        centred = side - side.mean(0)
        spread = (centred.square().mean(0) + 1e-4).sqrt()
        square = (centred.T @ centred / (len(side) - 1)).square()
        total = total + variance * F.relu(1 - spread).mean()
        total = total + covariance * (square.sum() - square.diagonal().sum()) / side.shape[1]
    return total


vicreg.normalised = False  # type: ignore[attr-defined]


class Centred(nn.Module):
    """A loss with a parameter and a state: cosines to a moving mean of the keys, sharpened by a learned scale."""

    def __init__(self, width: int = 8, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.scale = nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.mean: Tensor
        self.calls: Tensor

    def forward(self, queries: Tensor, keys: Tensor, temperature: float | Tensor, rows: Tensor, step: int) -> Tensor:
        """A scalar of the whole batch."""
        with torch.no_grad():
            self.calls += 1
            self.mean.mul_(self.momentum).add_(keys.mean(0), alpha=1 - self.momentum)
        logits = (queries * self.scale) @ (keys - self.mean).T / temperature
        weight = 1 + (rows % 3).to(logits.dtype) / step
        return (weight * F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")).mean()


def everything(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    rows: Tensor,
    temperature: float | Tensor,
    step: int,
    *,
    noise: float = 0.1,
) -> Tensor:
    """Uses all that there is, and random numbers."""
    logits = queries @ keys.T / temperature
    if ids is not None:
        logits = logits.masked_fill((ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool), -1e9)
    if negatives is not None:
        logits = torch.cat([logits, queries @ negatives.flatten(0, 1).T / temperature], 1)
    logits = logits + noise * torch.rand(logits.shape[1], dtype=logits.dtype) * step
    return F.cross_entropy(logits, torch.arange(len(rows))) + logits.var()


class Bounds(BaseModel, extra="forbid"):
    """Options that are checked by a model of their own."""

    low: float = Field(0.1, gt=0)
    high: float = 0.9


def banded(queries: Tensor, keys: Tensor, **options: Any) -> Tensor:
    """Cosines that leave a band."""
    cosine = (queries * keys).sum(1)
    return F.relu(options["low"] - cosine).mean() + F.relu(cosine - options["high"]).mean()


banded.Options = Bounds  # type: ignore[attr-defined]


def scored(queries: Tensor, keys: Tensor, scores: Tensor) -> Tensor:
    """Needs what images do not have."""
    return F.mse_loss((queries * keys).sum(1), scores)


def two_numbers(queries: Tensor, keys: Tensor) -> Tensor:
    """No scalar."""
    return (queries * keys).sum(1)


def detached(queries: Tensor, keys: Tensor) -> Tensor:
    """Without a gradient."""
    return (queries * keys).sum().detach()
