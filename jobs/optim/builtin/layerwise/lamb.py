"""LAMB, You et al. 2020 (arXiv:1904.00962): Adam's step, as long as the layer's weights are."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from jobs.config import Optimizer
from jobs.optim.builtin._walk import adam_direction, with_gradients
from jobs.optim.eager import Groups, eager


@eager
class lamb(torch.optim.Optimizer):  # noqa: N801 - a built-in has its module's name
    """theta <- theta - lr |theta| / |u| u, u = m / (sqrt(v) + eps) + decay theta, m and v Adam's by `optimizer.betas`.

    vectors: biases and gains of norms, which begin at 0 or 1, are taken at lr alone, as in the authors' own trainings
    (`plain`), or `scaled` as the algorithm is written. A layer of zeros, or a step of zeros, is not scaled.
    """

    def __init__(
        self,
        params: Groups,
        lr: float,
        settings: Optimizer,
        *,
        eps: Annotated[float, Field(gt=0)] = 1e-6,
        vectors: Literal["plain", "scaled"] = "plain",
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.betas, self.eps, self.vectors = settings.betas, eps, vectors

    def step(self) -> None:  # type: ignore[override]
        """Make one step."""
        for parameter, gradient, group, state in with_gradients(self):
            update = adam_direction(gradient, state, self.betas, self.eps)
            update.add_(parameter, alpha=group["weight_decay"])
            if parameter.ndim > 1 or self.vectors == "scaled":
                length, step = parameter.norm(), update.norm()
                update.mul_(torch.where((length > 0) & (step > 0), length / step, torch.ones_like(length)))
            parameter.add_(update, alpha=-group["lr"])
