"""Recall: which share of the relevant documents is found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def recall(gains: NDArray[np.float64], relevant: NDArray[np.int64], *, k: int = 10) -> NDArray[np.float64]:
    """Compute which share of a query's relevant documents is among the first k, [Q]; 0 where nothing is relevant."""
    return (gains[:, :k] > 0).sum(1) / np.maximum(relevant, 1)  # type: ignore[no-any-return]
