"""What a mask of numbers does to gradients, or to an optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MaskOf = Callable[[str, nn.Parameter], Tensor]
"""(name, parameter) -> bool of its shape, on its device: what is trained."""


@torch.no_grad()
def mask_gradients(parameters: Mapping[str, nn.Parameter], mask_of: MaskOf, *, share: float = 1.0) -> None:
    """Set gradients to 0 where a mask is False, and divide the others by `share`."""
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            parameter.grad.mul_(mask_of(name, parameter)).div_(share)


@torch.no_grad()
def mask_updates(
    parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor], mask_of: MaskOf, *, share: float = 1.0
) -> None:
    """Put numbers back to what they were `before` the step where a mask is False, bit for bit, and divide the steps of
    the others by `share`."""
    for name, parameter in parameters.items():
        old = before[name]
        moved = parameter if share == 1 else old + (parameter - old) / share
        parameter.copy_(torch.where(mask_of(name, parameter), moved, old))
