"""Batches in which each label has equally many rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jobs.data.samplers._epochs import planned_once


def by_label(
    rows: int, size: int, seed: int, step: int, labels: NDArray[np.int64], *, per_label: int = 2
) -> NDArray[np.int64]:
    """Choose batches in which batch.size / per_label different labels have per_label rows each. An epoch has as many of
    them as the labels allow, and a row comes in it once at most; what does not go into whole batches is another choice
    in each epoch. Rows without a label, and those of labels with fewer than per_label rows, are left out."""
    if per_label < 1 or size % per_label:
        raise ValueError(
            f"per_label = {per_label} must be a number above 0 that divides batch.size = {size}; for example "
            f"{2 if size % 2 == 0 else 1}"
        )
    batches = _batches(labels, size // per_label, per_label)
    if batches == 0:
        _, counts = np.unique(labels[labels >= 0], return_counts=True)
        raise ValueError(
            f"a batch of {size} holds {size // per_label} labels with {per_label} rows each, and data.train has "
            f"{int((counts >= per_label).sum())} labels with so many; raise data.sampler_options.per_label, or set a "
            "smaller batch.size"
        )
    assert len(labels) == rows
    epoch, place = divmod(step - 1, batches)
    chosen: NDArray[np.int64] = _epoch(labels, size, per_label, seed, epoch)[place]
    return chosen


@planned_once
def _groups(labels: NDArray[np.int64], per_label: int) -> NDArray[np.int64]:
    """Count the whole groups of rows that each label has; 0 of rows without one."""
    return np.bincount(labels[labels >= 0], minlength=1) // per_label


@planned_once
def _batches(labels: NDArray[np.int64], count: int, per_label: int) -> int:
    """Find the most batches of `count` different labels that there are groups for: a label fills one place of each."""
    groups = _groups(labels, per_label)
    low, high = 0, int(groups.sum()) // count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(groups, middle).sum() >= middle * count else (low, middle - 1)
    return low


@planned_once
def _epoch(labels: NDArray[np.int64], size: int, per_label: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Plan the batches of an epoch, [batches, size]."""
    from jobs.core.randomness import GROUPED, permutation

    groups, count = _groups(labels, per_label), size // per_label
    batches = _batches(labels, count, per_label)
    order = permutation(len(labels), GROUPED, seed, epoch)
    order = order[labels[order] >= 0]
    order = order[np.argsort(labels[order], kind="stable")]
    begins = np.concatenate([[0], np.cumsum(np.bincount(labels[order], minlength=len(groups)))[:-1]])
    kept = np.minimum(groups, batches)
    owner = np.repeat(np.arange(len(groups)), kept)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(kept) - kept, kept)
    left = permutation(len(owner), GROUPED, seed, epoch, 1)[: batches * count]
    # A label's groups are neighbours, and at most as many as there are batches: dealt around, they meet in none.
    left = left[np.argsort(permutation(len(groups), GROUPED, seed, epoch, 2)[owner[left]], kind="stable")]
    dealt = left.reshape(count, batches).T[permutation(batches, GROUPED, seed, epoch, 3)]
    places = begins[owner[dealt]] + number[dealt] * per_label
    chosen: NDArray[np.int64] = order[places[:, :, None] + np.arange(per_label)]
    return chosen.reshape(batches, size)
