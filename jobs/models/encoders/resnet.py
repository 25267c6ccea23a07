"""The small residual network for images, of the job's size."""

from __future__ import annotations

from torch import nn

from jobs.config import JobConfig
from jobs.models.resnet import ResNet


def resnet(job: JobConfig, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build the residual network with `model.width` channels in its first stage."""
    model = job.model
    return ResNet(
        channels=image_shape[0], width=model.width, layers=model.layers, norm=model.norm, dropout=model.dropout or 0.0
    )
