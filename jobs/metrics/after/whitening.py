"""Whitening, Su et al. 2021 (arXiv:2103.15316), kexue 8069, with the two exponents of kexue 9079: the directions of the
training embeddings, scaled alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jobs.metrics.after._spectrum import affine, checked_columns, spectrum


def whitening(training: Tensor, *, beta: float = 1.0, gamma: float = 1.0, k: int | None = None) -> nn.Linear:
    """Fit x -> (x - beta mu) U L^(-gamma/2) to float64 rows [N, D], and keep its first k columns; None: all.

    mu: the rows' mean; U, L: of Sigma = (1/N) sum (x - beta mu)^T (x - beta mu) = U L U^T, largest first. beta = gamma
    = 1 is BERT-whitening, whose training rows have the identity as covariance; beta = gamma = 0 turns all rows, and
    leaves cosines as they are at full width. A direction without a row along it has no scale: with gamma above 0 its
    column is 0 in every row; with gamma = 0 it is kept. Raises ValueError for k > D, and for a share that is none.
    """
    for name, share in (("beta", beta), ("gamma", gamma)):
        if not 0 <= share <= 1:
            raise ValueError(f"evaluate.after_options.{name} = {share} is a share: 0 for none of it, 1 for all")
    count = checked_columns(k, training.shape[1])
    shift = beta * training.mean(0)
    values, vectors = spectrum(training - shift)
    scales = torch.where(values > 0, values ** (-gamma / 2), 0.0) if gamma else torch.ones_like(values)
    return affine((vectors * scales)[:, :count], shift)
