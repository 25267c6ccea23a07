"""A random projection, Johnson and Lindenstrauss 1984 (doi:10.1090/conm/026/737400), kexue 8679: the yardstick of every
other way to fewer columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jobs.core.randomness import PROJECTION, mix
from jobs.metrics.after._spectrum import affine, checked_columns


def random_projection(training: Tensor, seed: int, *, k: int) -> nn.Linear:
    """Draw x -> x R for rows of D columns, the entries of R [D, k] normal of variance 1/k: |x R|^2 is |x|^2 on average.

    k >= 24 ln(N) / eps^2 keeps all distances between N rows within a factor of 1 +- eps, more likely than not; kexue
    8679 has the proof. Each confirm seed has another draw. A smaller k has the first columns of a larger one, but for
    their scale. Raises ValueError for k > D.
    """
    width = training.shape[1]
    count = checked_columns(k, width)
    weight = normal_numbers(seed, width, count) / math.sqrt(count)
    return affine(weight, torch.zeros(width, dtype=torch.float64))


def columns_for(rows: int, *, eps: float) -> int:
    """Compute how many columns keep all distances between so many rows within a factor of 1 +- eps, more likely than
    not: 24 ln(rows) / eps^2, as kexue 8679 proves. Raises ValueError for eps that is no part of 1, and for one row."""
    if rows < 2 or not 0 < eps < 1:
        raise ValueError(f"rows = {rows}, eps = {eps}: give two rows or more and eps between 0 and 1, such as 0.5")
    return math.ceil(24 * math.log(rows) / eps**2)


def normal_numbers(seed: int, rows: int, columns: int) -> Tensor:
    """Draw float64 [rows, columns] of the standard normal distribution, each number a function of the seed and its
    place: of two uniform ones, as Box and Muller 1958 (doi:10.1214/aoms/1177706645)."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    first, second = ((mix(PROJECTION, seed, part, column, row).double() + 0.5) / 2**32 for part in (0, 1))
    return (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
