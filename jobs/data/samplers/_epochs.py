"""What samplers share: streams of epochs, and plans of an epoch that are made once for all of its steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

HELD = 3
"""Plans of a kind that are kept: of two epochs that a batch lies in, and of the one before."""

Given = ParamSpec("Given")
Plan = TypeVar("Plan")


def window(rows: int, first: int, count: int, order: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:
    """Take `count` numbers of a stream of epochs from its place `first` on, running on across their ends.

    order: epoch -> int64 [rows].
    """
    taken, filled = np.empty(count, np.int64), 0
    while filled < count:
        epoch, at = divmod(first + filled, rows)
        part = order(epoch)[at : at + count - filled]
        taken[filled : filled + len(part)] = part
        filled += len(part)
    return taken


def planned_once(plan: Callable[Given, Plan]) -> Callable[Given, Plan]:
    """Wrap a function of arrays and numbers so that it keeps its last results, by which arrays these are and not by
    what they hold."""
    held: list[tuple[tuple[object, ...], Plan]] = []

    @functools.wraps(plan)
    def call(*given: Given.args, **named: Given.kwargs) -> Plan:
        assert not named, "arguments are told apart by their place"
        for known, result in held:
            if all(a is b or (isinstance(a, int) and a == b) for a, b in zip(known, given, strict=True)):
                return result
        result = plan(*given, **named)
        held.append((given, result))
        del held[:-HELD]
        return result

    return call


@functools.lru_cache(maxsize=2)
def shuffled_epoch(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permute all rows, as a function of (seed, epoch)."""
    from jobs.core.randomness import ORDER, permutation

    return permutation(rows, ORDER, seed, epoch)
