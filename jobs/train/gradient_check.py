"""Is this trial's gradient the one that it claims to be? Asked once, on a few pairs, before anything is trained.

The real step (ranks, exchange, micro-batches, kept graphs, tiles, precision, compiler) computes the gradient of the
first pairs of the batch; then every rank computes it again by plain autograd on all of these pairs at once, with the
losses written out as whole matrices. The two must agree tensor by tensor. Nothing is left changed: no parameter,
gradient, buffer, random state or optimizer state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.config import JobConfig, Loss
from jobs.config.components import is_import_path
from jobs.core.collectives import agree, rank_of
from jobs.core.ids import ABSENT
from jobs.data import Ids
from jobs.losses import BatchFacts, GuideRows, JobLoss, LossInputs
from jobs.models import ContrastiveModel, dropout_keys
from jobs.models.mlm import Masking, masked
from jobs.train.step import MicroBatch, StepContext, momentum_keys

PAIRS = 32
"""Pairs compared, where memory for that many at once can be taken for granted."""


class GradientMismatch(RuntimeError):
    """The real step's gradient is not that of one process. Says which tensor, and by how much."""


@dataclass(frozen=True)
class Tolerance:
    """How far a tensor's gradient may be off: `relative` times its norm, or times `floor` of the whole gradient's norm
    where that is more, since a gradient that is zero but for rounding has no relative error."""

    relative: float
    floor: float


def tolerance(job: JobConfig, temperature: float) -> Tolerance:
    """Choose how much rounding may do; averaging over ranks, stale masks or lost gradients do far more.

    Measured on small encoders: 1e-14 in fp64, 1e-6 in fp32, 5e-3 in bf16, where a last bit that turns moves an
    activation by 4e-3. The tolerances leave room for a hundred times that (bf16: twenty), as deep encoders round more.
    The embeddings' rounding is divided by the temperature, so below 0.2 they grow as in the gradient contract. bf16's
    stays below a half, which is what two ranks averaged in place of summed are off by.
    """
    if job.model.precision == "fp64":
        return Tolerance(1e-9, 1e-3)
    sharpness = max(1.0, 0.2 / temperature)
    if job.model.precision == "fp32":
        return Tolerance(min(1e-4 * sharpness, 0.01), 0.05)
    return Tolerance(min(0.1 * sharpness, 0.3), 0.1)


def pairs(job: JobConfig, *, world: int, largest: int) -> int:
    """Choose how many pairs to compare: at least one a rank, and no more than fit where the largest micro-batch
    does."""
    few = max(2 * world, largest) if job.has_micro_batches else PAIRS
    return min(job.batch.size, max(world, min(PAIRS, few)))


def micro_batch_size(share: int) -> int:
    """Choose how many pairs a micro-batch has, so that a rank's share is cut in three where it can be."""
    return -(-share // 3)


def checked_loss(job: JobConfig) -> str | None:
    """Choose the loss to check: `infonce` in place of `infonce_ce`, as the two differ in rounding alone, and
    `infonce_ce` is kept to show how large that gets. None: the job's own."""
    return "infonce" if job.loss.name == "infonce_ce" else None


def verify(
    model: ContrastiveModel,
    job: JobConfig,
    *,
    real: Callable[[], object],
    loss: JobLoss,
    whole: MicroBatch,
    ids: Ids | None,
    rows: NDArray[np.int64],
    scores: NDArray[np.float64] | None,
    guide: GuideRows | None,
    masking: Masking | None,
    context: StepContext,
) -> str:
    """Compare the gradients that `real` leaves behind with one process's. Returns a sentence on the largest difference.

    real: fills the parameters' gradients for the pairs of `whole`, spread over the ranks. whole: all pairs, in order.
    ids: what they say. rows: where they stand in the data. scores, guide: of the pairs. Raises GradientMismatch on
    every rank if they differ on one.
    """
    with untouched(model), torch.random.fork_rng():
        real()
        computed = taken(model)
    with untouched(model), torch.random.fork_rng():
        facts = BatchFacts(
            torch.from_numpy(rows),
            context.step,
            context.seed,
            None if scores is None else torch.from_numpy(scores),
            momentum_keys(model, [whole], context),
            guide,
        )
        _one_process(model, job, loss, whole, ids=ids, facts=facts, masking=masking, context=context)
        expected = taken(model)
    allowed = tolerance(job, float(torch.as_tensor(model.temperature()).detach()))
    errors = compare(computed, expected, allowed)
    wrong = {name: error for name, error in errors.items() if not error <= allowed.relative}
    ranks = [rank for rank, (count,) in enumerate(agree([len(wrong)], context.group, what="gradient check")) if count]
    worst = max(errors, key=lambda name: _sortable(errors[name]))
    if wrong:
        raise GradientMismatch(
            f"the gradient of this trial's first step is not the one of a single process: that of {worst} differs by "
            f"{errors[worst]:.2g} of its norm, where rounding may make it {allowed.relative:.2g}"
            + (f", and so do {len(wrong) - 1} other tensors" if len(wrong) > 1 else "")
            + f". Nothing was trained. Seen on rank {rank_of(context.group)}, with {_execution(job)}. "
            "Try execution.ranks = 1, no micro and no compile one by one to find the cause; execution.verify = false "
            "trains in spite of it" + _about_own(job)
        )
    if ranks:
        raise GradientMismatch(f"rank {ranks[0]} found that the gradient is not one process's; see its own message")
    return f"it differs most in {worst}, by {errors[worst]:.1g} of {allowed.relative:.1g} allowed"


def _about_own(job: JobConfig) -> str:
    """Say what to look for first where the loss is the user's own."""
    if not is_import_path(job.loss.name):
        return ""
    return (
        f". {job.loss.name} is your own: a random number that is not torch's, or a state that is no buffer, makes it "
        "another function each time it is called"
    )


def compare(
    computed: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], allowed: Tolerance
) -> dict[str, float]:
    """Compute each tensor's difference, relative to its norm or to the floor. A missing gradient counts as zero."""
    norms = {name: 0.0 if x is None else float(x.double().norm()) for name, x in expected.items()}
    floor = allowed.floor * sum(norm**2 for norm in norms.values()) ** 0.5
    errors = {}
    for name, exact in expected.items():
        seen = computed[name]
        if seen is None or exact is None:
            difference = norms[name] if seen is None else float(seen.double().norm())
        else:
            difference = float((seen.double() - exact.double()).norm())
        scale = max(norms[name], floor)
        errors[name] = difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))
    return errors


def dense_loss(
    loss: Loss,
    queries: Tensor,
    keys: Tensor,
    hard: Tensor | None,
    *,
    ids: Ids | None,
    pool: int,
    temperature: float | Tensor,
    reference: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute a scalar with the gradient of the loss, from whole matrices in the precision of queries and keys [n, D].

    hard [n, H, D]. infonce_ce is infonce. For flatnce, which has InfoNCE's value, and infonce_matched, which has the
    batch's scale, the scalar's value is not the loss's. reference: of a softmax loss that is named by its import path,
    v -> a value with the loss's weight as its derivative.
    """
    sides = [queries, keys] if hard is None else [queries, keys, hard]
    mean = partial(_mean, loss, ids=ids, pool=pool, temperature=temperature, reference=reference)
    if loss.name == "infonce_matched":
        leaves = [side.detach().requires_grad_() for side in sides]
        slopes = (torch.autograd.grad(mean(leaves, name=name), leaves) for name in ("dcl", "infonce"))
        flat, own = (torch.cat([slope.flatten() for slope in gradients]).norm() for gradients in slopes)
        return mean(sides, name="infonce") * (flat / own if own > 0 else 1.0)
    return mean(sides, name={"flatnce": "dcl", "infonce_ce": "infonce"}.get(loss.name, loss.name))


def _mean(
    loss: Loss,
    sides: list[Tensor],
    *,
    name: str,
    ids: Ids | None,
    pool: int,
    temperature: float | Tensor,
    reference: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Average one direction over pairs, or both halves where symmetric. sides: queries, keys and hard negatives."""
    queries, keys, hard = sides[0], sides[1], sides[2] if len(sides) == 3 else None
    n = len(queries)
    index = torch.arange(n, device=queries.device)
    mates = index[:, None] // pool == index // pool
    negative = mates & (index[:, None] != index)
    strange = None
    if ids is not None:
        pair_ids = [side_ids for side_ids in (ids.pair_ids, ids.key_ids) if side_ids is not None]
        negative &= torch.stack([mine[:, None] != theirs for mine in pair_ids for theirs in pair_ids]).all(0)
        if ids.negative_ids is not None:
            strange = torch.stack([mine[:, None] != ids.negative_ids.flatten() for mine in pair_ids]).all(0)
            strange &= ids.negative_ids.flatten() != ABSENT

    def direction(anchors: Tensor, others: Tensor, hard: Tensor | None) -> Tensor:
        """Sum over the anchors."""
        logits, counts = anchors @ others.T / temperature, negative
        if loss.same_side:
            logits, counts = torch.cat([logits, anchors @ anchors.T / temperature], 1), torch.cat([counts, counts], 1)
        if hard is not None:
            own = torch.eye(n, dtype=logits.dtype, device=logits.device).repeat_interleave(hard.shape[1], 1)
            extra = anchors @ hard.flatten(0, 1).T / temperature + own * math.log(loss.hard_negative_weight)
            logits = torch.cat([logits, extra], 1)
            near = mates.repeat_interleave(hard.shape[1], 1)
            counts = torch.cat([counts, near if strange is None else near & strange], 1)
        positive = ((anchors * others).sum(1) - loss.margin) / temperature
        if name == "siglip":
            far = F.softplus(logits + loss.bias, threshold=1e9).where(counts, 0.0)
            return F.softplus(-positive - loss.bias, threshold=1e9).sum() + far.sum()
        some = counts.any(1)
        v = logits[some].masked_fill(~counts[some], -torch.inf).logsumexp(1) - positive[some]
        if reference is not None:
            return reference(v).sum()
        return (F.softplus(v, threshold=1e9) if name == "infonce" else v).sum()

    total = direction(queries, keys, hard)
    if loss.symmetric:
        total = (total + direction(keys, queries, None)) / 2
    return total / n


def _one_process(
    model: ContrastiveModel,
    job: JobConfig,
    loss: JobLoss,
    whole: MicroBatch,
    *,
    ids: Ids | None,
    facts: BatchFacts,
    masking: Masking | None,
    context: StepContext,
) -> None:
    """Leave the gradient of all pairs behind, by plain autograd. A loss of anchors is computed in float64, any other by
    its own function, in the precision that it was given rows in."""
    step, device = context.step, context.device
    views, n = whole.views, len(whole.pairs)
    sides = [side for side in (views.queries, views.keys, views.negatives) if side is not None]
    inputs = {name: _stacked([side[name] for side in sides]).to(device) for name in sides[0]}
    hard = len(next(iter(inputs.values()))) // n - 2
    numbers = torch.arange(n * (2 + hard)).view(n, 2 + hard)
    views_of = torch.cat([numbers[:, 0], numbers[:, 1], numbers[:, 2:].flatten()]).to(device)
    pair_of = views_of // (2 + hard) * (2 + hard)
    with dropout_keys(seed=job.seed, step=step, rows=pair_of if job.model.same_dropout else views_of):
        embedded = model.embed(inputs)
    temperature, local = model.temperature(), None if ids is None else ids.to(device)
    if loss.row_loss is not None:
        embedded = embedded.double()
        temperature = temperature.double() if isinstance(temperature, Tensor) else temperature
    queries, keys = embedded[:n], embedded[n : 2 * n]
    negatives = embedded[2 * n :].unflatten(0, (n, hard)) if hard else None
    if loss.row_loss is not None:
        value = dense_loss(
            job.loss, queries, keys, negatives, ids=local, pool=job.negatives_group, temperature=temperature,
            reference=loss.row_loss.reference,
        )  # fmt: skip
    else:
        given = {} if local is None else local.given()
        value, _ = loss(LossInputs(queries, keys, negatives, temperature=temperature, **given), facts, None)
    if masking is not None:
        seen = masked(inputs, views_of, masking, seed=job.seed, step=step)
        if seen.chosen.any():
            with dropout_keys(seed=job.seed, step=step, rows=-1 - views_of):
                logits = model.masked_logits(seen.inputs, seen.chosen)
            value = value + masking.weight * F.cross_entropy(logits, seen.labels)
    value.backward()


def _stacked(parts: list[Tensor]) -> Tensor:
    """Stack tensors below one another; tokens are padded by 0 to the longest, and their mask leaves the padding out."""
    if parts[0].ndim != 2:
        return torch.cat(parts)
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in parts])


def taken(model: nn.Module) -> dict[str, Tensor | None]:
    """Take the gradients that are there, by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put gradients and buffers (a batch norm's statistics) back as they were."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for buffer, before in buffers:
            buffer.copy_(before)


def _sortable(error: float) -> float:
    return error if error == error else float("inf")  # noqa: PLR0124 - nan differs from itself


def _execution(job: JobConfig) -> str:
    execution = job.execution
    named = {
        "ranks": execution.ranks,
        "exchange": execution.exchange,
        "micro": execution.micro,
        "micro_tokens": execution.micro_tokens,
        "compile": execution.compile or None,
        "precision": job.model.precision,
    }
    return ", ".join(f"{key} = {value}" for key, value in named.items() if value is not None)
