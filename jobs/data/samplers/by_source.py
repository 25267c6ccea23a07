"""Batches that hold rows of one source each, so that no negative is told apart by where it is from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from jobs.data.samplers._epochs import planned_once, window


def by_source(rows: int, size: int, seed: int, step: int, sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose rows of one source, which is the column that `data.source` names, or else the file: in a random order as
    many batches of each as it has rows, to within one batch. Each source has epochs of its own, in which a row comes
    once, and its batches run on across their ends."""
    known = _sources(sources)
    if (least := min(map(len, known.members))) < size:
        raise ValueError(
            f"a source has {least} rows, fewer than a batch of one source holds; set batch.size to {least} at most, or "
            "leave its rows out of data.train"
        )
    cycle, place = divmod(step - 1, -(-rows // size))
    source, earlier = (int(column[place]) for column in _cycle(sources, size, seed, cycle))
    own = known.members[source]
    return own[window(len(own), earlier * size, size, partial(known.epoch, source, seed))]


@dataclass(frozen=True)
class _Sources:
    """The rows of each source, and the order of the epoch that each is in."""

    members: list[NDArray[np.int64]]
    orders: dict[int, tuple[int, int, NDArray[np.int64]]] = field(default_factory=dict)

    def epoch(self, source: int, seed: int, epoch: int) -> NDArray[np.int64]:
        """Permute the rows of a source, as a function of (seed, source, epoch)."""
        from jobs.core.randomness import GROUPED, permutation

        if self.orders.get(source, ())[:2] != (seed, epoch):
            self.orders[source] = (seed, epoch, permutation(len(self.members[source]), GROUPED, seed, source, epoch))
        return self.orders[source][2]


@planned_once
def _sources(sources: NDArray[np.int64]) -> _Sources:
    _, counts = np.unique(sources, return_counts=True)
    return _Sources(np.split(np.argsort(sources, kind="stable"), np.cumsum(counts)[:-1]))


@planned_once
def _cycle(sources: NDArray[np.int64], size: int, seed: int, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal the batches of a cycle, as many as all rows fill: the source of each, and how many batches it has had."""
    from jobs.core.randomness import GROUPED, permutation

    members = _sources(sources).members
    count = -(-len(sources) // size)
    had, after = (_shares([len(own) for own in members], batches * count) for batches in (cycle, cycle + 1))
    dealt = np.repeat(np.arange(len(members)), np.subtract(after, had))
    earlier = np.concatenate([np.arange(first, last) for first, last in zip(had, after, strict=True)])
    order = permutation(count, GROUPED, seed, cycle)
    dealt = dealt[order]
    # Each source's batches come in their order, wherever the source is drawn.
    numbers = np.empty_like(earlier)
    numbers[np.argsort(dealt, kind="stable")] = earlier
    return dealt, numbers


def _shares(counts: list[int], batches: int) -> list[int]:
    """Deal so many batches by these counts of rows, each to within one: differences of rounded running totals."""
    ends = np.cumsum([0, *counts]).tolist()
    total = ends[-1]
    rounded = [(2 * batches * end + total) // (2 * total) for end in ends]
    return [last - first for first, last in itertools.pairwise(rounded)]
