"""LARS, You et al. 2017 (arXiv:1708.03888): momentum with a rate of each layer; what SimCLR is trained with
(arXiv:2002.05709)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from jobs.config import Optimizer
from jobs.optim.builtin._walk import kept, with_gradients
from jobs.optim.eager import Groups, eager


@eager
class lars(torch.optim.Optimizer):  # noqa: N801 - a built-in has its module's name
    """v <- mu v + lr r (g + decay theta), theta <- theta - v, r = trust |theta| / (|g| + decay |theta|), mu
    `optimizer.momentum`.

    vectors: biases and gains of norms have r = 1 (`plain`), as SimCLR leaves them out, or are `scaled` as the algorithm
    is written. A layer of zeros, or a gradient of zeros, has r = 1.
    """

    def __init__(
        self,
        params: Groups,
        lr: float,
        settings: Optimizer,
        *,
        trust: Annotated[float, Field(gt=0)] = 0.001,
        vectors: Literal["plain", "scaled"] = "plain",
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.momentum, self.trust, self.vectors = settings.momentum, trust, vectors

    def step(self) -> None:  # type: ignore[override]
        """Make one step."""
        for parameter, gradient, group, state in with_gradients(self):
            velocity, decay = kept(state, "velocity", parameter), group["weight_decay"]
            step = gradient.add(parameter, alpha=decay)
            if parameter.ndim > 1 or self.vectors == "scaled":
                length, slope = parameter.norm(), gradient.norm()
                ratio = self.trust * length / (slope + decay * length)
                step.mul_(torch.where((length > 0) & (slope > 0), ratio, torch.ones_like(length)))
            velocity.mul_(self.momentum).add_(step, alpha=group["lr"])
            parameter.sub_(velocity)
