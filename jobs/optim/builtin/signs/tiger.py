"""Tiger, Su 2023 (kexue 9512): the sign of a momentum, at rates that are relative to the size of a matrix; gradients of
several steps are accumulated inside the momentum, as in kexue 8634."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from jobs.optim.builtin._walk import kept, with_gradients
from jobs.optim.builtin.signs._sign import sign
from jobs.optim.eager import Groups, eager


@eager
class tiger(torch.optim.Optimizer):  # noqa: N801 - a built-in has its module's name
    """m <- beta m + (1 - beta) g, then theta <- theta - eta (sign(m) + decay theta).

    eta is lr RMS(theta) for matrices and lr / 2 for biases and gains of norms, so lr is a relative change: 1e-3 to 2e-3
    at most. beta: 0.965 for texts, 0.945 for images. A matrix of zeros stays one.

    accumulate: k steps make one update, at those that k divides, with the gradients averaged. Where it begins, a cycle
    decays the momentum; each step of it adds (1 - beta) g / k. So nothing but the momentum is kept. A cycle that
    training does not end makes no update.

    nan_rule: at a step of which any gradient is not finite, momenta stay, and every weight shrinks: theta <- (theta -
    c) shrink + c, c 1 for gains of norms and 0 for all else. It hides that a training diverges, which then goes on;
    `nan_steps` of each group of the state, and so of a checkpoint, counts how often, and so do a trial's points.
    """

    def __init__(
        self,
        params: Groups,
        lr: float,
        model: nn.Module,
        *,
        beta: Annotated[float, Field(ge=0, lt=1)] = 0.965,
        accumulate: Annotated[int, Field(ge=1)] = 1,
        nan_rule: bool = False,
        shrink: Annotated[float, Field(ge=0, le=1)] = 0.99,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"optimizer.options.accumulate = {accumulate} steps make no update; give 1 or more")
        super().__init__(params, {"lr": lr, "steps": 0, "nan_steps": 0})
        self.beta, self.accumulate, self.takes_nan, self.shrink = beta, accumulate, nan_rule, shrink
        named = model.named_parameters()
        self.gains = {id(p) for name, p in named if p.ndim == 1 and name.rpartition(".")[2] == "weight"}

    def counts(self) -> dict[str, float]:
        """Count the steps of the rule for nan; nothing where it is off."""
        return {"nan_steps": float(self.param_groups[0]["nan_steps"])} if self.takes_nan else {}

    def step(self) -> None:  # type: ignore[override]
        """Make one step: an update where it ends a cycle."""
        is_nan = self.takes_nan and not all(
            bool(gradient.isfinite().all()) for _, gradient, _, _ in with_gradients(self)
        )
        for group in self.param_groups:
            group["steps"] += 1
            group["nan_steps"] += is_nan
        for parameter, gradient, group, state in with_gradients(self):
            if is_nan:
                centre = 1.0 if id(parameter) in self.gains else 0.0
                parameter.sub_(centre).mul_(self.shrink).add_(centre)
                continue
            momentum = kept(state, "momentum", parameter)
            if (group["steps"] - 1) % self.accumulate == 0:
                momentum.mul_(self.beta)
            momentum.add_(gradient, alpha=(1 - self.beta) / self.accumulate)
            if group["steps"] % self.accumulate == 0:
                update = sign(momentum).add_(parameter, alpha=group["weight_decay"])
                parameter.sub_(update * (group["lr"] * _size(parameter)))


def _size(parameter: Tensor) -> Tensor | float:
    """Compute what the rate is relative to: a matrix's root mean square, and a half for all else."""
    return parameter.square().mean().sqrt() if parameter.ndim > 1 else 0.5
