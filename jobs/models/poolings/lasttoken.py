"""The last token's state."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.models.poolings.mean import places


def lasttoken(states: Tensor, mask: Tensor) -> Tensor:
    """Take the last state that counts."""
    return states[torch.arange(len(states), device=states.device), (mask * places(mask)).argmax(1)]
