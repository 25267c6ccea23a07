"""The tiled passes over the logits: running sums of every row forward, gradients of every feature backward.

Notation of `contrastive_loss`. No [b, B] matrix exists at any time: a tile of logits is made, reduced and dropped, and
made again in backward. What is kept is per row and float64, so that nothing cancels between rows and tiles:

    L_i = logsumexp_j l_ij over the negatives alone, without the positive;   v_i = L_i - l_ii
    (sum_j e_ij)^2 / sum_j e_ij^2, the effective sample size;   sum_j q_ij l_ij, the slope in the temperature.

A rank reduces the rows of its own anchors against everybody's candidates. In backward it also runs everybody's anchors
against its own candidates, with the L_i that their ranks have found, so its features' gradient is complete without a
reduction between ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.losses.masks import Repeats, exclude, repeats_in
from jobs.losses.problem import HARD, KEYS, QUERIES, LossSpec
from jobs.losses.tiles import MASKED_LOGIT, TILE_ELEMENTS, Block, Rows, Tile, tiles

VALUE = 4
"""Place of the loss's own value among the running sums: siglip's terms, infonce_ce's cross entropy."""


@dataclass(frozen=True)
class Sums:
    """What the forward pass leaves of this rank's rows. All float64; a leading axis holds the directions."""

    table: Tensor
    """[b, columns of Table]."""
    slope: Tensor
    """[directions, b]: d loss_i / d log(1 / temperature), before the row's weight."""
    push: Tensor
    """[directions, b]: siglip's d loss_i / d bias."""


@dataclass(frozen=True)
class Table:
    """Columns of the row sums that every rank learns of every row: [B, 8 + 3]."""

    positive: Tensor
    """l_ii, margin included."""
    alignment: Tensor
    """Squared distance of the pair."""
    uniformity: Tensor
    """logsumexp_j of -2 squared distance to the kept keys; at most FAR without any."""
    duplicates: Tensor
    """Keys masked because of an equal id."""
    hard_duplicates: Tensor
    """Hard negatives masked so."""
    normaliser: Tensor
    """[directions, B]: L_i, -inf without negatives."""
    effective: Tensor
    """[directions, B]: effective sample size, 0 without negatives."""
    value: Tensor
    """[directions, B]: siglip's terms, infonce_ce's cross entropy."""

    @staticmethod
    def read(table: Tensor) -> Table:
        """The named columns of a [B, 11] (or [B, 8]) table."""
        columns = table.T
        directional = columns[5:].reshape(3, -1, len(table))
        return Table(*columns[:5], *directional)


def reduce_rows(problem: LossSpec, own: Rows, remote_shards: Iterable[Rows], *, slopes: bool) -> Sums:
    """The forward pass: row sums of this rank's anchors over all candidates that visit.

    slopes: also accumulate what a learned temperature or bias needs.
    """
    positive, alignment, norms = _pairs(problem, own)
    sums = positive.new_zeros(len(problem.directions), 7, len(own))
    sums[:, 0] = MASKED_LOGIT
    spread, duplicates = torch.full_like(positive, MASKED_LOGIT), positive.new_zeros(2, len(own))
    nothing = own.sides[QUERIES].new_zeros((), dtype=problem.dtype)
    begun = set()
    for block in (Block(own, a, visit, c) for visit in remote_shards for a, c in problem.blocks):
        repeats = repeats_in(problem, block)
        for tile in tiles(problem, block):
            logits = tile.logits(problem, nothing)
            weighted, masked = exclude(problem, block, tile, logits, repeats)
            if (block.anchor, block.candidate) == (QUERIES, KEYS):
                near = logits * (4 * problem.temperature) - 2 * tile.y.square().sum(1)
                spread[tile.i] = torch.logaddexp(spread[tile.i], near.logsumexp(1).double() - 2 * norms[tile.i])
            if masked is not None and block.anchor == QUERIES != block.candidate:
                duplicates[int(block.candidate == HARD), tile.i] += masked
            value = _textbook(problem, block, tile, logits, positive) if problem.name == "infonce_ce" else None
            part, so_far = _tile_sums(problem, logits, weighted, slopes=slopes), sums[block.anchor, :, tile.i]
            if value is not None:
                part[VALUE] = value
            rows = (block.anchor, tile.i.start)
            so_far.copy_(_merged(problem, so_far, part) if rows in begun else part)
            begun.add(rows)
    return _finish(problem, sums, positive, [positive, alignment, spread, *duplicates])


def _tile_sums(problem: LossSpec, logits: Tensor, weighted: Tensor | None, *, slopes: bool) -> Tensor:
    """Sums [7, r], float64, over the columns of a tile of logits [r, c], which is overwritten.

    The largest logit; relative to it the sums of exp, of exp squared and of exp times logit; siglip's value and its
    derivatives in log (1 / temperature) and in the bias.
    """
    slope = value = pull = push = logits.new_zeros(logits.shape[0])
    if not problem.softmax:
        terms = logits + problem.bias
        value = F.softplus(terms, threshold=60).sum(1)
        if slopes:
            pull, push = _slope(problem, terms.sigmoid_(), logits, weighted)
    top = logits.amax(1)
    below = logits.sub_(top[:, None])
    if slopes and problem.softmax:
        shares = torch.exp(below)
        slope, mass = _slope(problem, shares, below, weighted)
    else:
        shares = below.exp_()
        mass = shares.sum(1)
    square = torch.linalg.vector_norm(shares, dim=1).square()
    return torch.stack([top, mass, square, slope, value, pull, push]).double()


def _textbook(problem: LossSpec, block: Block, tile: Tile, logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy over a tile's columns, the positive's 1 among the exponentials that are summed: [r].

    In the dtype of the loss, as textbooks and log_softmax do it, so that it cancels as theirs does.
    """
    relative = logits - positive[tile.i, None].to(problem.dtype)
    if block.candidates is block.anchors and block.candidate == KEYS - block.anchor:
        relative.diagonal(tile.i.start - tile.j.start).fill_(0)
    return relative.logsumexp(1)


def _slope(problem: LossSpec, shares: Tensor, logits: Tensor, weighted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over columns of shares times logits, without the log weight in them, and of shares."""
    slope = (shares * logits).sum(1)
    if weighted is not None:
        slope -= problem.log_weight * (shares * weighted).sum(1)
    return slope, shares.sum(1)


def _merged(problem: LossSpec, first: Tensor, second: Tensor) -> Tensor:
    """The sums [7, r] of two sets of columns."""
    both = torch.stack([first, second])
    highest = both[:, 0].amax(0)
    lower = both[:, 0] - highest
    scale = lower.exp()
    mass, square, slope = scale * both[:, 1], scale.square() * both[:, 2], scale * (both[:, 3] + lower * both[:, 1])
    merged = torch.stack([highest, *torch.stack([mass, square, slope, *both[:, VALUE:].unbind(1)]).sum(1)])
    if problem.name == "infonce_ce":
        merged[VALUE] = torch.logaddexp(*both[:, VALUE].to(problem.dtype))
    return merged


def _finish(problem: LossSpec, sums: Tensor, positive: Tensor, columns: list[Tensor]) -> Sums:
    """Close the running sums [directions, 7, b] of all tiles."""
    top, mass, square, slope, value, pull, push = sums.unbind(1)
    none = top <= MASKED_LOGIT / 2
    normaliser = (top + mass.log()).masked_fill(none, -torch.inf)
    effective = (mass.square() / square).masked_fill(none, 0.0)
    if problem.softmax:
        slope = (slope / mass + top - positive).masked_fill(none, 0.0)
    else:
        logit = positive + problem.bias
        value = value + F.softplus(-logit, threshold=700)
        slope, push = pull - torch.sigmoid(-logit) * positive, push - torch.sigmoid(-logit)
    table = torch.stack([*columns, *normaliser, *effective, *value], dim=1)
    return Sums(table, slope, push)


def _pairs(problem: LossSpec, own: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Per pair, in float64: the positive's logit, the squared distance, the query's squared norm."""
    parts = []
    rows = max(1, TILE_ELEMENTS // (4 * problem.width))
    for i in range(0, max(len(own), 1), rows):
        q, k = own.sides[QUERIES][i : i + rows].double(), own.sides[KEYS][i : i + rows].double()
        parts.append(torch.stack([(q * k).sum(1), (q - k).square().sum(1), q.square().sum(1)]))
    similarity, distance, norm = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    return (similarity - problem.margin) / problem.temperature, distance, norm


def gradients(
    problem: LossSpec,
    own: Rows,
    remote_shards: Iterable[Rows],
    *,
    table: Table,
    weights: Tensor,
    wanted: tuple[bool, ...],
) -> list[list[Tensor | None]]:
    """The backward pass: for every set of row weights, the gradient of each side of this rank's rows.

    weights: [sets, 2, directions, B], what a row's negatives and its positive are multiplied by, 1 / temperature
    included. wanted: which sides need a gradient. Several sets share one recomputation of the tiles.
    """
    negative, positive = weights[:, 0].to(problem.dtype), weights[:, 1].to(problem.dtype)
    result = [
        [torch.zeros_like(x, dtype=problem.dtype) if want else None for x, want in zip(own.sides, wanted, strict=False)]
        for _ in weights
    ]
    for grads, pull in zip(result, positive[:, :, own.start : own.start + len(own)].sum(1), strict=True):
        for side in (QUERIES, KEYS):
            if (grad := grads[side]) is not None:
                grad.addcmul_(pull[:, None], own.sides[KEYS - side].to(problem.dtype), value=-1)
    for block in _blocks(problem, own, remote_shards):
        to_anchors = block.anchors is own and wanted[block.anchor]
        to_candidates = block.candidates is own and wanted[block.candidate]
        if not (to_anchors or to_candidates):
            continue
        repeats = repeats_in(problem, block)
        for tile in tiles(problem, block):
            rows = slice(block.anchors.start + tile.i.start, block.anchors.start + tile.i.stop)
            shares = _shares(problem, block, tile, repeats, table.normaliser[block.anchor, rows])
            pulled = shares @ tile.y if to_anchors else None
            for grads, row_weights in zip(result, negative[:, block.anchor, rows, None], strict=True):
                if pulled is not None and (grad := grads[block.anchor]) is not None:
                    grad[tile.i].addcmul_(row_weights, pulled)
                if to_candidates and (grad := grads[block.candidate]) is not None:
                    grad[tile.j].addmm_(shares.T, row_weights * tile.x)
    return result


def _blocks(problem: LossSpec, own: Rows, remote_shards: Iterable[Rows]) -> Iterator[Block]:
    """Every block with this rank's rows at either end, or at both."""
    for visit in remote_shards:
        for anchor, candidate in problem.blocks:
            yield Block(own, anchor, visit, candidate)
            if visit is not own:
                yield Block(visit, anchor, own, candidate)


def _shares(problem: LossSpec, block: Block, tile: Tile, repeats: Repeats | None, normaliser: Tensor) -> Tensor:
    """Of a tile, each negative's share q_ij of its row (softmax), or the sigmoid of its logit (siglip); else 0."""
    shift = (
        -normaliser.to(problem.dtype).clamp(min=MASKED_LOGIT)[:, None]
        if problem.softmax
        else tile.x.new_tensor(problem.bias)
    )
    logits = tile.logits(problem, shift)
    exclude(problem, block, tile, logits, repeats)
    return logits.exp_() if problem.softmax else logits.sigmoid_()
