"""AdamW, Loshchilov and Hutter 2019 (arXiv:1711.05101)."""

from __future__ import annotations

import torch

from jobs.config import Optimizer
from jobs.optim.eager import Groups, eager

AdamW = eager(torch.optim.AdamW)


def adamw(params: Groups, lr: float, settings: Optimizer) -> torch.optim.Optimizer:
    """Build AdamW with the averaging of `optimizer.betas`."""
    return AdamW(params, lr=lr, betas=settings.betas, fused=True)
