"""Accuracy of a weighted kNN classifier, as Wu et al. 2018 (arXiv:1805.01978)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs.config import Evaluate

KNN_TEMPERATURE = 0.07
"""Of the neighbours' votes."""

ROWS_AT_ONCE = 1024


def knn_accuracy(
    references: Tensor,
    reference_labels: NDArray[np.generic],
    queries: Tensor,
    query_labels: NDArray[np.generic],
    settings: Evaluate,
) -> NDArray[np.bool_]:
    """Return whether each query is classified as labelled, [Q]. Embeddings [R, D] and [Q, D], of any length."""
    units = (F.normalize(rows, dim=-1) for rows in (references, queries))
    known, asked = units
    guessed = knn_classify(known, reference_labels, asked, neighbours=settings.neighbours)
    return np.asarray(guessed == query_labels)


def knn_classify(
    references: Tensor, labels: NDArray[np.generic], queries: Tensor, *, neighbours: int
) -> NDArray[np.generic]:
    """Label each query, [Q], by the votes of its nearest references, each of weight exp(cosine similarity / 0.07).

    This is the weighted kNN of Wu et al. 2018, usual for self-supervised encoders. references [R, D] and queries
    [Q, D]: unit rows. Of equally near references the earlier ones count; of equal votes the lower label wins.
    """
    classes, coded = np.unique(labels, return_inverse=True)
    one_hot = F.one_hot(torch.from_numpy(coded), len(classes)).double()
    count = min(neighbours, len(references))
    guesses = []
    for part in torch.split(queries, ROWS_AT_ONCE):
        near = (part @ references.T).double()
        furthest = near.topk(count).values[:, -1:]
        chosen, tied = near > furthest, near == furthest
        chosen |= tied & (tied.cumsum(1) <= count - chosen.sum(1, keepdim=True))
        votes = torch.exp((near - 1) / KNN_TEMPERATURE) * chosen
        guesses.append((votes @ one_hot).argmax(1))
    return classes[torch.cat(guesses).numpy()]  # type: ignore[no-any-return]
