"""Accuracy of a linear probe, fitted to the references."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PROBE_ITERATIONS = 300
"""Most L-BFGS iterations of the linear probe; one that has not settled by then is scored as it is."""


def probe_accuracy(
    references: Tensor, reference_labels: NDArray[np.generic], queries: Tensor, query_labels: NDArray[np.generic]
) -> NDArray[np.bool_]:
    """Return whether each query is classified as labelled, [Q], by a logistic regression (L2, C = 1) fitted to
    standardised references."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(references.double().numpy())
    known, asked = (scaler.transform(rows.double().numpy()) for rows in (references, queries))
    if len(np.unique(reference_labels)) == 1:
        return np.asarray(query_labels == reference_labels[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=PROBE_ITERATIONS).fit(known, reference_labels)
    return np.asarray(probe.predict(asked) == query_labels)
