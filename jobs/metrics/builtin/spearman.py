"""Spearman's rank correlation with people's scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spearman(measured: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    """Compute Spearman's rank correlation in [-1, 1], ties sharing their mean rank; 0 if either is constant."""
    a, b = (_centred_ranks(values) for values in (measured, wanted))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


def _centred_ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts - 1) / 2
    ranks: NDArray[np.float64] = middles[places] - (len(values) + 1) / 2
    return ranks
