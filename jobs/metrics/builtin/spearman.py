"""Spearman's rank correlation of cosines with people's scores."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.outcomes import Outcomes, by_row

COSINE_DIGITS = 12
"""Decimals of a cosine by which pairs are ranked: fp64 has 16, and the sum over the features takes some."""


def spearman(left: Tensor, right: Tensor, scores: NDArray[np.generic]) -> Outcomes:
    """Compare the ranks of the cosines of pairs with those of their scores. left, right [n, D], scores [n]."""
    return by_row(rank_correlation, measured=cosines(left, right), wanted=np.asarray(scores, dtype=np.float64))


def cosines(left: Tensor, right: Tensor) -> NDArray[np.float64]:
    """Compute the cosine of each pair, [n], without what rounding leaves: of an encoder that has collapsed all cosines
    are 1, and that has no rank."""
    left, right = F.normalize(left.double(), dim=-1), F.normalize(right.double(), dim=-1)
    rounded: NDArray[np.float64] = (left * right).sum(-1).numpy().round(COSINE_DIGITS)
    return rounded


def rank_correlation(measured: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    """Compute Spearman's rank correlation in [-1, 1], ties sharing their mean rank; 0 if either is constant."""
    a, b = (_centred_ranks(values) for values in (measured, wanted))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


def _centred_ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts - 1) / 2
    ranks: NDArray[np.float64] = middles[places] - (len(values) + 1) / 2
    return ranks
