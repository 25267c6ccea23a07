"""V-measure of k-means, Rosenberg and Hirschberg 2007: do clusters of embeddings fall together with labels?

The clusters are Lloyd's, begun as k-means++ begins (Arthur and Vassilvitskii 2007), the tightest of some starts. They
are made here, as importing scikit-learn takes a process two seconds, and every image job would.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 100
"""Most rounds of a start; one that has not settled by then is taken as it is."""


def v_measure(queries: Tensor, query_labels: NDArray[np.generic], *, seed: int = 0, starts: int = 4) -> float | None:
    """Compute the harmonic mean of homogeneity and completeness of as many clusters of unit rows as there are labels.
    queries [Q, D]. None where all have one label, or there are fewer different rows than labels."""
    labels, wanted = np.unique(query_labels, return_inverse=True)
    rows = F.normalize(queries.double(), dim=-1).numpy()
    if len(labels) < 2 or len(np.unique(rows, axis=0)) < len(labels):
        return None
    random = np.random.default_rng(seed)
    found = [settled(rows, first_centres(rows, len(labels), random)) for _ in range(starts)]
    return agreement(wanted, min(found, key=lambda each: each[1])[0])


def first_centres(rows: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Draw rows as centres, [count, D]: each further one by its squared distance to the nearest so far."""
    centres: NDArray[np.float64] = rows[random.integers(len(rows))][None]
    far = _squares(rows, centres).min(1)
    for _ in range(1, count):
        total = float(far.sum())  # 0 where what differs is less than its square can show
        chosen = rows[random.choice(len(rows), p=far / total if total else None)][None]
        centres = np.concatenate([centres, chosen])
        far = np.minimum(far, _squares(rows, chosen)[:, 0])
    return centres


def settled(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Move centres to the means of the rows that are nearest to them until none changes: the cluster of each row, [n],
    and the sum of squared distances. A centre without rows stays."""
    cluster = np.full(len(rows), -1)
    for _ in range(ROUNDS):
        squares = _squares(rows, centres)
        before, cluster = cluster, squares.argmin(1)
        if (before == cluster).all():
            break
        counts = np.bincount(cluster, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, cluster, rows)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return cluster, float(squares.min(1).sum())


def agreement(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Compute the V-measure of two labellings [n]: twice their mutual information over the sum of their entropies."""
    joint, of_wanted, of_found = (_entropy(each) for each in (np.stack([wanted, found], 1), wanted, found))
    total = of_wanted + of_found
    return max(0.0, 2 * (total - joint) / total) if total else 1.0


def _squares(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute squared distances [n, k], of 0 or more."""
    plain = (rows**2).sum(1)[:, None] - 2 * rows @ centres.T + (centres**2).sum(1)
    squares: NDArray[np.float64] = np.maximum(plain, 0)
    return squares


def _entropy(labels: NDArray[np.int64]) -> float:
    shares = np.unique(labels, axis=0, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())
