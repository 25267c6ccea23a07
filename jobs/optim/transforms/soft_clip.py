"""Soft clipping: g c / (|g| + c), which differs from hard clipping by at most a factor of 2 (Zhang et al. 2020,
arXiv:1905.11881)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import nn


class soft_clip:  # noqa: N801 - a built-in has its module's name
    """Of the whole gradient. norm: c."""

    def __init__(self, *, norm: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.norm = norm

    @torch.no_grad()
    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Scale the gradients in place."""
        gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        if gradients:
            whole = nn.utils.get_total_norm(gradients)
            for gradient in gradients:
                gradient.mul_(self.norm / (whole + self.norm))
