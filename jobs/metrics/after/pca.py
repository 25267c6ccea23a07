"""Principal components of the training embeddings, Pearson 1901 (doi:10.1080/14786440109462720), as kexue 8679 compares
them: the k directions along which these vary most."""

from __future__ import annotations

from torch import Tensor, nn

from jobs.metrics.after.whitening import whitening


def pca(training: Tensor, *, k: int) -> nn.Linear:
    """Fit x -> (x - mu) U to float64 rows [N, D], and keep its first k columns: `whitening` without a scale. Raises
    ValueError for k > D."""
    return whitening(training, beta=1.0, gamma=0.0, k=k)
