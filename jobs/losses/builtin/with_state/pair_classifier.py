"""Labelled pairs by a classifier, Conneau et al. 2017 (arXiv:1705.02364), Reimers and Gurevych 2019 (arXiv:1908.10084),
Su 2021 (kexue 8541): a linear layer on [u, v, |u - v|], which is left behind after the training."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn


class pair_classifier(nn.Module):  # noqa: N801 - a built-in has its module's name
    """Cross entropy of the pair's class. classes: whole scores of the data, from 0."""

    normalised = False

    def __init__(self, embedding_width: int, *, classes: Annotated[int, Field(ge=2)] = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * embedding_width, classes, bias=False)

    @staticmethod
    def check_scores(scores: Tensor, *, classes: int = 2) -> None:
        """Raise ValueError for scores [n] of which one is no class."""
        if bool(((scores != scores.round()) | (scores < 0) | (scores >= classes)).any()):
            raise ValueError(
                f"pair_classifier has {classes} classes, numbered from 0, and there are scores from "
                f"{float(scores.min()):g} to {float(scores.max()):g}; number the labels so, or set loss.options.classes"
            )

    def forward(self, queries: Tensor, keys: Tensor, scores: Tensor) -> Tensor:
        """Compute the mean over pairs. queries, keys [B, D], scores [B]. Raises ValueError for a score that is no
        class."""
        self.check_scores(scores, classes=self.linear.out_features)
        labels = scores.long()
        pairs = torch.cat([queries, keys, (queries - keys).abs()], dim=1)
        return F.cross_entropy(self.linear(pairs), labels)
