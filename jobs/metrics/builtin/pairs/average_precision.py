"""Average precision of pairs by their cosine, as scikit-learn has it: equal cosines are one step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.outcomes import Outcomes, by_row
from jobs.metrics.builtin.spearman import cosines


def average_precision(left: Tensor, right: Tensor, scores: NDArray[np.generic]) -> Outcomes:
    """Average the precision over the pairs that say the same. left, right [n, D], scores [n]: 1 where they do, else
    0."""
    return by_row(precision_over_recall, measured=cosines(left, right), wanted=np.asarray(scores, dtype=np.float64))


def precision_over_recall(measured: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Sum the precision at each threshold, times the recall that it adds; nan where nothing is positive."""
    order = np.argsort(-measured, kind="stable")
    positive = wanted[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(measured[order])), len(order) - 1)  # of each threshold
    found = positive[last]
    if not found[-1]:
        return float("nan")
    return float((found / (last + 1) * np.diff(found, prepend=0.0)).sum() / found[-1])
