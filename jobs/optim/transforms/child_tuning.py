"""ChildTuning-F, Xu et al. 2021 (arXiv:2109.05687), kexue 8764: at each step another random share of the numbers is
trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal
from zlib import crc32

import torch
from torch import Tensor, nn

from jobs.core import randomness
from jobs.optim.transforms._masks import mask_gradients, mask_updates


class child_tuning:  # noqa: N801 - a built-in has its module's name
    """g <- g M / p, M of each number 1 with probability p: a function of seed, step, the parameter's name and the
    number's place, so that there is nothing to keep.

    mask: `gradient`, as published; with momentum a number whose gradient is masked moves all the same. `update`: in
    place of the gradient the optimizer's step is masked, decay included, and divided by p.
    """

    def __init__(self, *, p: float = 0.3, mask: Literal["gradient", "update"] = "gradient") -> None:
        if not 0 < p <= 1:
            raise ValueError(f"optimizer.transform_options.p = {p} is a share of the numbers: above 0, at most 1")
        self.p, self.mask = p, mask
        self.after = self._after if mask == "update" else None

    def __call__(self, parameters: Mapping[str, nn.Parameter], step: int, seed: int) -> None:
        """Mask the gradients."""
        if self.mask == "gradient":
            mask_gradients(parameters, partial(self._chosen, step, seed), share=self.p)

    def _after(
        self, parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor], step: int, seed: int
    ) -> None:
        mask_updates(parameters, before, partial(self._chosen, step, seed), share=self.p)

    def _chosen(self, step: int, seed: int, name: str, parameter: nn.Parameter) -> Tensor:
        places = torch.arange(parameter.numel(), device=parameter.device)
        drawn = randomness.uniform(randomness.CHILD, seed, step, crc32(name.encode()), places)
        return (drawn < self.p).view(parameter.shape)
