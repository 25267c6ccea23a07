"""Rows of a global batch, and the tiles in which their logits are made: no [b, B] matrix exists at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.losses.spec import HARD, QUERIES, LossCall

TILE_ELEMENTS = 1 << 20
"""Logits held at once when the caller does not say: 4 MiB of float32 stay near the cores."""


@dataclass(frozen=True)
class Rows:
    """Consecutive pairs of the global batch: `start` is the first one's index, sides are [n, D], [n, D], [n H, D]."""

    start: int
    sides: tuple[Tensor, ...]
    ids: Tensor | None
    """int64 [n, k]: what equal texts have equal, `texts` columns of the pair and then those of its hard negatives."""

    def __len__(self) -> int:
        return self.sides[QUERIES].shape[0]

    def ids_of(self, side: int, texts: int) -> Tensor | None:
        """Return all ids of each pair, int64 [texts, n]; for HARD, of its negatives, [1, n H]; None without any."""
        if self.ids is None or (side == HARD and self.ids.shape[1] == texts):
            return None
        return self.ids[:, texts:].reshape(1, -1) if side == HARD else self.ids[:, :texts].T.contiguous()


@dataclass(frozen=True)
class Block:
    """One side of some anchors against one side of some candidates."""

    anchors: Rows
    anchor: int
    candidates: Rows
    candidate: int


@dataclass(frozen=True)
class Tile:
    """Rows i and columns j of a block, and their features x [r, D] and y [c, D] in the dtype of the loss."""

    i: slice
    j: slice
    x: Tensor
    y: Tensor

    def logits(self, call: LossCall, shift: Tensor) -> Tensor:
        """Compute similarities over temperature, plus `shift`: [r, c]."""
        return torch.addmm(shift, self.x, self.y.T, alpha=1 / call.temperature)


def tiles(call: LossCall, block: Block) -> Iterator[Tile]:
    """Yield every tile of a block, without those wholly outside the rows' pools."""
    anchors, candidates = block.anchors, block.candidates
    left, right = anchors.sides[block.anchor], candidates.sides[block.candidate]
    per_pair = call.hard if block.candidate == HARD else 1
    rows, columns = _tile_shape(call, len(left), len(right))
    for start in range(0, len(left), rows):
        i = slice(start, min(start + rows, len(left)))
        x = left[i].to(call.dtype)
        low, high = 0, len(candidates)
        if call.pool:
            first, last = (anchors.start + i.start) // call.pool, (anchors.start + i.stop - 1) // call.pool
            low = max(low, first * call.pool - candidates.start)
            high = min(high, (last + 1) * call.pool - candidates.start)
        for begin in range(low * per_pair, high * per_pair, columns):
            j = slice(begin, min(begin + columns, high * per_pair))
            yield Tile(i, j, x, right[j].to(call.dtype))


def _tile_shape(call: LossCall, rows: int, columns: int) -> tuple[int, int]:
    """Choose how many rows and columns of logits are held at once."""
    if call.spec.tile:
        return call.spec.tile, call.spec.tile
    if call.pool:  # wider tiles would be masked for the most part
        rows = min(rows, max(call.pool, 128))
    if rows * columns <= TILE_ELEMENTS:
        return max(rows, 1), max(columns, 1)
    columns = min(columns, 2048)
    return max(1, min(rows, TILE_ELEMENTS // columns)), columns
