"""The losses again, written apart from jobs/losses: plain float64 autograd on the whole batch, in whole matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """Loss and gradients of one call; tensors that took no gradient have None."""

    loss: float
    queries: Tensor
    keys: Tensor
    hard: Tensor | None
    temperature: Tensor | None
    bias: Tensor | None

    def gradients(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in ("queries", "keys", "hard", "temperature", "bias")}
        return {name: x for name, x in found.items() if x is not None}


@dataclass(frozen=True)
class Batch:
    """A whole batch and how the loss is asked for; `options` go to `contrastive_loss` by name."""

    queries: Tensor
    keys: Tensor
    hard: Tensor | None
    ids: Tensor | None
    temperature: float
    options: dict[str, Any]
    key_ids: Tensor | None = None
    negative_ids: Tensor | None = None

    def texts(self, row: int) -> set[Any]:
        """What a pair's anchor and positive say, as far as ids tell it; without ids every pair is its own."""
        return {int(ids[row]) for ids in (self.ids, self.key_ids) if ids is not None} or {f"pair {row}"}

    def others(self) -> Tensor:
        """[B, B]: where the candidate is of another pair than the anchor, and neither it nor its partner says what the
        anchor or its positive says. Pair by pair."""
        pairs = [self.texts(row) for row in range(len(self.queries))]
        return torch.tensor([[i != j and not a & b for j, b in enumerate(pairs)] for i, a in enumerate(pairs)]).view(
            len(pairs), len(pairs)
        )

    def strange(self) -> Tensor:
        """[B, B H]: where a hard negative says something else than the anchor and its positive."""
        assert self.hard is not None
        B, H = self.hard.shape[:2]
        if self.negative_ids is None:
            return torch.ones(B, B * H, dtype=torch.bool)
        said = self.negative_ids.flatten().tolist()
        return torch.tensor([[text not in self.texts(i) for text in said] for i in range(B)]).view(B, B * H)

    def leaves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        def leaf(x: Tensor) -> Tensor:
            return x.detach().to(dtype).clone().requires_grad_()

        return leaf(self.queries), leaf(self.keys), None if self.hard is None else leaf(self.hard)


def oracle(batch: Batch) -> Answer:
    """Loss and gradients of the whole batch in one process."""
    q, k, hard = batch.leaves(torch.float64)
    tau = torch.tensor(batch.temperature, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(float(batch.options.get("bias", 0.0)), dtype=torch.float64, requires_grad=True)
    name = batch.options["name"]
    if name == "infonce_matched":
        sides = [x for x in (q, k, hard) if x is not None]
        ours, flat = (_mean(batch, q, k, hard, tau, bias, n) for n in ("infonce", "dcl"))
        norms = [
            torch.cat([g.flatten() for g in torch.autograd.grad(x, sides, retain_graph=True)]).norm()
            for x in (ours, flat)
        ]
        factor = norms[1] / norms[0] if norms[0] > 0 else torch.ones(())
        (factor * ours).backward()
        value = ours
    else:
        value = _mean(batch, q, k, hard, tau, bias, {"flatnce": "dcl", "infonce_ce": "infonce"}.get(name, name))
        value.backward()
        if name == "flatnce":
            value = _mean(batch, q, k, hard, tau, bias, "infonce")
    grads = [
        torch.zeros_like(x) if x is not None and x.grad is None else (None if x is None else x.grad)
        for x in (q, k, hard)
    ]
    assert grads[0] is not None
    assert grads[1] is not None
    return Answer(
        float(value.detach()), grads[0], grads[1], grads[2],
        torch.zeros_like(tau) if tau.grad is None else tau.grad, bias.grad if name == "siglip" else None,
    )  # fmt: skip


def _mean(batch: Batch, q: Tensor, k: Tensor, hard: Tensor | None, tau: Tensor, bias: Tensor, name: str) -> Tensor:
    total = _one_way(batch, q, k, hard, tau, bias, name)
    if batch.options.get("symmetric"):
        total = (total + _one_way(batch, k, q, None, tau, bias, name)) / 2
    return total / len(q)


def _one_way(batch: Batch, x: Tensor, y: Tensor, hard: Tensor | None, tau: Tensor, bias: Tensor, name: str) -> Tensor:
    """Sum over the anchors x, from one matrix of all candidates and one of which are negatives."""
    B, options = len(x), batch.options
    numbers = torch.arange(B)
    pools = numbers // (options.get("pool") or B)
    mates = pools[:, None] == pools[None, :]
    others = mates & batch.others()
    logits, keep = [x @ y.T / tau], [others]
    if options.get("same_side"):
        logits, keep = [*logits, x @ x.T / tau], [*keep, others]
    if hard is not None:
        H = hard.shape[1]
        weights = torch.where(numbers[:, None] == numbers[None, :], options.get("hard_negative_weight", 1.0), 1.0)
        added = weights.double().log().repeat_interleave(H, dim=1)
        logits, keep = (
            [*logits, x @ hard.flatten(0, 1).T / tau + added],
            [*keep, mates.repeat_interleave(H, dim=1) & batch.strange()],
        )
    negatives, kept = torch.cat(logits, dim=1), torch.cat(keep, dim=1)
    positive = ((x * y).sum(1) - options.get("margin", 0.0)) / tau
    if name == "siglip":
        terms = F.softplus(negatives + bias, threshold=1e9)[kept]
        return torch.cat([terms, F.softplus(-positive - bias, threshold=1e9)]).sum()
    some = kept.any(1)
    v = negatives[some].masked_fill(~kept[some], -torch.inf).logsumexp(1) - positive[some]
    each: Tensor = torch.logaddexp(v, torch.zeros_like(v)) if name == "infonce" else v
    return torch.cat([each, 0 * positive]).sum()


def error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; the norm itself where that is 0."""
    expected = expected.double()
    size = float(expected.norm())
    return float((found.double() - expected).norm()) / (size if size > 0 else 1.0)
