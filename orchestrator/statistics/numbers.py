"""What all of this package counts with."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Mode = Literal["max", "min"]

TIE = 1e-12
"""Numbers closer than this are equal; times the largest of those that they are made of, since units do not matter."""


def vector(values: ArrayLike) -> Floats:
    """Convert values to float64 [n]. Raises ValueError for one that is not finite."""
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(x).all():
        raise ValueError(f"{x[~np.isfinite(x)][0]} among {len(x)} values; every one must be a finite number")
    return x


def scaled(x: Floats) -> tuple[Floats, int]:
    """Return values in a unit in which the largest is between 0.5 and 1, so that squares are numbers and a tolerance is
    one in every unit; and the exponent of that unit, a power of two, by which nothing is rounded."""
    exponent = math.frexp(float(np.abs(x).max(initial=0.0)))[1]
    unit: Floats = np.ldexp(x, -exponent)
    return unit, exponent


def in_unit(number: float, exponent: int) -> float:
    """Return a number of the unit of `scaled` as it is without; inf beyond what a float holds."""
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.copysign(math.inf, number)


def square_in_unit(square: float, exponent: int) -> float | None:
    """Return a square of the unit of `scaled` as it is without; None where no float holds it: 0 would say too much."""
    found = in_unit(square, 2 * exponent)
    return found if math.isfinite(found) and (found >= np.finfo(float).tiny or not square) else None


def deviation(x: Floats) -> float:
    """Compute the standard deviation of two values or more; 0 where they differ by rounding alone."""
    unit, exponent = scaled(x)
    spread = float(unit.std(ddof=1))
    return in_unit(spread, exponent) if spread > TIE * float(np.abs(unit).max(initial=0.0)) else 0.0
