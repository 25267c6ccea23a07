"""Losses of anchors, streamed in tiles: exact on any number of ranks, without cancellation.

For anchor i with positive i and negatives j, logits l = similarity / temperature (the margin taken off the positive):

    v_i = logsumexp_j (l_ij - l_ii) over negatives only;   p_i = 1 / (1 + exp v_i), the positive's probability

Collectives of a call with W > 1 ranks, whatever the tile: a header (256 bytes), the features (gather: one all_gather;
ring: W - 1 sends and receives of each tensor), and row sums (88 bytes a pair). Backward: none for gather, W - 1 sends
and receives for ring, one all_reduce of two numbers more for a loss that is matched to another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jobs.core.collectives import Group, gather_rows, ring, sum_rows, world_of
from jobs.losses.agreement import agreed_call
from jobs.losses.spec import HARD, QUERIES, LossCall, LossInputs, LossSpec, RowLoss
from jobs.losses.stream import Table, gradients, reduce_rows
from jobs.losses.tiles import Rows

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
    without_negatives: float
    """Share of anchors without a negative, as where all candidates are left out for equal ids: these learn nothing."""


def tiled_loss(
    spec: LossSpec, loss: RowLoss | None, inputs: LossInputs, group: Group, *, fault: str = ""
) -> tuple[Tensor, Diagnostics]:
    """Compute the mean loss over all pairs of all ranks, and diagnostics.

    loss: None where the spec names none, as `fault` says.
    Raises ValueError on every rank for arguments that are wrong or that ranks disagree on.
    """
    call = agreed_call(spec, loss, inputs, group, fault=fault)
    queries, keys, hard = inputs.queries, inputs.keys, inputs.hard_negatives
    learned = [x if isinstance(x, Tensor) and x.requires_grad else None for x in (inputs.temperature, inputs.bias)]
    derivatives = torch.is_grad_enabled() and any(x is not None for x in learned)
    with torch.no_grad(), _full_precision(queries):
        own = _own(call, queries, keys, hard, _side_by_side(inputs.pair_ids, inputs.key_ids, inputs.negative_ids))
        received = _exchange(call, own, group)
        sums = reduce_rows(call, own, _remote_shards(call, own, received, group), derivatives=derivatives)
        table = gather_rows(sums.table, call.counts, group)
        value, diagnostics = _summary(call, Table.read(table))
    held = _Held(call, group, value)
    saved = (own.ids, received, table, sums.d_temperature, sums.d_bias)
    result = _Loss.apply(held, queries, keys, hard, *learned, *saved)  # type: ignore[no-untyped-call]
    return result, diagnostics


@dataclass(frozen=True)
class _Held:
    call: LossCall
    group: Group
    value: Tensor


_Saved: TypeAlias = tuple[
    Tensor,  # queries
    Tensor,  # keys
    Tensor | None,  # hard negatives
    Tensor | None,  # temperature
    Tensor | None,  # bias
    Tensor | None,  # ids
    Tensor | None,  # received
    Tensor,  # table
    Tensor,  # d_temperature
    Tensor,  # d_bias
]


class _Context(Protocol):
    """What the backward pass is handed by the forward pass."""

    held: _Held
    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> _Saved: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Loss(torch.autograd.Function):
    """Hangs the streamed backward pass on the value."""

    @staticmethod
    def forward(ctx: _Context, held: _Held, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.held = held
        return held.value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, hard, temperature, bias, ids, received, table, d_temperature, d_bias = ctx.saved_tensors
        call, group = ctx.held.call, ctx.held.group
        needs = ctx.needs_input_grad[1:]  # without `held`
        with _full_precision(grad_output):
            own = _own(call, queries, keys, hard, ids)
            sums = Table.read(table)
            weights = _weights(call, sums)
            scale = grad_output.double()
            wanted = tuple(needs[:3])
            if call.loss.matched:
                wanted = (True, True, True)
            else:
                weights = weights * scale
            grads: list[Tensor | None] = [None, None, None]
            mine = weights[0, 0, :, own.start : own.start + len(own)]
            if any(wanted):
                sets = gradients(
                    call, own, _remote_shards(call, own, received, group), table=sums, weights=weights, wanted=wanted
                )
                grads[: len(sets[0])] = sets[0]
                if call.loss.matched:
                    factor = _matching(sets, group) * scale
                    mine = mine * factor
                    grads = [None if x is None else x.mul_(factor) for x in grads]
            shares = [
                -(mine * d_temperature).sum() if needs[3] else None,
                (mine * d_bias).sum() * call.temperature if needs[4] else None,
            ]
        given = (queries, keys, hard, temperature, bias)
        cast = [
            x.to(like.dtype).view_as(like) if x is not None and like is not None and need else None
            for x, like, need in zip([*grads, *shares], given, needs, strict=False)
        ]
        return (None, *cast, *[None] * 5)


def _full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Turn off autocast while the context lasts: similarities in half precision are off by whole logits."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _own(call: LossCall, queries: Tensor, keys: Tensor, hard: Tensor | None, ids: Tensor | None) -> Rows:
    sides = (queries, keys) if hard is None or not call.hard else (queries, keys, hard.reshape(-1, call.width))
    return Rows(call.start, sides, None if ids is None else ids.to(queries.device))


def _side_by_side(pair_ids: Tensor | None, key_ids: Tensor | None, negative_ids: Tensor | None) -> Tensor | None:
    """Join all ids of a pair in one row, int64 [b, k], as `Rows` has them."""
    columns = (pair_ids, key_ids, negative_ids)
    given = [ids[:, None] if ids.ndim == 1 else ids for ids in columns if ids is not None]
    return torch.cat(given, dim=1) if given else None


def _exchange(call: LossCall, own: Rows, group: Group) -> Tensor | None:
    """Gather everybody's rows as one [B, ...] tensor in the features' dtype, for `gather`; ids travel as their bits."""
    if call.spec.exchange == "ring" or world_of(group) == 1:
        return None
    packed = _packed(call, own)
    if own.ids is not None:
        dtype = own.sides[QUERIES].dtype
        packed[-1] = own.ids.contiguous().view(dtype)
    return gather_rows(torch.cat(packed, dim=1), call.counts, group)


def _remote_shards(call: LossCall, own: Rows, received: Tensor | None, group: Group) -> Iterator[Rows]:
    """Yield own rows first, then all others': slices of what was gathered, or rank by rank around the ring."""
    if received is None:
        for rank, tensors in ring(_packed(call, own), call.counts, group):
            start = sum(call.counts[:rank])
            yield own if rank == call.rank else _unpacked(call, start, tensors, has_ids=own.ids is not None)
        return
    widths = [side.shape[1] * (call.hard if n == HARD else 1) for n, side in enumerate(own.sides)]
    yield own
    for part in (slice(0, own.start), slice(own.start + len(own), call.total)):
        if part.start < part.stop:
            *sides, rest = torch.split(received[part], [*widths, received.shape[1] - sum(widths)], dim=1)
            # A copy: a slice of one row counts as contiguous where it is, which may be between two int64.
            ids = [] if own.ids is None else [rest.clone(memory_format=torch.contiguous_format).view(torch.int64)]
            yield _unpacked(call, part.start, [*sides, *ids], has_ids=bool(ids))


def _packed(call: LossCall, rows: Rows) -> list[Tensor]:
    """Return queries, keys, hard negatives and ids where there are any, each with one row per pair."""
    sides = [side.view(len(rows), call.hard * call.width) if n == HARD else side for n, side in enumerate(rows.sides)]
    return sides + ([] if rows.ids is None else [rows.ids])


def _unpacked(call: LossCall, start: int, tensors: list[Tensor], *, has_ids: bool) -> Rows:
    """Invert `_packed`."""
    sides, ids = (tensors[:-1], tensors[-1]) if has_ids else (tensors, None)
    return Rows(start, tuple(side.reshape(-1, call.width) if n == HARD else side for n, side in enumerate(sides)), ids)


def _summary(call: LossCall, table: Table) -> tuple[Tensor, Diagnostics]:
    """Compute the loss and the diagnostics, by the same sums in the same order on every rank."""
    rows = table.rows(call)
    infonce = torch.logaddexp(rows.v, torch.zeros_like(rows.v))
    missed = torch.sigmoid(rows.v)
    kept = _cross_pairs(call) - table.duplicates.sum()
    spread = torch.where(kept > 0, table.uniformity.logsumexp(0) - kept.clamp(min=1).log(), 0.0)
    numbers = [
        1 - missed.mean(),
        table.effective.mean(),
        (missed < SATURATED).double().mean(),
        table.alignment.mean(),
        spread,
        table.duplicates.sum() + table.hard_duplicates.sum(),
        infonce.mean(),
        table.normaliser.isneginf().double().mean(),
    ]
    value = call.loss.value(rows).mean().to(call.dtype)
    return value, Diagnostics(*torch.stack(numbers).tolist())


def _cross_pairs(call: LossCall) -> int:
    """Count the ordered pairs of different pairs that share a pool."""
    whole, rest = divmod(call.total, call.pool or call.total)
    return whole * (call.pool or call.total) * ((call.pool or call.total) - 1) + rest * (rest - 1)


def _weights(call: LossCall, table: Table) -> Tensor:
    """Compute the row weights for `gradients`: [sets, 2 (negatives, positive), directions, B], float64."""
    rows = table.rows(call)
    weights = call.loss.weights(rows)
    return (weights if call.loss.matched else weights[None]) / (call.temperature * rows.v.numel())


def _matching(sets: list[list[Tensor | None]], group: Group) -> Tensor:
    """Compute the norm of the second set's gradient of all features of all ranks, over that of the first; 1 where the
    first is 0."""
    squares = [
        torch.stack([torch.linalg.vector_norm(x, dim=1).double().square().sum() for x in grads if x is not None]).sum()
        for grads in sets
    ]
    own, flat = sum_rows(torch.stack(squares), group).sqrt()
    return torch.where(own > 0, flat / own, 1.0)
