"""In-batch contrastive losses: exact on any number of ranks, streamed in tiles, without cancellation.

For anchor i with positive i and negatives j, logits l = similarity / temperature (the margin taken off the positive):

    v_i = logsumexp_j (l_ij - l_ii) over negatives only;   p_i = 1 / (1 + exp v_i), the positive's probability

    infonce          softplus(v), gradient (1 - p) sum_j q_j grad (l_ij - l_ii)        van den Oord et al. 2018
    infonce_ce       the same by textbook cross entropy, whose p - 1 cancels; kept to measure the difference
    infonce_matched  infonce, its gradient scaled per batch to the norm of flatnce's gradient of the embeddings
    dcl              v, gradient sum_j q_j grad (l_ij - l_ii)                          Yeh et al. 2022
    flatnce          dcl's gradient; its value is infonce's, so that curves can be read  Chen et al. 2021
    siglip           sum over kept pairs of softplus(-+(l_ij + bias)), over B          Zhai et al. 2023

Collectives of a call with W > 1 ranks, whatever the tile: a header (256 bytes), the features (gather: one all_gather;
ring: W - 1 sends and receives of each tensor), and row sums (88 bytes a pair). Backward: none for gather, W - 1 sends
and receives for ring, one all_reduce of two numbers more for infonce_matched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jobs.core.collectives import Group, gather_rows, ring, sum_rows, world_of
from jobs.losses.problem import HARD, QUERIES, LossInputs, LossSpec, agreed_problem
from jobs.losses.stream import Table, gradients, reduce_rows
from jobs.losses.tiles import MASKED_LOGIT, Rows

__all__ = ["Diagnostics", "contrastive_loss"]

SATURATED = 6e-6
"""Below this 1 - p, cross entropy's gradient loses a per cent and more to cancellation in float32."""


@dataclass(frozen=True)
class Diagnostics:
    """Means over all anchors of the global batch, both directions where symmetric; the same on every rank."""

    positive_probability: float
    """p, of the softmax over positive and negatives; for siglip as well, so that losses compare. 1 for an anchor
    without negatives, as where all of them are left out for equal ids."""
    effective_sample_size: float
    """1 / sum_j q_j^2: how many negatives share the gradient; 0 for an anchor without negatives."""
    saturated_fraction: float
    """Anchors with 1 - p < 6e-6; those without negatives are among them."""
    alignment: float
    """Squared distance of a pair's query and key (Wang and Isola 2020)."""
    uniformity: float
    """log of the mean of exp(-2 squared distance) between queries and the keys that are their negatives."""
    duplicates_masked: float
    """Candidates left out of the queries' negatives because of equal ids: ordered pairs (query, another pair's key),
    and with negative_ids (query, hard negative). Whatever symmetric and same_side leave out besides is not counted."""
    infonce: float
    """InfoNCE's value, whatever the loss."""


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    name: str = "infonce",
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    same_side: bool = False,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 1.0,
    pair_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    margin: float = 0.0,
    bias: float | Tensor = 0.0,
    group: Group = None,
    tile: int | None = None,
    pool: int | None = None,
    exchange: Literal["gather", "ring"] = "gather",
) -> tuple[Tensor, Diagnostics]:
    """The mean in-batch contrastive loss over all B pairs of all ranks, and diagnostics.

    queries, keys [b, D]: row i of each is a pair; the caller normalises. b may differ between ranks and be 0.
    hard_negatives [b, H, D]: seen by every anchor, in the query-to-key direction only; the weight multiplies the
        anchor's own.
    temperature: float or 0-d tensor, which then gets a gradient. bias: likewise, siglip's only.
    pair_ids, key_ids int64 [b], negative_ids int64 [b, H]: hashes of what the anchors, keys and hard negatives say, any
        of which may be left out. Equal ids, on any rank, are one text, and what says the same is not pushed apart. A
        key is no negative of anchor i if its own id, or that of its own anchor, is the id of i's anchor or of i's
        positive: pairs that share a text are not negatives of each other. As this is mutual, it holds as it is for the
        queries that are candidates of a key (symmetric) and for either side's own (same_side). A hard negative is none
        of anchor i, its own anchor included, if its id is that of i's anchor or of i's positive. Its own anchor's id
        does not count: what is a negative of a text stays one where another pair has that text. Without negative_ids
        all hard negatives stay.
    margin: cosine units, taken off the positive's similarity.
    symmetric: mean of both directions. same_side: anchors see their own side too, SimCLR's 2B - 2 negatives.
    pool: consecutive pairs of the global batch, in rank order, that share negatives; the last may be short.
    tile: rows and columns of logits held at once; None chooses. exchange: see `jobs.core.collectives`.

    Returns a scalar, the same on every rank, float32 (float64 for float64 features). Its backward gives this rank's
    share: complete gradients of its own rows, and of temperature and bias the part of its own anchors, so that a sum
    over ranks is the single-process gradient. An anchor without negatives contributes 0 (siglip: its positive's term)
    and counts in B. Raises ValueError on every rank for arguments that are wrong or that ranks disagree on.
    """
    request = LossInputs(
        queries, keys, hard_negatives, pair_ids, key_ids, negative_ids, name=name, temperature=temperature, bias=bias,
        margin=margin, hard_negative_weight=hard_negative_weight, symmetric=symmetric, same_side=same_side, pool=pool,
        exchange=exchange, tile=tile,
    )  # fmt: skip
    problem = agreed_problem(request, group)
    learned = [x if isinstance(x, Tensor) and x.requires_grad else None for x in (temperature, bias)]
    slopes = torch.is_grad_enabled() and any(x is not None for x in learned)
    with torch.no_grad(), _full_precision(queries):
        own = _own(problem, queries, keys, hard_negatives, _side_by_side(pair_ids, key_ids, negative_ids))
        received = _exchange(problem, own, group)
        sums = reduce_rows(problem, own, _visits(problem, own, received, group), slopes=slopes)
        table = gather_rows(sums.table, problem.counts, group)
        value, diagnostics = _summary(problem, Table.read(table))
    call = _Call(problem, group, value)
    loss = _Loss.apply(queries, keys, hard_negatives, *learned, own.ids, received, table, sums.slope, sums.push, call)  # type: ignore[no-untyped-call]
    return loss, diagnostics


@dataclass(frozen=True)
class _Call:
    problem: LossSpec
    group: Group
    value: Tensor


class _Loss(torch.autograd.Function):
    """Hangs the streamed backward pass on the value."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, call = args
        ctx.save_for_backward(*tensors)
        ctx.call = call
        value: Tensor = call.value
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, hard, temperature, bias, ids, received, table, slope, push = ctx.saved_tensors
        problem: LossSpec = ctx.call.problem
        group: Group = ctx.call.group
        needs = ctx.needs_input_grad
        with _full_precision(grad_output):
            own = _own(problem, queries, keys, hard, ids)
            sums = Table.read(table)
            weights = _weights(problem, sums)
            scale = grad_output.double()
            wanted = tuple(needs[:3])
            if problem.name == "infonce_matched":
                wanted = (True, True, True)
            else:
                weights = weights * scale
            grads: list[Tensor | None] = [None, None, None]
            mine = weights[0, 0, :, own.start : own.start + len(own)]
            if any(wanted):
                sets = gradients(
                    problem, own, _visits(problem, own, received, group), table=sums, weights=weights, wanted=wanted
                )
                grads[: len(sets[0])] = sets[0]
                if problem.name == "infonce_matched":
                    factor = _matching(sets, group) * scale
                    mine = mine * factor
                    grads = [None if x is None else x.mul_(factor) for x in grads]
            shares = [
                -(mine * slope).sum() if needs[3] else None,
                (mine * push).sum() * problem.temperature if needs[4] else None,
            ]
        given = (queries, keys, hard, temperature, bias)
        cast = [
            x.to(like.dtype).view_as(like) if x is not None and need else None
            for x, like, need in zip([*grads, *shares], given, needs, strict=False)
        ]
        return (*cast, *[None] * 6)


def _full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, where it is on: similarities in half precision are off by whole logits."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _own(problem: LossSpec, queries: Tensor, keys: Tensor, hard: Tensor | None, ids: Tensor | None) -> Rows:
    sides = (queries, keys) if hard is None or not problem.hard else (queries, keys, hard.reshape(-1, problem.width))
    return Rows(problem.start, sides, None if ids is None else ids.to(queries.device))


def _side_by_side(pair_ids: Tensor | None, key_ids: Tensor | None, negative_ids: Tensor | None) -> Tensor | None:
    """All ids of a pair in one row, int64 [b, k], as `Rows` has them."""
    columns = (pair_ids, key_ids, negative_ids)
    given = [ids[:, None] if ids.ndim == 1 else ids for ids in columns if ids is not None]
    return torch.cat(given, dim=1) if given else None


def _exchange(problem: LossSpec, own: Rows, group: Group) -> Tensor | None:
    """Everybody's rows as one [B, ...] tensor in the features' dtype, for `gather`; ids travel as their bits."""
    if problem.exchange == "ring" or world_of(group) == 1:
        return None
    packed = _packed(problem, own)
    if own.ids is not None:
        dtype = own.sides[QUERIES].dtype
        packed[-1] = own.ids.contiguous().view(dtype)
    return gather_rows(torch.cat(packed, dim=1), problem.counts, group)


def _visits(problem: LossSpec, own: Rows, received: Tensor | None, group: Group) -> Iterator[Rows]:
    """Own rows first, then all others': slices of what was gathered, or rank by rank around the ring."""
    if received is None:
        for rank, tensors in ring(_packed(problem, own), problem.counts, group):
            start = sum(problem.counts[:rank])
            yield own if rank == problem.rank else _unpacked(problem, start, tensors, has_ids=own.ids is not None)
        return
    widths = [side.shape[1] * (problem.hard if n == HARD else 1) for n, side in enumerate(own.sides)]
    yield own
    for part in (slice(0, own.start), slice(own.start + len(own), problem.total)):
        if part.start < part.stop:
            *sides, rest = torch.split(received[part], [*widths, received.shape[1] - sum(widths)], dim=1)
            # A copy: a slice of one row counts as contiguous where it is, which may be between two int64.
            ids = [] if own.ids is None else [rest.clone(memory_format=torch.contiguous_format).view(torch.int64)]
            yield _unpacked(problem, part.start, [*sides, *ids], has_ids=bool(ids))


def _packed(problem: LossSpec, rows: Rows) -> list[Tensor]:
    """Queries, keys, hard negatives and ids where there are any, each with one row per pair."""
    sides = [
        side.view(len(rows), problem.hard * problem.width) if n == HARD else side for n, side in enumerate(rows.sides)
    ]
    return sides + ([] if rows.ids is None else [rows.ids])


def _unpacked(problem: LossSpec, start: int, tensors: list[Tensor], *, has_ids: bool) -> Rows:
    """The inverse of `_packed`."""
    sides, ids = (tensors[:-1], tensors[-1]) if has_ids else (tensors, None)
    return Rows(
        start, tuple(side.reshape(-1, problem.width) if n == HARD else side for n, side in enumerate(sides)), ids
    )


def _summary(problem: LossSpec, table: Table) -> tuple[Tensor, Diagnostics]:
    """The loss and the diagnostics, by the same sums in the same order on every rank."""
    margin = table.normaliser - table.positive
    infonce = torch.logaddexp(margin, torch.zeros_like(margin))
    if problem.name == "dcl":
        value = margin.masked_fill(margin == -torch.inf, 0.0)
    else:
        value = table.value if problem.name in ("siglip", "infonce_ce") else infonce
    missed = torch.sigmoid(margin)
    kept = _cross_pairs(problem) - table.duplicates.sum()
    spread = torch.where(kept > 0, table.uniformity.logsumexp(0) - kept.clamp(min=1).log(), 0.0)
    numbers = [
        1 - missed.mean(),
        table.effective.mean(),
        (missed < SATURATED).double().mean(),
        table.alignment.mean(),
        spread,
        table.duplicates.sum() + table.hard_duplicates.sum(),
        infonce.mean(),
    ]
    return value.mean().to(problem.dtype), Diagnostics(*torch.stack(numbers).tolist())


def _cross_pairs(problem: LossSpec) -> int:
    """Ordered pairs of different pairs that share a pool."""
    whole, rest = divmod(problem.total, problem.pool or problem.total)
    return whole * (problem.pool or problem.total) * ((problem.pool or problem.total) - 1) + rest * (rest - 1)


def _weights(problem: LossSpec, table: Table) -> Tensor:
    """Row weights for `gradients`: [sets, 2 (negatives, positive), directions, B], float64."""
    margin = table.normaliser - table.positive
    some = (table.normaliser != -torch.inf).double()
    if problem.name == "infonce":
        weights = torch.sigmoid(margin).expand(1, 2, *margin.shape)
    elif problem.name == "infonce_ce":
        # In the dtype of the loss, by the subtraction that every softmax minus one-hot is.
        value = table.value.to(problem.dtype)
        weights = torch.stack([torch.exp(margin - table.value), (1 - torch.exp(-value)).double()])[None]
    elif problem.name == "infonce_matched":
        # Relative to the largest, so that a batch whose 1 - p all underflow still has a direction.
        log = F.logsigmoid(margin)
        relative = torch.exp(log - log.max().clamp(min=MASKED_LOGIT))
        weights = torch.stack([relative, some])[:, None].expand(2, 2, *margin.shape)
    elif problem.softmax:
        weights = some.expand(1, 2, *margin.shape)
    else:
        weights = torch.stack(
            [torch.ones_like(margin), torch.sigmoid(-problem.bias - table.positive.expand_as(margin))]
        )[None]
    return weights / (problem.temperature * margin.numel())


def _matching(sets: list[list[Tensor | None]], group: Group) -> Tensor:
    """Norm of flatnce's gradient of all features of all ranks, over that of the first set; 1 where both are 0."""
    squares = [
        torch.stack([torch.linalg.vector_norm(x, dim=1).double().square().sum() for x in grads if x is not None]).sum()
        for grads in sets
    ]
    own, flat = sum_rows(torch.stack(squares), group).sqrt()
    return torch.where(own > 0, flat / own, 1.0)
