"""Pearson's correlation of cosines with people's scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.outcomes import Outcomes, by_row
from jobs.metrics.builtin.spearman import cosines


def pearson(left: Tensor, right: Tensor, scores: NDArray[np.generic]) -> Outcomes:
    """Compare the cosines of pairs with their scores by correlation. left, right [n, D], scores [n]."""
    return by_row(correlation, measured=cosines(left, right), wanted=np.asarray(scores, dtype=np.float64))


def correlation(measured: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    """Compute Pearson's correlation in [-1, 1]; 0 if either is constant."""
    a, b = (values - values.mean() for values in (measured.astype(np.float64), wanted.astype(np.float64)))
    spread = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / spread, -1, 1)) if spread else 0.0
