"""V-measure of k-means, Rosenberg and Hirschberg 2007: do clusters of embeddings fall together with labels?"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def v_measure(queries: Tensor, query_labels: NDArray[np.generic], *, seed: int = 0) -> float | None:
    """Compute the harmonic mean of homogeneity and completeness of as many clusters of unit rows as there are labels.
    queries [Q, D]. None where all have one label, or there are fewer different rows than labels."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import v_measure_score

    classes, wanted = np.unique(query_labels, return_inverse=True)
    rows = F.normalize(queries.double(), dim=-1).numpy()
    if len(classes) < 2 or len(np.unique(rows, axis=0)) < len(classes):
        return None
    found = KMeans(len(classes), n_init=1, random_state=seed).fit_predict(rows)
    return float(v_measure_score(wanted, found))
