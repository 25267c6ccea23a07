"""Alignment of positive pairs, Wang and Isola 2020 (arXiv:2005.10242): the mean squared distance of unit rows. Lower is
better."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.outcomes import Outcomes


def alignment(
    queries: Tensor | None = None,
    query_labels: NDArray[np.generic] | None = None,
    left: Tensor | None = None,
    right: Tensor | None = None,
    scores: NDArray[np.generic] | None = None,
) -> Outcomes | None:
    """Average |x - y|^2 over positive pairs: queries [Q, D] with the same of query_labels [Q], a pair that no arm's
    augmentation defines; or left and right [n, D] that are close by their scores [n]. None without such a pair."""
    if queries is not None and query_labels is not None:
        return _of_labels(F.normalize(queries, dim=-1), query_labels)
    if left is None or right is None:
        return None
    close = np.ones(len(left), dtype=bool) if scores is None else are_close(np.asarray(scores, dtype=np.float64))
    left, right = F.normalize(left.double(), dim=-1), F.normalize(right.double(), dim=-1)
    apart = (left - right)[torch.from_numpy(close)].square().sum(-1)
    of_rows = np.full(len(close), math.nan)
    of_rows[close] = apart.numpy()
    return Outcomes(float(apart.mean()), {"": of_rows})


def are_close(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which pairs have at least four fifths of the highest score, 4 on the usual scale of 0 to 5; where no score
    is above 0, are in the top fifth of the scores' range."""
    highest = scores.max()
    # A little less, as the bound is rounded: 0.8 * 3 is above 2.4.
    least = 0.8 * highest * (1 - 1e-12) if highest > 0 else highest - 0.2 * (highest - scores.min())
    close: NDArray[np.bool_] = scores >= least
    return close


def _of_labels(unit: Tensor, labels: NDArray[np.generic]) -> Outcomes | None:
    value = within_labels(unit, labels)
    if value is None:
        return None

    def without(blocks: NDArray[np.int64]) -> list[float]:
        kept = [blocks != block for block in range(int(blocks.max()) + 1)]
        aligned = (within_labels(unit[torch.from_numpy(rows)], labels[rows]) for rows in kept)
        return [math.nan if value is None else value for value in aligned]

    return Outcomes(value, without=without)


def within_labels(unit: Tensor, labels: NDArray[np.generic]) -> float | None:
    """Average |x - y|^2 over pairs of distinct rows with the same label, from the sums of each label's rows."""
    _, coded = np.unique(labels, return_inverse=True)
    code = torch.from_numpy(coded)
    rows = unit.double()
    sizes = torch.bincount(code).double()
    sums = torch.zeros(len(sizes), rows.shape[1], dtype=torch.float64).index_add_(0, code, rows)
    squares = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, code, rows.square().sum(1))
    pairs = float((sizes * (sizes - 1)).sum())
    # Over ordered pairs: sum |x - y|^2 = 2 n sum |x|^2 - 2 |sum x|^2.
    return float(2 * (sizes * squares - sums.square().sum(1)).sum()) / pairs if pairs else None
