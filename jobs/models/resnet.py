"""A small residual network for images, with group norm so that a row's result does not depend on the other rows."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """Three stages of `layers` basic blocks; the second and the third halve the sides and double the channels.

    Blocks as He et al. 2016 (arXiv:1512.03385) for CIFAR; dropout between the convolutions as Zagoruyko and Komodakis
    2016 (arXiv:1605.07146). pixels [n, C, H, W] -> [n, 4 width, H/4, W/4].
    """

    def __init__(
        self, *, channels: int, width: int, layers: int, norm: Literal["group", "batch"], dropout: float
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = _norm(width, norm)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(3):
            after = width * 2**stage
            for layer in range(layers):
                stride = 2 if stage and not layer else 1
                blocks.append(_Block(before, after, stride=stride, norm=norm, dropout=dropout))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.width = before

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the feature map of the last block."""
        features: Tensor = self.blocks(F.relu(self.norm(self.stem(pixel_values))))
        return features


class _Block(nn.Module):
    def __init__(
        self, before: int, after: int, *, stride: int, norm: Literal["group", "batch"], dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _norm(after, norm)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = _norm(after, norm)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), _norm(after, norm))

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.norm1(self.conv1(x)))
        inside = self.norm2(self.conv2(self.dropout(inside)))
        return F.relu(inside + self.shortcut(x))


def _norm(channels: int, kind: Literal["group", "batch"]) -> nn.Module:
    """Build batch norm, or group norm with the largest number of groups up to 8 that divides the channels."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(next(groups for groups in range(min(8, channels), 0, -1) if channels % groups == 0), channels)
