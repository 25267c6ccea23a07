"""Step-size adaptation by exponentiated gradients, Amid et al. 2022 (arXiv:2202.00145): one scale of the whole step and
a gain of each number, on the normalised steps of another optimizer."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from jobs.config import Optimizer
from jobs.optim.builtin._walk import adam_direction, kept, with_gradients
from jobs.optim.eager import Groups, eager


@eager
class eg_step_full(torch.optim.Optimizer):  # noqa: N801 - a built-in has its module's name
    """theta <- theta - lr (s p u + decay theta), u the inner optimizer's step at a rate of 1.

    With n = u / |u| over all parameters and d an average of the n before: s <- s exp(gamma_scale <d, n>), p <- p
    exp(gamma_gains d n) number by number, then d <- past d + (1 - past) n. s and p are 1 and d is 0 at first. <d, n> is
    at most 1, whatever the size of gradients; the products d n sum up to it, so that gamma_gains may be as large as the
    model has numbers.

    inner: `adam` with `optimizer.betas`, or `momentum` with `optimizer.momentum`.
    """

    def __init__(
        self,
        params: Groups,
        lr: float,
        settings: Optimizer,
        *,
        inner: Literal["adam", "momentum"] = "adam",
        gamma_scale: Annotated[float, Field(ge=0)] = 0.1,
        gamma_gains: Annotated[float, Field(ge=0)] = 1.0,
        past: Annotated[float, Field(ge=0, lt=1)] = 0.9,
    ) -> None:
        super().__init__(params, {"lr": lr, "scale": 1.0})
        self.inner, self.betas, self.momentum = inner, settings.betas, settings.momentum
        self.gamma_scale, self.gamma_gains, self.past = gamma_scale, gamma_gains, past

    def step(self) -> None:  # type: ignore[override]
        """Make one step."""
        steps = [
            (self._direction(gradient, state), found)
            for found in with_gradients(self)
            for _, gradient, _, state in [found]
        ]
        size = math.sqrt(sum(float(update.double().square().sum()) for update, _ in steps))
        if size == 0:
            return
        units = [update / size for update, _ in steps]
        pasts = [kept(state, "past", parameter) for _, (parameter, _, _, state) in steps]
        alike = sum(float((past * unit).double().sum()) for past, unit in zip(pasts, units, strict=True))
        for group in self.param_groups:
            group["scale"] *= math.exp(self.gamma_scale * alike)
        for (update, (parameter, _, group, state)), unit, past in zip(steps, units, pasts, strict=True):
            gain = kept(state, "gain", parameter, first=1.0).mul_((past * unit).mul_(self.gamma_gains).exp_())
            past.mul_(self.past).add_(unit, alpha=1 - self.past)
            step = (gain * update).mul_(group["scale"]).add_(parameter, alpha=group["weight_decay"])
            parameter.add_(step, alpha=-group["lr"])

    def _direction(self, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        if self.inner == "adam":
            return adam_direction(gradient, state, self.betas, 1e-8)
        return kept(state, "mean", gradient).mul_(self.momentum).add_(gradient)
