"""Batches of which no two rows say the same on either side.

An epoch holds every row once. Its first rows complete the batch in which the epoch before has ended, so they keep clear
of what stands there, which is chosen first: an epoch is a function of (seed, epoch) and of the last rows of the one
before, and of nothing further back.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from jobs.data.samplers._epochs import planned_once, shuffled_epoch, window

TRIES = 2_000_000
"""Rows that are looked at, in an epoch, to make room for those that found no batch: a second or two."""


def no_duplicates(rows: int, size: int, seed: int, step: int, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose rows of which no two share a text, on either side, or an image: in a random order, a row that would repeat
    one waits for the next batch that has neither. Every row comes once an epoch. Rows that find no such batch, as those
    of a text that is in more rows than the epoch has batches, come in its last ones. Batches run on across its end."""
    if size > rows:
        raise ValueError(f"a batch of {size} out of {rows} rows has some of them twice; set batch.size to {rows}")
    return window(rows, (step - 1) * size, size, partial(_epoch, ids, size, seed))


@planned_once
def _epoch(ids: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Sort all rows: those that complete a batch, whole batches, and those that begin the batch of the next epoch."""
    n = len(ids)
    head = -epoch * n % size
    rest, last = shuffled_epoch(n, seed, epoch), _last(ids, size, seed, epoch)
    rest = rest[~np.isin(rest, last)]
    before = ids[_last(ids, size, seed, epoch - 1)] if head else ids[:0]
    first = _distinct(ids, rest, head, met=before.reshape(-1).tolist())
    rest = rest[~np.isin(rest, first)]
    return np.concatenate([first, _spread(*_repeated(ids), rest, size), last])


def _last(ids: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Choose the rows that begin the batch in which an epoch ends, from the end of its random order."""
    n = len(ids)
    return _distinct(ids, shuffled_epoch(n, seed, epoch)[::-1], (epoch + 1) * n % size)


def _distinct(
    ids: NDArray[np.int64], rows: NDArray[np.int64], count: int, *, met: Iterable[int] = ()
) -> NDArray[np.int64]:
    """Choose the first `count` rows that share no id with each other or with `met`; where there are too few, the first
    others as well."""
    seen, chosen, passed = set(met), [], []
    for row in rows.tolist() if count else ():
        own = ids[row].tolist()
        if seen.isdisjoint(own):
            seen.update(own)
            chosen.append(row)
            if len(chosen) == count:
                break
        else:
            passed.append(row)
    return np.array([*chosen, *passed[: count - len(chosen)]], np.int64)


@planned_once
def _repeated(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number the ids from 0, [n, k], and say which of these numbers more than one row has."""
    known, codes = np.unique(ids, return_inverse=True)
    codes = np.sort(codes.reshape(ids.shape), axis=1)
    once = np.ones(codes.shape, bool)
    once[:, 1:] = codes[:, 1:] > codes[:, :-1]
    return codes, np.bincount(codes[once], minlength=len(known)) > 1


def _spread(
    codes: NDArray[np.int64], is_repeated: NDArray[np.bool_], rows: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """Sort rows, a multiple of `size`, so that each lies in the first batch that has room and none of its codes."""
    plan = _Batches(len(rows) // size, size)
    flags = is_repeated[codes[rows]]
    own: list[tuple[int, ...]] = [()] * len(rows)
    for at in np.flatnonzero(flags.any(1)).tolist():
        own[at] = tuple(codes[rows[at]][flags[at]].tolist())
    left = [at for at, texts in enumerate(own) if not plan.place(at, texts)]
    holes = np.repeat(np.arange(plan.count), plan.room).tolist()
    tries = TRIES
    for at, hole in zip(left, holes, strict=True):
        tries = plan.make_room(at, own, hole, tries)
    return rows[np.argsort(plan.batch_of(len(rows)), kind="stable")]


class _Batches:
    """Batches as they fill: which texts that repeat each of them has."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.room = count, [size] * count
        self._members: list[list[int]] = [[] for _ in range(count)]
        self._met: dict[int, set[int]] = {}
        """Text -> the batches that have it."""
        self._begin: dict[int, int] = {}
        """Text -> the first batch that may not have it."""
        self._repeating: set[int] = set()
        """Batches with rows that share a text."""
        self._onward = list(range(count + 1))
        """Of a full batch: one behind it, towards the next that has room."""

    def place(self, at: int, texts: tuple[int, ...]) -> bool:
        """Put a row into the first batch that has room and none of its texts; return False where there is none."""
        batch = self._open_from(max((self._begin.get(text, 0) for text in texts), default=0))
        while batch < self.count and not self._fits(texts, batch):
            batch = self._open_from(batch + 1)
        if batch == self.count:
            return False
        self._put(at, texts, batch)
        self.room[batch] -= 1
        if not self.room[batch]:
            self._onward[batch] = batch + 1
        for text in texts:
            first, there = self._begin.get(text, 0), self._met[text]
            while first in there:
                first += 1
            self._begin[text] = first
        return True

    def make_room(self, at: int, own: list[tuple[int, ...]], hole: int, tries: int) -> int:
        """Put a row into another batch, from the last one back, in the place of one that fits the hole; where none is
        found, into the hole itself. Returns how many more rows may be tried."""
        is_everywhere = any(len(self._met.get(text, ())) >= self.count for text in own[at])
        for batch in range(self.count - 1, -1, -1) if tries > 0 and not is_everywhere else ():
            tries -= 1
            if batch == hole or batch in self._repeating or not self._fits(own[at], batch):
                continue
            tries -= len(self._members[batch])
            other = next((row for row in self._members[batch] if self._fits(own[row], hole)), None)
            if other is not None:
                self._members[batch].remove(other)
                for text in own[other]:
                    self._met[text].discard(batch)
                self._put(other, own[other], hole)
                self._put(at, own[at], batch)
                return tries
            if tries <= 0:
                break
        if not self._fits(own[at], hole):
            self._repeating.add(hole)
        self._put(at, own[at], hole)
        return tries

    def batch_of(self, rows: int) -> NDArray[np.int64]:
        """Return the batch of each row, [rows]."""
        batches = np.empty(rows, np.int64)
        for batch, members in enumerate(self._members):
            batches[members] = batch
        return batches

    def _put(self, at: int, texts: tuple[int, ...], batch: int) -> None:
        self._members[batch].append(at)
        for text in texts:
            self._met.setdefault(text, set()).add(batch)

    def _fits(self, texts: tuple[int, ...], batch: int) -> bool:
        return not any(batch in self._met.get(text, ()) for text in texts)

    def _open_from(self, batch: int) -> int:
        """Find the first batch from this one on that has room; `count` if there is none."""
        onward = self._onward
        while onward[batch] != batch:
            onward[batch] = onward[onward[batch]]
            batch = onward[batch]
        return batch
