"""What is no negative: an anchor's own positive, other pools, and what has an id of its own pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.losses.problem import HARD, Problem
from jobs.losses.tiles import FAR, Block, Rows, Tile


def exclude(problem: Problem, block: Block, tile: Tile, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Weigh an anchor's own hard negatives and put FAR where a candidate is no negative, in place.

    Returns the mask of own hard negatives where they are weighted, and the duplicates masked per row where there are
    pair ids; else None.
    """
    hard = block.candidate == HARD
    rows = _pair_range(block.anchors, tile.i, 1)
    owners = _pair_range(block.candidates, tile.j, problem.hard if hard else 1)
    mask = _other_pools(problem, rows, owners, logits) if problem.pool else None
    weighted = duplicates = None
    if hard:
        if problem.log_weight:
            weighted = rows.index(logits)[:, None] == owners.index(logits)[None, :]
            logits.add_(weighted, alpha=problem.log_weight)
    else:
        if block.anchors.ids is not None and block.candidates.ids is not None:
            equal = block.anchors.ids[tile.i, None] == block.candidates.ids[None, tile.j]
            equal.diagonal(rows.first - owners.first).fill_(False)
            duplicates = (equal if mask is None else equal & ~mask).sum(1)
            mask = equal if mask is None else mask | equal
        logits.diagonal(rows.first - owners.first).fill_(FAR)
    if mask is not None:
        logits.masked_fill_(mask, FAR)
    return weighted, duplicates


@dataclass(frozen=True)
class _PairRange:
    """The global pairs that rows or columns of a tile belong to: `count` entries, `each` of them to a pair."""

    first: int
    last: int
    offset: int
    count: int
    each: int

    def index(self, like: Tensor) -> Tensor:
        """Global pair of every entry, int64 [count]."""
        return self.first + torch.arange(self.offset, self.offset + self.count, device=like.device) // self.each


def _pair_range(rows: Rows, part: slice, each: int) -> _PairRange:
    first, offset = divmod(part.start, each)
    return _PairRange(rows.start + first, rows.start + (part.stop - 1) // each, offset, part.stop - part.start, each)


def _other_pools(problem: Problem, rows: _PairRange, owners: _PairRange, logits: Tensor) -> Tensor | None:
    """Where anchor and candidate are in different pools; None where the whole tile lies in one pool."""
    pool = problem.pool or problem.total
    ends = {pair // pool for pair in (rows.first, rows.last, owners.first, owners.last)}
    if len(ends) == 1:
        return None
    return (rows.index(logits) // pool)[:, None] != (owners.index(logits) // pool)[None, :]
