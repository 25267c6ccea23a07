"""Mean average precision, as trec_eval has it: the precision at each relevant document, over all that are relevant."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def map(gains: NDArray[np.float64], relevant: NDArray[np.int64], *, k: int = 100) -> NDArray[np.float64]:  # noqa: A001
    """Compute the average precision of the first k documents of each query, [Q]; 0 where nothing is relevant."""
    hits = gains[:, :k] > 0
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / np.maximum(relevant, 1)  # type: ignore[no-any-return]
