"""The eigenvectors of training embeddings' second moments, and linear maps made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the eigenvectors of (1/N) sum x^T x of float64 rows [N, D]. Returns eigenvalues [D], largest first and 0
    where they are rounding, and their vectors as columns [D, D].

    The largest entry of a vector is positive, the first of equals. A value that is at most max(N, D) times the rounding
    of float64, of the largest value, is 0: so those are that have no row along them, as where N < D.
    """
    n, width = rows.shape
    ascending, vectors = torch.linalg.eigh(rows.T @ rows / n)
    values, vectors = ascending.flip(0).clamp_min(0), vectors.flip(1)
    values = torch.where(values > values[0] * max(n, width) * torch.finfo(torch.float64).eps, values, 0.0)
    largest = vectors.abs().argmax(0)
    signs = torch.sign(vectors[largest, torch.arange(width)])
    return values, vectors * signs


def checked_columns(k: int | None, width: int) -> int:
    """Return how many columns are kept of `width`; None keeps all. Raises ValueError for more than there are."""
    if k is None:
        return width
    if not 0 < k <= width:
        raise ValueError(f"evaluate.after_options.k = {k}, but embeddings have {width} columns; give at most {width}")
    return k


def affine(weight: Tensor, shift: Tensor) -> nn.Linear:
    """Build the map of rows (x - shift) weight, float64. weight [D, k], shift [D]."""
    width, k = weight.shape
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and then overwritten
        linear = nn.Linear(width, k, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(-(shift @ weight))
    return linear.requires_grad_(requires_grad=False)
