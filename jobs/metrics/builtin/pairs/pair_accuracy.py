"""Accuracy of pairs by a threshold on their cosine, which is chosen on the other half of the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.metrics.builtin.spearman import cosines


def pair_accuracy(
    left: Tensor, right: Tensor, scores: NDArray[np.generic], halves: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which pairs are classified as labelled, [n]. left, right [n, D]; scores [n], 1 or 0; halves [n], 0 or 1:
    each half by the threshold that is best for the other one."""
    measured, wanted = cosines(left, right), np.asarray(scores) > 0
    says = np.zeros(len(wanted), dtype=bool)
    for half in (0, 1):
        says[halves == half] = measured[halves == half] >= best(measured[halves != half], wanted[halves != half])
    told: NDArray[np.bool_] = says == wanted
    return told


def best(measured: NDArray[np.float64], wanted: NDArray[np.bool_]) -> float:
    """Choose the threshold with most pairs right, half way between two cosines; of equally good ones the lowest."""
    between, found, called = steps(measured, wanted)
    right = found + (~wanted).sum() - (called - found)
    return float(between[len(right) - 1 - right[::-1].argmax()])


def steps(
    measured: NDArray[np.float64], wanted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """List thresholds from high to low, [m], each half way between two cosines or beyond all; and for each, how many of
    the pairs above it are the same, and how many there are."""
    if not len(measured):
        return np.array([0.0]), np.zeros(1, np.int64), np.zeros(1, np.int64)
    order = np.argsort(-measured, kind="stable")
    values, same = measured[order], wanted[order].cumsum()
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    between = (values[ends[:-1]] + values[ends[:-1] + 1]) / 2
    thresholds = np.concatenate([[np.inf], between, [-np.inf]])
    return thresholds, np.concatenate([[0], same[ends]]), np.concatenate([[0], ends + 1])
