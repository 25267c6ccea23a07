"""Adafactor, Shazeer and Stern 2018 (arXiv:1804.04235), as torch has it: second moments of rows and columns, steps
relative to the size of the weights, no momentum."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from jobs.optim.eager import Groups, eager

Adafactor = eager(torch.optim.Adafactor)


def adafactor(
    params: Groups,
    lr: float,
    *,
    beta2_decay: Annotated[float, Field(le=0)] = -0.8,
    floor: Annotated[float, Field(ge=0)] = 1e-3,
    clip: Annotated[float, Field(ge=1)] = 1.0,
) -> torch.optim.Optimizer:
    """Build Adafactor: a step is max(floor, RMS(theta)) min(lr, 1 / sqrt(t)) u, u the gradient over the root of its
    second moment, no larger than `clip` in root mean square; the second moment forgets by 1 - t^beta2_decay."""
    return Adafactor(params, lr=lr, beta2_decay=beta2_decay, eps=(None, floor), d=clip)
