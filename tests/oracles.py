"""The losses again, written apart from jobs/losses: plain autograd in float64 on the whole batch, one matrix at a time."""

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
        (factor * ours).backward()  # type: ignore[no-untyped-call]
        value = ours
    else:
        value = _mean(batch, q, k, hard, tau, bias, {"flatnce": "dcl", "infonce_ce": "infonce"}.get(name, name))
        value.backward()  # type: ignore[no-untyped-call]
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
    directions = [_one_way(batch, q, k, hard, tau, bias, name)]
    if batch.options.get("symmetric"):
        directions.append(_one_way(batch, k, q, None, tau, bias, name))
    return torch.stack(directions).mean()


def _one_way(batch: Batch, x: Tensor, y: Tensor, hard: Tensor | None, tau: Tensor, bias: Tensor, name: str) -> Tensor:
    """Mean over the anchors x, each with its own list of negatives."""
    B, options = len(x), batch.options
    ids = torch.arange(B) if batch.ids is None else batch.ids
    pools = torch.arange(B) // (options.get("pool") or B)
    losses = []
    for i in range(B):
        mates = pools == pools[i]
        others = mates & (ids != ids[i])
        rows = [y[others]] + ([x[others]] if options.get("same_side") else [])
        negatives = torch.cat(rows) @ x[i] / tau
        if hard is not None:
            weights = torch.ones(B, hard.shape[1], dtype=torch.float64)
            weights[i] = options.get("hard_negative_weight", 1.0)
            negatives = torch.cat([negatives, (hard[mates] @ x[i] / tau + weights[mates].log()).flatten()])
        positive = (x[i] @ y[i] - options.get("margin", 0.0)) / tau
        if name == "siglip":
            signed = torch.cat([-(positive + bias)[None], negatives + bias])
            losses.append(F.softplus(signed, threshold=1e9).sum())
        elif len(negatives):
            v = negatives.logsumexp(0) - positive
            losses.append(torch.logaddexp(v, torch.zeros_like(v)) if name == "infonce" else v)
        else:
            losses.append(0 * positive)
    return torch.stack(losses).sum() / B


def error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; the norm itself where that is 0."""
    expected = expected.double()
    size = float(expected.norm())
    return float((found.double() - expected).norm()) / (size if size > 0 else 1.0)
