"""What ranks say to each other: every collective of a job in full view, and what it costs.

`group` is a torch.distributed process group, or None for this process alone: then a function gives its input, detached.
Nothing here is differentiable: losses.py writes its own backward, and parameter gradients are summed once, by
`sum_gradients`. Rows travel as bytes, so that every dtype works on every backend and arrives bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

Group = dist.ProcessGroup | None

HEADER = 32
"""int64 of one header message. A fixed size, because ranks that disagree may disagree about its length too."""
PLACE = 5
"""int64 at its start that spell where in the program the rank is."""


def rank_of(group: Group) -> int:
    """Return this process's rank in `group`."""
    return 0 if group is None else dist.get_rank(group)


def world_of(group: Group) -> int:
    """Return the number of ranks in `group`."""
    return 1 if group is None else dist.get_world_size(group)


def agree(header: Sequence[int], group: Group, *, what: str) -> list[list[int]]:
    """Gather every rank's header, in rank order, by one small all_gather, before any payload moves.

    header: at most 26 int64 values. `what` names the point in the program; ranks that meet here from different points
    (one rank in the loss, another in the evaluation) all raise RuntimeError, where they would otherwise hang or read
    each other's payload as their own.
    """
    mine = list(header)
    assert len(mine) <= HEADER - PLACE - 1, f"a header holds at most {HEADER - PLACE - 1} values, not {len(mine)}"
    if world_of(group) == 1:
        return [mine]
    named = what.encode()[: 8 * PLACE].ljust(8 * PLACE)
    words = [int.from_bytes(named[8 * k : 8 * k + 8], "big", signed=True) for k in range(PLACE)]
    sent = torch.tensor([*words, len(mine), *mine], dtype=torch.int64)
    sent = nn.functional.pad(sent, (0, HEADER - len(sent))).to(_device(group))
    received = sent.new_empty(world_of(group) * HEADER)
    dist.all_gather_single(received, sent, group=group)
    headers = received.view(-1, HEADER).tolist()
    places = [b"".join(word.to_bytes(8, "big", signed=True) for word in line[:PLACE]) for line in headers]
    if len(set(places)) > 1:
        seen = ", ".join(
            f"rank {rank} at {name.decode(errors='replace').strip()!r}" for rank, name in enumerate(places)
        )
        raise RuntimeError(f"ranks are at different places of the program: {seen}; every rank must make the same calls")
    return [line[PLACE + 1 : PLACE + 1 + line[PLACE]] for line in headers]


def gather_rows(x: Tensor, counts: Sequence[int], group: Group) -> Tensor:
    """Gather the rows of every rank, in rank order: [b, ...] -> [B, ...], by one all_gather. Not differentiable.

    counts: rows of each rank, as agreed; they may differ and be 0. Shorter ranks pad to the longest, because gloo
    hands out wrong shapes without a word when they do not.
    """
    sent = x.detach()
    most = max(counts)
    if world_of(group) == 1 or most == 0:
        return sent
    if len(x) < most:
        sent = torch.cat([sent, sent.new_zeros(most - len(x), *x.shape[1:])])
    received = sent.new_empty(len(counts) * most, *x.shape[1:])
    dist.all_gather_single(_bytes(received), _bytes(sent.contiguous()), group=group)
    if min(counts) == most:
        return received
    return torch.cat([received[rank * most : rank * most + count] for rank, count in enumerate(counts)])


def ring(own: Sequence[Tensor], counts: Sequence[int], group: Group) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield every rank's rows: (rank, its tensors), own rows first, then backwards around the ring. Not differentiable.

    own: tensors [b, ...]; counts as in `gather_rows`. While one rank's rows are read the next rank's travel, so beside
    its own rows a rank holds at most two ranks' rows. W - 1 sends and receives per tensor; empty ranks send nothing.
    """
    world, rank = world_of(group), rank_of(group)
    source, held = rank, [x.detach().contiguous() for x in own]
    for hop in range(1, world):
        coming = (rank - hop) % world
        arriving = [x.new_empty(counts[coming], *x.shape[1:]) for x in own]
        to, back = (rank + 1) % world, (rank - 1) % world
        sends = [dist.P2POp(dist.isend, _bytes(x), group=group, group_peer=to) for x in held if len(x)]
        receives = [dist.P2POp(dist.irecv, _bytes(x), group=group, group_peer=back) for x in arriving if len(x)]
        works = dist.batch_isend_irecv(sends + receives) if sends or receives else []
        yield source, held
        for work in works:
            work.wait()
        source, held = coming, arriving
    yield source, held


def sum_rows(x: Tensor, group: Group) -> Tensor:
    """Sum `x` elementwise over ranks, as a new tensor: one all_reduce. Not differentiable."""
    if world_of(group) == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def broadcast(x: Tensor, group: Group, *, source: int = 0) -> Tensor:
    """Copy rank `source`'s `x` to every rank, as a new tensor of the same shape and dtype. Not differentiable."""
    if world_of(group) == 1:
        return x.detach()
    held = x.detach().clone()
    dist.broadcast(held, group=group, group_src=source)
    return held


def sum_gradients(parameters: Iterable[nn.Parameter], group: Group) -> None:
    """Sum every parameter's gradient over ranks, in place: exactly one all_reduce per dtype, on one flat buffer.

    A gradient that is None on some ranks counts as 0 there; None on every rank stays None, so that the optimizer
    leaves that parameter alone, as it would in one process. Every rank must pass the same parameters in one order.
    """
    if world_of(group) == 1:
        return
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for same in by_dtype.values():
        present = torch.tensor([p.grad is not None for p in same]).to(same[0])
        pieces = [(torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1) for p in same]
        flat = torch.cat([*pieces, present])
        dist.all_reduce(flat, group=group)
        *sums, ranks = torch.split(flat, [*(p.numel() for p in same), len(same)])
        for parameter, total, count in zip(same, sums, ranks.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))


def _bytes(x: Tensor) -> Tensor:
    """View the memory of a contiguous tensor as flat uint8."""
    return x.view(-1).view(torch.uint8)


def _device(group: Group) -> torch.device:
    """Return the device that a small message of `group` must live on: its backend decides."""
    backend = dist.get_backend(group)
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
