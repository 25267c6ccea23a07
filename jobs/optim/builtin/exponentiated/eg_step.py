"""Step sizes by exponentiated gradients, each number's own: Su 2022 (kexue 8968) after Amid et al. 2022
(arXiv:2202.00145)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from jobs.optim.builtin._walk import kept, with_gradients
from jobs.optim.eager import Groups, eager


@eager
class eg_step(torch.optim.Optimizer):  # noqa: N801 - a built-in has its module's name
    """nu <- nu exp(gamma g' g), theta <- theta - lr (nu g + decay theta): g' the gradient of the step before, nu 1 at
    first, all of it number by number.

    gamma is in units of one over a gradient squared: what is large for one model is nothing for another.
    """

    def __init__(self, params: Groups, lr: float, *, gamma: Annotated[float, Field(ge=0)] = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        self.gamma = gamma

    def step(self) -> None:  # type: ignore[override]
        """Make one step."""
        for parameter, gradient, group, state in with_gradients(self):
            before, gain = kept(state, "before", gradient), kept(state, "gain", parameter, first=1.0)
            gain.mul_((before * gradient).mul_(self.gamma).exp_())
            before.copy_(gradient)
            parameter.add_((gain * gradient).add_(parameter, alpha=group["weight_decay"]), alpha=-group["lr"])
