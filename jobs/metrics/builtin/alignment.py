"""Alignment of positive pairs, Wang and Isola 2020 (arXiv:2005.10242)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def alignment(unit: Tensor, labels: NDArray[np.generic]) -> float | None:
    """Average |x - y|^2 over pairs of distinct rows with the same label, from the sums of each label's rows."""
    _, coded = np.unique(labels, return_inverse=True)
    code = torch.from_numpy(coded)
    rows = unit.double()
    sizes = torch.bincount(code).double()
    sums = torch.zeros(len(sizes), rows.shape[1], dtype=torch.float64).index_add_(0, code, rows)
    squares = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, code, rows.square().sum(1))
    pairs = float((sizes * (sizes - 1)).sum())
    # Over ordered pairs: sum |x - y|^2 = 2 n sum |x|^2 - 2 |sum x|^2.
    return float(2 * (sizes * squares - sums.square().sum(1)).sum()) / pairs if pairs else None
