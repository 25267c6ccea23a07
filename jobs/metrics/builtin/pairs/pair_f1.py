"""F1 of pairs by a threshold on their cosine, which is chosen on the other half of the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.outcomes import Outcomes, by_row
from jobs.metrics.builtin.pairs.pair_accuracy import steps
from jobs.metrics.builtin.spearman import cosines


def pair_f1(left: Tensor, right: Tensor, scores: NDArray[np.generic], halves: NDArray[np.int64]) -> Outcomes:
    """Compute F1 of all pairs, each half classified by the threshold with the best F1 of the other one. left, right
    [n, D]; scores [n], 1 or 0; halves [n], 0 or 1. Without some rows the thresholds stay."""
    measured, wanted = cosines(left, right), np.asarray(scores) > 0
    says = np.zeros(len(wanted), dtype=bool)
    for half in (0, 1):
        thresholds, found, called = steps(measured[halves != half], wanted[halves != half])
        f1 = 2 * found / np.maximum(called + found[-1], 1)
        says[halves == half] = measured[halves == half] >= thresholds[len(f1) - 1 - f1[::-1].argmax()]
    return by_row(of_predictions, says=says, wanted=wanted)


def of_predictions(says: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Compute twice what is found, over what is said and what is wanted; 0 where nothing is either."""
    total = says.sum() + wanted.sum()
    return float(2 * (says * wanted).sum() / total) if total else 0.0
