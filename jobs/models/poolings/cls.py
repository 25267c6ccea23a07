"""The first token's state."""

from __future__ import annotations

import torch
from torch import Tensor


def cls(states: Tensor, mask: Tensor) -> Tensor:
    """Take the first state that counts."""
    return states[torch.arange(len(states), device=states.device), mask.argmax(1)]
