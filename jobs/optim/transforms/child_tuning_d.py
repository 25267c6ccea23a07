"""ChildTuning-D, Xu et al. 2021 (arXiv:2109.05687), kexue 8764: the numbers that matter most are trained, as chosen
before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from jobs.config import Optimizer
from jobs.optim.transforms._masks import mask_gradients, mask_updates


class child_tuning_d:  # noqa: N801 - a built-in has its module's name
    """g <- g M, M 1 for the share p of all numbers with the largest mean of squared gradients at the first weights.

    A contrastive loss has no gradient of an example: `optimizer.fisher_pairs` consecutive pairs of the global batch
    stand for one, as a batch of their own. batches: of how many steps, from the first, the groups are. Of equal means
    those of the parameter and the place that come first are chosen. mask: as of child_tuning; nothing is divided by p.
    """

    def __init__(
        self,
        *,
        p: float = 0.3,
        batches: Annotated[int, Field(ge=1, le=10_000)] = 1,
        mask: Literal["gradient", "update"] = "gradient",
    ) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"optimizer.transform_options.p = {p} is a share of the numbers: above 0, at most 1")
        if batches < 1:
            raise ValueError(f"optimizer.transform_options.batches = {batches} have no gradient; give 1 or more")
        self.p, self.batches, self.mask = p, batches, mask
        self.after = self._after if mask == "update" else None
        self._masks: dict[str, Tensor] = {}

    def prepare(
        self,
        parameters: Mapping[str, nn.Parameter],
        gradients: Callable[[int, int], Iterator[Mapping[str, Tensor]]],
        settings: Optimizer,
    ) -> None:
        """Choose what is trained."""
        squares = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
        for step in range(1, self.batches + 1):
            for group in gradients(step, settings.fisher_pairs):
                for name, gradient in group.items():
                    squares[name] += gradient.double().square()
        # A sum orders as the mean does.
        every = torch.cat([square.flatten() for square in squares.values()])
        chosen = torch.zeros(len(every), dtype=torch.bool)  # not on a GPU, as other ranks have others
        chosen[every.argsort(descending=True, stable=True)[: max(1, round(self.p * len(every)))].cpu()] = True
        parts = chosen.split([square.numel() for square in squares.values()])
        self._masks = {
            name: part.view(square.shape).clone() for (name, square), part in zip(squares.items(), parts, strict=True)
        }

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Mask the gradients."""
        if self.mask == "gradient":
            mask_gradients(parameters, self._chosen)

    def _after(self, parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]) -> None:
        mask_updates(parameters, before, self._chosen)

    def _chosen(self, name: str, parameter: nn.Parameter) -> Tensor:
        self._masks[name] = self._masks[name].to(parameter.device)
        return self._masks[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks."""
        return self._masks

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with these masks."""
        self._masks = dict(state)
