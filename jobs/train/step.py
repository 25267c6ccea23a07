"""One exact optimizer step, and the gradient contract.

The loss is the mean over all B pairs of the global batch. Each rank back-propagates the sum of its own rows' losses
divided by B; gradients are summed over ranks, in one all-reduce per step, after which clipping and the optimizer run.
So the update equals that of one process on the concatenated batch, for any number of ranks and any micro-batches.

Exact accumulation, when a rank's pairs do not fit into memory at once (Gao et al. 2021, "Scaling deep contrastive
learning batch size under memory limited setup"):

1. encode every micro-batch, with a graph only for the first few (`keep_graphs`, or as many as `graph_memory_mb` holds);
2. evaluate the loss once on all embeddings of all ranks: this gives the gradient to each embedding and to the loss's
   own parameters;
3. push each micro-batch's slice of that gradient through its graph, encoding it again where none was kept. Dropout is
   a function of (seed, step, pair, view), so the second encoding is the first one bit for bit;
4. where there is an auxiliary masked-language-model loss, encode each micro-batch with its masks and back-propagate the
   sum of its tokens' losses, divided by the masked tokens of the global batch, which the ranks agree on beforehand.

Micro-batches are pushed through in their order, whether their graph was kept or not, so keeping graphs changes not one
bit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.core.collectives import agree, sum_gradients, sum_rows
from jobs.data import Inputs, Views
from jobs.losses import Diagnostics
from jobs.models import ContrastiveModel, dropout_keys
from jobs.models.mlm import Masking, masked

LossFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Diagnostics]]
"""(queries [b, D], keys [b, D], hard negatives [b, H, D] or None) -> (global mean, diagnostics)."""


@dataclass(frozen=True)
class StepContext:
    """Which optimizer step this is, and where it is computed."""

    seed: int
    step: int
    """From 1."""

    group: dist.ProcessGroup | None = None
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch: pairs of this rank that are encoded together."""

    views: Views
    pairs: Tensor
    """int64 [c]: the place of each pair in the global batch."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind besides gradients."""

    loss: float
    """What the step descends, the same on every rank: the global mean, plus the weighted auxiliary loss if any."""

    gradient_norm: float
    """Of the whole gradient, after the sum over ranks and before clipping."""

    diagnostics: Diagnostics

    mlm_loss: float | None = None
    """Of the auxiliary loss, the mean over all masked tokens; None without one, or without a masked token."""

    @property
    def finite(self) -> bool:
        """False when the step must not be applied: the trial has diverged, on every rank alike."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))


def share(size: int, *, rank: int, world: int) -> range:
    """Return the consecutive pairs of a global batch of `size` that are `rank`'s; ranks differ by one pair at most."""
    return range(size * rank // world, size * (rank + 1) // world)


def consecutive(pairs: range, size: int | None) -> list[range]:
    """Cut `pairs` into micro-batches of `size`; the last may be short. None: one micro-batch."""
    size = size or max(len(pairs), 1)
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def within_tokens(pairs: range, lengths: Sequence[int], *, sentences: int, budget: int) -> list[range]:
    """Cut `pairs` into micro-batches of at most `budget` padded tokens, or of one pair.

    lengths: tokens of each pair's longest sentence. sentences: how many each pair has, all padded to the longest of the
    micro-batch. Micro-batches are filled from the first pair on, greedily.
    """
    starts, longest = [0], 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if index > starts[-1] and (index + 1 - starts[-1]) * sentences * longest > budget:
            starts.append(index)
            longest = length
    return [pairs[low:high] for low, high in itertools.pairwise([*starts, len(pairs)]) if low < high]


def exact_gradients(
    model: ContrastiveModel,
    micro_batches: Sequence[MicroBatch],
    context: StepContext,
    *,
    loss: LossFunction,
    keep_graphs: int = 0,
    graph_memory_mb: int | None = None,
    masking: Masking | None = None,
    clip: float | None = None,
) -> StepResult:
    """Fill the `grad` of every parameter with the gradient of the global mean loss, summed over ranks and clipped.

    micro_batches: of this rank, in order; a single one keeps its graph whatever `keep_graphs` says.
    graph_memory_mb: in place of keep_graphs, what the kept graphs may hold. masking: of the auxiliary loss, if any.
    clip: largest norm of the gradient. Returns loss, norm and diagnostics of the global batch.
    """
    for parameter in model.parameters():
        parameter.grad = None
    encode = partial(_encode, model, context=context)
    encoded = _encode_all(model, micro_batches, encode, keep_graphs=keep_graphs, memory_mb=graph_memory_mb)
    leaves = [[side.detach().requires_grad_() for side in sides] for sides in encoded]
    value, diagnostics = loss(*_whole(leaves))
    value.backward()
    for index, micro_batch in enumerate(micro_batches):
        sides = encoded[index]
        if not sides[0].requires_grad:
            sides = encode(micro_batch)
        torch.autograd.backward([_WithGradient.of(*side) for side in zip(sides, leaves[index], strict=True)])
        encoded[index] = []  # frees this micro-batch's graph before the next is built
    mlm = None
    if masking is not None:
        mlm = _masked_language_gradients(model, micro_batches, masking, context)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sum_gradients(trained, context.group)
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip is not None:
        hard_clip(trained, clip, norm)
    total = float(value.detach()) + (masking.weight * mlm if masking is not None and mlm is not None else 0.0)
    return StepResult(total, float(norm), diagnostics, mlm)


@torch.no_grad()
def hard_clip(parameters: Sequence[nn.Parameter], clip: float, norm: Tensor) -> None:
    """Scale gradients by min(1, clip / norm). Torch's own divides by norm + 1e-6, which small gradients notice."""
    share = (clip / norm).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(share)


@dataclass(frozen=True)
class _Rows:
    """A micro-batch as the encoder takes it: all views below one another."""

    inputs: Inputs
    numbers: Tensor
    """int64 [n]: pair * sentences + view; dropout and masks of a row depend on it alone."""

    firsts: Tensor
    """int64 [n]: the number of the pair's query."""

    pairs: int
    hard: int
    """Hard negatives of each pair."""

    there: Tensor | None
    """bool [n]: False for the place of a hard negative that is not there; None: all are."""

    @staticmethod
    def of(micro_batch: MicroBatch, device: torch.device | str) -> _Rows:
        views, count = micro_batch.views, len(micro_batch.pairs)
        parts = [views.queries, views.keys] + ([views.negatives] if views.negatives is not None else [])
        hard = _length(parts[2]) // max(count, 1) if len(parts) == 3 else 0
        first = micro_batch.pairs * (2 + hard)
        numbers = [first, first + 1]
        if hard:
            numbers.append((first[:, None] + 2 + torch.arange(hard)).reshape(-1))
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in _joined(parts).items()}
        firsts = [first] * 2 + ([first.repeat_interleave(hard)] if hard else [])
        there = None
        if views.absent is not None:
            there = torch.cat([torch.ones(2 * count, dtype=torch.bool), ~views.absent]).to(device)
        return _Rows(inputs, torch.cat(numbers).to(device), torch.cat(firsts).to(device), count, hard, there)

    def drawn(self, model: ContrastiveModel) -> Tensor:
        """Return what the dropout of each row is keyed by, int64 [n]."""
        return self.firsts if model.same_dropout else self.numbers


def _encode(model: ContrastiveModel, micro_batch: MicroBatch, *, context: StepContext) -> list[Tensor]:
    """Embed a micro-batch: queries [c, D], keys [c, D] and, where there are any, hard negatives [c, H, D]."""
    rows = _Rows.of(micro_batch, context.device)
    with dropout_keys(seed=context.seed, step=context.step, rows=rows.drawn(model)):
        embedded = model.embed(rows.inputs)
    c, hard = rows.pairs, rows.hard
    queries, keys, *negatives = embedded.split([c, c] + ([c * hard] if hard else []))
    return [queries, keys, *(side.unflatten(0, (c, hard)) for side in negatives)]


@torch.no_grad()
def momentum_keys(model: ContrastiveModel, micro_batches: Sequence[MicroBatch], context: StepContext) -> Tensor | None:
    """Embed the keys of this rank by the copy that follows the model, [b, D]; None of a model without one."""
    if model.follower is None:
        return None
    embedded = []
    for micro_batch in micro_batches:
        rows = _Rows.of(micro_batch, context.device)
        own = {name: values[rows.pairs : 2 * rows.pairs] for name, values in rows.inputs.items()}
        with dropout_keys(seed=context.seed, step=context.step, rows=rows.drawn(model)[rows.pairs : 2 * rows.pairs]):
            embedded.append(model.follower.embed(own))
    return torch.cat(embedded)


def _encode_all(
    model: ContrastiveModel,
    micro_batches: Sequence[MicroBatch],
    encode: Callable[[MicroBatch], list[Tensor]],
    *,
    keep_graphs: int,
    memory_mb: int | None,
) -> list[list[Tensor]]:
    """Embed every micro-batch, with a graph for the first few, as many as asked for or as fit.

    What a graph holds is counted as it is built, and is taken to be no more for the next micro-batch than the largest
    so far; a graph that turns out not to fit is dropped again. Counting tensors, and not asking the allocator, makes
    the choice the same on every device and in every attempt.
    """
    if len(micro_batches) <= 1:
        keep_graphs, memory_mb = 1, None
    budget = None if memory_mb is None else memory_mb * 2**20
    encoded: list[list[Tensor]] = []
    kept = held = largest = 0
    for index, micro_batch in enumerate(micro_batches):
        graphed = index < keep_graphs if budget is None else kept == index and held + largest <= budget
        saved = _SavedBytes(model) if graphed and budget else None
        with torch.set_grad_enabled(graphed), saved or nullcontext():
            sides = encode(micro_batch)
        if saved is not None and budget is not None:
            largest = max(largest, saved.count)
            if held + saved.count <= budget:
                kept, held = kept + 1, held + saved.count
            else:
                sides = [side.detach() for side in sides]
        encoded.append(sides)
    return encoded


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts, in `count`, the bytes that autograd saves inside the `with`, parameters and buffers aside."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self._seen = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
        super().__init__(self._pack, self._unpack)

    def _pack(self, x: Tensor) -> tuple[Tensor, int]:
        memory = x.untyped_storage()
        if memory.data_ptr() not in self._seen:
            self._seen.add(memory.data_ptr())
            self.count += memory.nbytes()
        return x.detach(), x._version  # noqa: SLF001 - its only name

    @staticmethod
    def _unpack(saved: tuple[Tensor, int]) -> Tensor:
        x, version = saved
        if x._version != version:  # noqa: SLF001
            raise RuntimeError("the encoder changes in place what its backward pass needs; leave out graph_memory_mb")
        return x


def _masked_language_gradients(
    model: ContrastiveModel,
    micro_batches: Sequence[MicroBatch],
    masking: Masking,
    context: StepContext,
) -> float | None:
    """Add this rank's part of the auxiliary loss's gradient. Returns the mean over all masked tokens, or None. The
    anchor that stands in the place of a hard negative which is not there is no further sentence, and is not masked.

    Its dropout must not be that of the contrastive views: rows are numbered -1, -2, ...
    """
    all_rows = [_Rows.of(micro_batch, context.device) for micro_batch in micro_batches]
    masks = [
        masked(rows.inputs, rows.numbers, masking, seed=context.seed, step=context.step, there=rows.there)
        for rows in all_rows
    ]
    counts = agree([sum(len(mask.labels) for mask in masks)], context.group, what="masked tokens")
    total = sum(count for (count,) in counts)
    if total == 0:
        return None
    value = torch.zeros((), dtype=torch.float64, device=context.device)
    for rows, mask in zip(all_rows, masks, strict=True):
        if len(mask.labels):
            with dropout_keys(seed=context.seed, step=context.step, rows=-1 - rows.numbers):
                logits = model.masked_logits(mask.inputs, mask.chosen)
            summed = F.cross_entropy(logits, mask.labels, reduction="sum")
            (summed * (masking.weight / total)).backward()
            value += summed.detach()
    return float(sum_rows(value, context.group)) / total


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """Stack the views below one another; token sequences are padded to the longest (0 is also the mask of a pad)."""
    result: Inputs = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].ndim == 2:
            longest = max(tensor.shape[1] for tensor in tensors)
            tensors = [F.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors]
        result[name] = torch.cat(tensors)
    return result


def _length(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _whole(leaves: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Join the queries, keys and hard negatives of all micro-batches."""
    whole = [torch.cat(sides) if len(sides) > 1 else sides[0] for sides in zip(*leaves, strict=True)]
    return whole[0], whole[1], whole[2] if len(whole) > 2 else None


class _Carried(Protocol):
    """What a scalar's node holds."""

    gradient: Tensor


class _WithGradient(torch.autograd.Function):
    """A scalar that stands for embeddings whose gradient is known: back-propagating it starts from that gradient.

    The same as to give `torch.autograd.backward` the gradients, for which torch imports its symbolic shapes, and sympy
    with them: a third of a second in every process that trains.
    """

    @staticmethod
    def of(embeddings: Tensor, leaf: Tensor) -> Tensor:
        """Return the scalar of embeddings [c, D] or [c, H, D]. Their gradient is at `leaf`; 0 where the loss has left
        none there."""
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        scalar: Tensor = _WithGradient.apply(embeddings, gradient)  # type: ignore[no-untyped-call]
        return scalar

    @staticmethod
    def forward(ctx: _Carried, embeddings: Tensor, gradient: Tensor) -> Tensor:
        """Return 0."""
        ctx.gradient = gradient
        return embeddings.new_zeros(())

    @staticmethod
    def backward(ctx: _Carried, scale: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - it is 1
        """Return the gradient."""
        return ctx.gradient, None


def diagnostics_points(result: StepResult) -> dict[str, float]:
    """Return a step's values under the keys they are tracked by."""
    values = {f"train/{name}": value for name, value in dataclasses.asdict(result.diagnostics).items()}
    if result.mlm_loss is not None:
        values["train/mlm_loss"] = result.mlm_loss
    return {"train/loss": result.loss, "train/gradient_norm": result.gradient_norm, **values}
