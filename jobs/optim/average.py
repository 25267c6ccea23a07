"""The exponential moving average of weights, which is what is evaluated and what checkpoints hold as the model
(Polyak and Juditsky 1992, doi:10.1137/0330046; its use in self-supervision: Grill et al. 2020, arXiv:2006.07733).

After step t it is the mean of the weights after steps 1 to t, each with weight beta^(t - s): the first weights have no
part in it, however long its memory. beta = 2^(-batch / half-life), so it means the same for every size of batch. What
is trained goes on beside it, and is not changed by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from jobs.config import Optimizer


class WeightAverage:
    """Of the trained parameters of a model, if the job asks for one. Buffers are not averaged."""

    def __init__(self, model: nn.Module, settings: Optimizer, *, batch: int) -> None:
        half_life = settings.average_half_life
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._forgets = 0.0 if half_life is None else math.log(2) * batch / half_life
        self.weights: dict[str, Tensor] = {}
        """By name; none where there is no average."""
        if half_life is not None:
            self.weights = {name: p.detach().clone() for name, p in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after this step, from 1, into the average."""
        for name, average in self.weights.items():
            # (1 - beta) / (1 - beta^step), also where beta is 1 but for less than a number can tell from it.
            average.lerp_(self._trained[name], math.expm1(-self._forgets) / math.expm1(-self._forgets * step))

    @contextmanager
    def in_model(self) -> Iterator[dict[str, Tensor]]:
        """Put the average into the model while the context lasts. Yields what is trained, by name; where there is no
        average it is empty, and nothing is changed."""
        trained = {name: self._trained[name].detach().clone() for name in self.weights}
        self._put(self.weights)
        try:
            yield trained
        finally:
            self._put(trained)

    def load(self, trained: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint whose model is in place: it is the average, and `trained` what is trained."""
        for name, average in self.weights.items():
            average.copy_(self._trained[name].detach())
        self._put(trained)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, values in weights.items():
            self._trained[name].copy_(values)
