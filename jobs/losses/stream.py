"""The tiled passes over the logits: running sums of every row forward, gradients of every feature backward.

Notation of `contrastive_loss`. No [b, B] matrix exists at any time: a tile of logits is made, reduced and dropped, and
made again in backward. What is kept is per row and float64, so that nothing cancels between rows and tiles:

    L_i = logsumexp_j l_ij over the negatives alone, without the positive;   v_i = L_i - l_ii
    (sum_j e_ij)^2 / sum_j e_ij^2, the effective sample size;   sum_j q_ij l_ij, for the derivative in the temperature.

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
from jobs.losses.spec import HARD, KEYS, MASKED_LOGIT, QUERIES, LossCall, RowSums
from jobs.losses.tiles import TILE_ELEMENTS, Block, Rows, Tile, tiles

VALUE = 4
"""Place of the loss's own value among the running sums: siglip's terms, infonce_ce's cross entropy."""


@dataclass(frozen=True)
class Sums:
    """What the forward pass leaves of this rank's rows. All float64; a leading axis holds the directions."""

    table: Tensor
    """[b, columns of Table]."""
    d_temperature: Tensor
    """[directions, b]: d loss_i / d log(1 / temperature), before the row's weight."""
    d_bias: Tensor
    """[directions, b]: siglip's d loss_i / d bias."""


@dataclass(frozen=True)
class Table:
    """Columns of the row sums that every rank learns of every row: [B, 8 + 3]."""

    positive: Tensor
    """l_ii, margin included."""
    alignment: Tensor
    """Squared distance of the pair."""
    uniformity: Tensor
    """logsumexp_j of -2 squared distance to the kept keys; at most MASKED_LOGIT without any."""
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
        """Read the named columns of a [B, 11] (or [B, 8]) table."""
        columns = table.T
        directional = columns[5:].reshape(3, -1, len(table))
        return Table(*columns[:5], *directional)

    def rows(self, call: LossCall) -> RowSums:
        """Return the row sums that a loss of anchors is a function of."""
        return RowSums(self.normaliser - self.positive, self.positive, self.value, call.bias, call.dtype)


def reduce_rows(call: LossCall, own: Rows, remote_shards: Iterable[Rows], *, derivatives: bool) -> Sums:
    """Run the forward pass: row sums of this rank's anchors over all candidates that visit.

    derivatives: also accumulate what a learned temperature or bias needs.
    """
    positive, alignment, norms = _pairs(call, own)
    sums = positive.new_zeros(len(call.directions), 7, len(own))
    sums[:, 0] = MASKED_LOGIT
    spread, duplicates = torch.full_like(positive, MASKED_LOGIT), positive.new_zeros(2, len(own))
    nothing = own.sides[QUERIES].new_zeros((), dtype=call.dtype)
    begun = set()
    for block in (Block(own, a, visit, c) for visit in remote_shards for a, c in call.blocks):
        repeats = repeats_in(call, block)
        for tile in tiles(call, block):
            logits = tile.logits(call, nothing)
            weighted, masked = exclude(call, block, tile, logits, repeats)
            if (block.anchor, block.candidate) == (QUERIES, KEYS):
                near = logits * (4 * call.temperature) - 2 * tile.y.square().sum(1)
                spread[tile.i] = torch.logaddexp(spread[tile.i], near.logsumexp(1).double() - 2 * norms[tile.i])
            if masked is not None and block.anchor == QUERIES != block.candidate:
                duplicates[int(block.candidate == HARD), tile.i] += masked
            value = _textbook(call, block, tile, logits, positive) if call.loss.textbook else None
            part, so_far = _tile_sums(call, logits, weighted, derivatives=derivatives), sums[block.anchor, :, tile.i]
            if value is not None:
                part[VALUE] = value
            rows = (block.anchor, tile.i.start)
            so_far.copy_(_merged(call, so_far, part) if rows in begun else part)
            begun.add(rows)
    return _finish(call, sums, positive, [positive, alignment, spread, *duplicates])


def _tile_sums(call: LossCall, logits: Tensor, weighted: Tensor | None, *, derivatives: bool) -> Tensor:
    """Compute sums [7, r], float64, over the columns of a tile of logits [r, c], which is overwritten.

    They are the largest logit; relative to it the sums of exp, of exp squared and of exp times logit; siglip's value
    and its derivatives in log (1 / temperature) and in the bias.
    """
    d_softmax = value = d_sigmoid = d_bias = logits.new_zeros(logits.shape[0])
    if not call.softmax:
        terms = logits + call.bias
        value = F.softplus(terms, threshold=60).sum(1)
        if derivatives:
            d_sigmoid, d_bias = _derivative(call, terms.sigmoid_(), logits, weighted)
    top = logits.amax(1)
    below = logits.sub_(top[:, None])
    if derivatives and call.softmax:
        shares = torch.exp(below)
        d_softmax, mass = _derivative(call, shares, below, weighted)
    else:
        shares = below.exp_()
        mass = shares.sum(1)
    square = torch.linalg.vector_norm(shares, dim=1).square()
    return torch.stack([top, mass, square, d_softmax, value, d_sigmoid, d_bias]).double()


def _textbook(call: LossCall, block: Block, tile: Tile, logits: Tensor, positive: Tensor) -> Tensor:
    """Compute the cross entropy over a tile's columns, the positive's 1 among the exponentials that are summed: [r].

    It is in the dtype of the loss, as textbooks and log_softmax do it, so that it cancels as theirs does.
    """
    relative = logits - positive[tile.i, None].to(call.dtype)
    if block.candidates is block.anchors and block.candidate == KEYS - block.anchor:
        relative.diagonal(tile.i.start - tile.j.start).fill_(0)
    return relative.logsumexp(1)


def _derivative(call: LossCall, shares: Tensor, logits: Tensor, weighted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the sums over columns of shares times logits, without the log weight in them, and of shares."""
    d_scale = (shares * logits).sum(1)
    if weighted is not None:
        d_scale -= call.log_weight * (shares * weighted).sum(1)
    return d_scale, shares.sum(1)


def _merged(call: LossCall, first: Tensor, second: Tensor) -> Tensor:
    """Merge the sums [7, r] of two sets of columns."""
    both = torch.stack([first, second])
    highest = both[:, 0].amax(0)
    lower = both[:, 0] - highest
    scale = lower.exp()
    mass, square, d_softmax = scale * both[:, 1], scale.square() * both[:, 2], scale * (both[:, 3] + lower * both[:, 1])
    merged = torch.stack([highest, *torch.stack([mass, square, d_softmax, *both[:, VALUE:].unbind(1)]).sum(1)])
    if call.loss.textbook:
        merged[VALUE] = torch.logaddexp(*both[:, VALUE].to(call.dtype))
    return merged


def _finish(call: LossCall, sums: Tensor, positive: Tensor, columns: list[Tensor]) -> Sums:
    """Close the running sums [directions, 7, b] of all tiles."""
    top, mass, square, d_softmax, value, d_sigmoid, d_bias = sums.unbind(1)
    none = top <= MASKED_LOGIT / 2
    normaliser = (top + mass.log()).masked_fill(none, -torch.inf)
    effective = (mass.square() / square).masked_fill(none, 0.0)
    if call.softmax:
        d_temperature = (d_softmax / mass + top - positive).masked_fill(none, 0.0)
    else:
        logit = positive + call.bias
        value = value + F.softplus(-logit, threshold=700)
        d_temperature = d_sigmoid - torch.sigmoid(-logit) * positive
        d_bias = d_bias - torch.sigmoid(-logit)
    table = torch.stack([*columns, *normaliser, *effective, *value], dim=1)
    return Sums(table, d_temperature, d_bias)


def _pairs(call: LossCall, own: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Compute for each pair, in float64: the positive's logit, the squared distance, the query's squared norm."""
    parts = []
    rows = max(1, TILE_ELEMENTS // (4 * call.width))
    for i in range(0, max(len(own), 1), rows):
        q, k = own.sides[QUERIES][i : i + rows].double(), own.sides[KEYS][i : i + rows].double()
        parts.append(torch.stack([(q * k).sum(1), (q - k).square().sum(1), q.square().sum(1)]))
    similarity, distance, norm = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    return (similarity - call.spec.margin) / call.temperature, distance, norm


def gradients(
    call: LossCall,
    own: Rows,
    remote_shards: Iterable[Rows],
    *,
    table: Table,
    weights: Tensor,
    wanted: tuple[bool, ...],
) -> list[list[Tensor | None]]:
    """Run the backward pass: for every set of row weights, the gradient of each side of this rank's rows.

    weights: [sets, 2, directions, B], what a row's negatives and its positive are multiplied by, 1 / temperature
    included. wanted: which sides need a gradient. Several sets share one recomputation of the tiles.
    """
    negative, positive = weights[:, 0].to(call.dtype), weights[:, 1].to(call.dtype)
    result = [
        [torch.zeros_like(x, dtype=call.dtype) if want else None for x, want in zip(own.sides, wanted, strict=False)]
        for _ in weights
    ]
    for grads, positive_weight in zip(result, positive[:, :, own.start : own.start + len(own)].sum(1), strict=True):
        for side in (QUERIES, KEYS):
            if (grad := grads[side]) is not None:
                grad.addcmul_(positive_weight[:, None], own.sides[KEYS - side].to(call.dtype), value=-1)
    for block in _blocks(call, own, remote_shards):
        to_anchors = block.anchors is own and wanted[block.anchor]
        to_candidates = block.candidates is own and wanted[block.candidate]
        if not (to_anchors or to_candidates):
            continue
        repeats = repeats_in(call, block)
        for tile in tiles(call, block):
            rows = slice(block.anchors.start + tile.i.start, block.anchors.start + tile.i.stop)
            shares = _shares(call, block, tile, repeats, table.normaliser[block.anchor, rows])
            pulled = shares @ tile.y if to_anchors else None
            for grads, row_weights in zip(result, negative[:, block.anchor, rows, None], strict=True):
                if pulled is not None and (grad := grads[block.anchor]) is not None:
                    grad[tile.i].addcmul_(row_weights, pulled)
                if to_candidates and (grad := grads[block.candidate]) is not None:
                    grad[tile.j].addmm_(shares.T, row_weights * tile.x)
    return result


def _blocks(call: LossCall, own: Rows, remote_shards: Iterable[Rows]) -> Iterator[Block]:
    """Yield every block with this rank's rows at either end, or at both."""
    for visit in remote_shards:
        for anchor, candidate in call.blocks:
            yield Block(own, anchor, visit, candidate)
            if visit is not own:
                yield Block(visit, anchor, own, candidate)


def _shares(call: LossCall, block: Block, tile: Tile, repeats: Repeats | None, normaliser: Tensor) -> Tensor:
    """Compute in a tile each negative's share q_ij of its row (softmax), or sigmoid of its logit (siglip); else 0."""
    shift = (
        -normaliser.to(call.dtype).clamp(min=MASKED_LOGIT)[:, None] if call.softmax else tile.x.new_tensor(call.bias)
    )
    logits = tile.logits(call, shift)
    exclude(call, block, tile, logits, repeats)
    return logits.exp_() if call.softmax else logits.sigmoid_()
