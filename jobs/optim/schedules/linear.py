"""A straight line to 0."""

from __future__ import annotations


def linear(passed: float) -> float:
    """Return 1 - passed."""
    return 1 - passed
