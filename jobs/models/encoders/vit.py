"""A vision transformer, Dosovitskiy et al. 2021 (arXiv:2010.11929), of the job's size."""

from __future__ import annotations

from torch import nn

from jobs.config import JobConfig
from jobs.models import transformer


def vit(job: JobConfig, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a ViT with patches of `model.patch`."""
    return transformer.vit(job, image_shape)
