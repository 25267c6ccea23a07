"""What an optimizer goes through at a step: parameters with a gradient, and the tensors that it keeps of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def with_gradients(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[nn.Parameter, Tensor, dict[str, Any], dict[str, Any]]]:
    """Yield every parameter that has a gradient, in order: the parameter, its gradient, its group, its state."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield parameter, parameter.grad, group, optimizer.state[parameter]


def kept(state: dict[str, Any], name: str, like: Tensor, *, first: float = 0.0) -> Tensor:
    """Return a tensor of a parameter's state, filled with `first` the first time."""
    if name not in state:
        state[name] = torch.full_like(like, first)
    tensor: Tensor = state[name]
    return tensor


def adam_direction(gradient: Tensor, state: dict[str, Any], betas: tuple[float, float], eps: float) -> Tensor:
    """Compute Adam's direction, m / (sqrt(v) + eps) without their bias, and keep its averages."""
    mean, square = kept(state, "mean", gradient), kept(state, "square", gradient)
    steps = state["steps"] = state.get("steps", 0) + 1
    mean.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    direction: Tensor = mean / (1 - betas[0] ** steps) / ((square / (1 - betas[1] ** steps)).sqrt() + eps)
    return direction
