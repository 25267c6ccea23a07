"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import torch

from jobs.config import Optimizer
from jobs.optim.eager import Groups, eager

SGD = eager(torch.optim.SGD)


def sgd(params: Groups, lr: float, settings: Optimizer) -> torch.optim.Optimizer:
    """Build SGD with `optimizer.momentum`."""
    return SGD(params, lr=lr, momentum=settings.momentum, fused=True)
