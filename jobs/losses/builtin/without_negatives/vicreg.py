"""VICReg, Bardes et al. 2022 (arXiv:2105.04906), without negatives: variance, invariance and covariance, the last two
of the global batch, as the authors' program has them."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

EPSILON = 1e-4
"""Added to a variance before its root."""


def vicreg(
    queries: Tensor,
    keys: Tensor,
    *,
    invariance: Annotated[float, Field(ge=0)] = 25.0,
    variance: Annotated[float, Field(ge=0)] = 25.0,
    covariance: Annotated[float, Field(ge=0)] = 1.0,
) -> Tensor:
    """Weigh three terms: the mean square of q - k; of each side half the mean over columns of max(0, 1 - sd); and of
    each side the squares of the covariances of different columns, over D. queries, keys [B, D], B > 1."""
    if len(queries) < 2:
        raise ValueError(f"vicreg has variances over pairs, of which there is {len(queries)}; use a larger batch.size")
    total = invariance * F.mse_loss(queries, keys)
    for side in (queries, keys):
        centred = side - side.mean(0)
        spread = (side.var(0) + EPSILON).sqrt()
        square = (centred.T @ centred / (len(side) - 1)).square()
        total = total + variance * F.relu(1 - spread).mean() / 2
        total = total + covariance * (square.sum() - square.diagonal().sum()) / side.shape[1]
    return total


vicreg.normalised = False  # type: ignore[attr-defined]
