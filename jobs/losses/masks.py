"""What is no negative of an anchor: its own positive, what is in another pool or not there, and what has an id of its
pair.

The rule on ids is that of `contrastive_loss`. Between pairs it is mutual, so one comparison serves either direction.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.core.ids import ABSENT
from jobs.losses.spec import HARD, MASKED_LOGIT, QUERIES, LossCall
from jobs.losses.tiles import Block, Rows, Tile

FEW = 1 << 14
"""Logits of a block of which every row is compared with every column at once: looking for repeats takes longer."""


@dataclass(frozen=True)
class Repeats:
    """The ids of a block, and which of its rows and columns can meet an equal one at all: most data have few."""

    left: Tensor
    """int64 [k, n]: all ids of each anchor."""
    right: Tensor
    """int64 [l, m]: all ids of each candidate."""
    rows: _Sorted | None
    """Anchors with an id that a candidate of another pair has, and candidates likewise; None: any may."""
    columns: _Sorted | None
    absent: Tensor | None = None
    """bool [m]: candidates that are not there; None where all are."""

    def exclude(self, logits: Tensor, tile: Tile, *, own: int | None, other_pools: Tensor | None) -> Tensor:
        """Put MASKED_LOGIT where ids are equal. Returns how many such candidates each row has in its pool, int64 [r].

        own: the diagonal of the anchors' own pairs, which are not among them. Where few rows and columns can have an
        equal, these alone are compared.
        """
        if self.rows is not None and self.columns is not None:
            i, j = self.rows.within(tile.i), self.columns.within(tile.j)
            if 4 * len(i) * len(j) < logits.numel():
                equal = self.equal(i, j)
                i, j = i - tile.i.start, j - tile.j.start
                if own is not None:
                    equal &= (i + own)[:, None] != j
                if other_pools is not None:
                    equal &= ~other_pools[i[:, None], j]
                a, b = equal.nonzero(as_tuple=True)
                logits[i[a], j[b]] = MASKED_LOGIT
                return logits.new_zeros(len(logits), dtype=torch.int64).index_copy_(0, i, equal.sum(1))
        equal = self.equal(tile.i, tile.j)
        if own is not None:
            equal.diagonal(own).fill_(False)
        if other_pools is not None:
            equal &= ~other_pools
        logits.masked_fill_(equal, MASKED_LOGIT)
        return equal.sum(1)

    def equal(self, i: slice | Tensor, j: slice | Tensor) -> Tensor:
        """Find where an anchor and a candidate share an id: bool [rows i, columns j]."""
        equal: Tensor | None = None
        for mine, theirs in itertools.product(self.left[:, i], self.right[:, j]):
            same = mine[:, None] == theirs[None, :]
            equal = same if equal is None else equal.logical_or_(same)
        assert equal is not None, "a block without ids has no Repeats"
        return equal


@dataclass(frozen=True)
class _Sorted:
    """Ascending places, int64 [p], on the device and in numpy."""

    places: Tensor
    known: NDArray[np.int64]

    @staticmethod
    def where(flags: Tensor) -> _Sorted:
        places = flags.nonzero().view(-1)
        return _Sorted(places, places.cpu().numpy())

    def within(self, part: slice) -> Tensor:
        first, last = np.searchsorted(self.known, [part.start, part.stop])
        return self.places[first:last]


def repeats_in(call: LossCall, block: Block) -> Repeats | None:
    """Find what there is to compare in a block; None without ids."""
    left = block.anchors.ids_of(QUERIES, call.texts)
    right = block.candidates.ids_of(block.candidate, call.texts)
    if left is None or right is None:
        return None
    absent = (right[0] == ABSENT) if block.candidate == HARD else None
    if absent is not None and not absent.any():
        absent = None
    if left.shape[1] * right.shape[1] <= FEW:
        return Repeats(left, right, None, None, absent)
    if block.candidates is block.anchors and block.candidate != HARD:
        _, inverse, count = torch.unique(left, return_inverse=True, return_counts=True)
        repeated = _Sorted.where((count[inverse] > 1).any(0))
        return Repeats(left, right, repeated, repeated)
    rows, columns = (_Sorted.where(torch.isin(a, b).any(0)) for a, b in ((left, right), (right, left)))
    return Repeats(left, right, rows, columns, absent)


def exclude(
    call: LossCall, block: Block, tile: Tile, logits: Tensor, repeats: Repeats | None
) -> tuple[Tensor | None, Tensor | None]:
    """Weigh an anchor's own hard negatives and put MASKED_LOGIT where a candidate is no negative, in place.

    Returns the mask of own hard negatives where they are weighted, and how many candidates of each row's pool were left
    out because of equal ids, where there are ids; else None.
    """
    hard = block.candidate == HARD
    rows = _pair_range(block.anchors, tile.i, 1)
    owners = _pair_range(block.candidates, tile.j, call.hard if hard else 1)
    mask = _other_pools(call, rows, owners, logits) if call.pool else None
    weighted = None
    if hard and call.log_weight:
        weighted = rows.index(logits)[:, None] == owners.index(logits)[None, :]
        logits.add_(weighted, alpha=call.log_weight)
    own = None if hard else rows.first - owners.first
    duplicates = None if repeats is None else repeats.exclude(logits, tile, own=own, other_pools=mask)
    if repeats is not None and repeats.absent is not None:
        logits.masked_fill_(repeats.absent[tile.j], MASKED_LOGIT)
    if not hard:
        logits.diagonal(rows.first - owners.first).fill_(MASKED_LOGIT)
    if mask is not None:
        logits.masked_fill_(mask, MASKED_LOGIT)
    return weighted, duplicates


@dataclass(frozen=True)
class _PairRange:
    """The global pairs that rows or columns of a tile belong to: `count` entries, `per_pair` of them to a pair."""

    first: int
    last: int
    offset: int
    count: int
    per_pair: int

    def index(self, like: Tensor) -> Tensor:
        """Compute the global pair of every entry, int64 [count]."""
        return self.first + torch.arange(self.offset, self.offset + self.count, device=like.device) // self.per_pair


def _pair_range(rows: Rows, part: slice, per_pair: int) -> _PairRange:
    first, offset = divmod(part.start, per_pair)
    last = (part.stop - 1) // per_pair
    return _PairRange(rows.start + first, rows.start + last, offset, part.stop - part.start, per_pair)


def _other_pools(call: LossCall, rows: _PairRange, owners: _PairRange, logits: Tensor) -> Tensor | None:
    """Mark where anchor and candidate are in different pools; None where the whole tile lies in one pool."""
    pool = call.pool or call.total
    ends = {pair // pool for pair in (rows.first, rows.last, owners.first, owners.last)}
    if len(ends) == 1:
        return None
    return (rows.index(logits) // pool)[:, None] != (owners.index(logits) // pool)[None, :]
