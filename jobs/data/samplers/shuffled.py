"""Epochs, each a permutation of all rows; batches run on across its end."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray


def shuffled(rows: int, size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Choose the data rows of the global batch of optimizer step `step` = 1, 2, ... An epoch is a function of (seed,
    epoch)."""
    position, chosen = (step - 1) * size, np.empty(size, np.int64)
    filled = 0
    while filled < size:
        epoch, first = divmod(position + filled, rows)
        taken = min(size - filled, rows - first)
        chosen[filled : filled + taken] = _epoch(rows, seed, epoch)[first : first + taken]
        filled += taken
    return chosen


@functools.lru_cache(maxsize=2)
def _epoch(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    from jobs.core.randomness import ORDER, permutation

    return permutation(rows, ORDER, seed, epoch)
