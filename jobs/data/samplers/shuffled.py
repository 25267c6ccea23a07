"""Epochs, each a permutation of all rows; batches run on across its end."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from jobs.data.samplers._epochs import shuffled_epoch, window


def shuffled(rows: int, size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Choose the data rows of the global batch of optimizer step `step` = 1, 2, ... An epoch is a function of (seed,
    epoch)."""
    return window(rows, (step - 1) * size, size, partial(shuffled_epoch, rows, seed))
