"""Normalised discounted cumulative gain, Järvelin and Kekäläinen 2002 (doi:10.1145/582415.582418), as in trec_eval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ndcg(gains: NDArray[np.float64], ideal: NDArray[np.float64], *, k: int = 10) -> NDArray[np.float64]:
    """Compute nDCG of the first k documents of each query, [Q]: gains as people gave them, each divided by log2 of its
    place + 1, over what the best order has. 0 where nothing is relevant."""
    found, best = (_discounted(each[:, :k]) for each in (gains, ideal))
    return np.divide(found, best, out=np.zeros(len(gains)), where=best > 0)


def _discounted(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = (np.maximum(gains, 0) / np.log2(np.arange(2, 2 + gains.shape[1]))).sum(1)
    return total
