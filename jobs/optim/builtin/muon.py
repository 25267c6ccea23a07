"""Muon, Jordan et al. 2024, with the scale of Liu et al. 2025 (arXiv:2502.16982): the momentum of a hidden layer's
matrix, made nearly orthogonal; all else by AdamW (arXiv:1711.05101).

torch.optim.Muon iterates in bfloat16 whatever the weights are. A last bit of the gradient, in which numbers of ranks
and of micro-batches differ, would then move weights by half a percent of a step; so the iteration here is in the
precision of the weights.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from jobs.config import Optimizer
from jobs.optim.builtin._walk import kept, with_gradients
from jobs.optim.builtin.adamw import AdamW
from jobs.optim.eager import Groups, eager
from jobs.optim.layers import hidden_matrices

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration x <- a x + b x^3 + c x^5 on singular values: steep at 0, and it ends about 1, not at it."""


@eager
class muon(torch.optim.Optimizer):  # noqa: N801 - a built-in has its module's name
    """m <- mu m + (1 - mu) g, theta <- (1 - lr decay) theta - lr scale O(m), O the nearest orthogonal matrix, about.

    A convolution is the matrix of its output channels. Embeddings, the first layer of an image encoder, heads, vectors
    and parameters of the loss have AdamW's step at the same rate, with `optimizer.betas`.

    momentum: mu. nesterov: m is taken once more with the gradient. scale: `rms`, 0.2 sqrt(max(rows, columns)), makes a
    step as large as AdamW's, so that one rate suits both; `spectral`, sqrt(max(1, rows / columns)), is Jordan's.
    """

    def __init__(
        self,
        params: Groups,
        lr: float,
        settings: Optimizer,
        model: nn.Module,
        *,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95,
        nesterov: bool = True,
        scale: Literal["rms", "spectral"] = "rms",
    ) -> None:
        self.momentum, self.nesterov, self.scale = momentum, nesterov, scale
        hidden = {id(parameter) for parameter in hidden_matrices(model)}
        matrices, others = (
            [{**group, "params": own, "is_hidden": chosen} for group in params if (own := _of(group, hidden, chosen))]
            for chosen in (True, False)
        )
        # Its groups and its state are this optimizer's own, so that there is one state to keep.
        self._adamw = AdamW(others, lr=lr, betas=settings.betas, fused=True) if others else None
        super().__init__([*matrices, *(self._adamw.param_groups if self._adamw else [])], {"lr": lr})

    def step(self) -> None:  # type: ignore[override]
        """Make one step."""
        for parameter, gradient, group, state in with_gradients(self):
            if group["is_hidden"]:
                momentum = kept(state, "momentum", parameter).lerp_(gradient, 1 - self.momentum)
                update = gradient.lerp(momentum, self.momentum) if self.nesterov else momentum
                matrix = update.flatten(1)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = orthogonalised(matrix).view_as(parameter)
                parameter.add_(step, alpha=-group["lr"] * self._scale(*matrix.shape))
        if self._adamw is not None:
            self._adamw.param_groups = [group for group in self.param_groups if not group["is_hidden"]]
            self._adamw.state = self.state
            self._adamw.step()

    def _scale(self, rows: int, columns: int) -> float:
        return 0.2 * math.sqrt(max(rows, columns)) if self.scale == "rms" else math.sqrt(max(1.0, rows / columns))


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Bring all singular values of a matrix near 1, by Newton's and Schulz's iteration; its vectors stay."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x


def _of(group: dict[str, list[nn.Parameter] | float], hidden: set[int], chosen: bool) -> list[nn.Parameter]:
    parameters = group["params"]
    assert isinstance(parameters, list)
    return [parameter for parameter in parameters if (id(parameter) in hidden) == chosen]
