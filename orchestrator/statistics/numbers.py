"""What all of this package counts with."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Mode = Literal["max", "min"]

TIE = 1e-12
"""Sums of differences closer than this (times their scale, where that is above 1) are equal."""


def vector(values: ArrayLike) -> Floats:
    """Convert values to float64 [n]. Raises ValueError for one that is not finite."""
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(x).all():
        raise ValueError(f"{x[~np.isfinite(x)][0]} among {len(x)} values; every one must be a finite number")
    return x
