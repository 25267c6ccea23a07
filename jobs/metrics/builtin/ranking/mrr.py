"""Mean reciprocal rank, Voorhees 1999: one over the place of the first relevant document."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mrr(gains: NDArray[np.float64], *, k: int = 10) -> NDArray[np.float64]:
    """Compute one over the place of each query's first relevant document, [Q]; 0 where none is among the first k."""
    hits = gains[:, :k] > 0
    return np.where(hits.any(1), 1 / (1 + hits.argmax(1)), 0.0) if hits.shape[1] else np.zeros(len(gains))
