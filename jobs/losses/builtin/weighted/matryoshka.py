"""Matryoshka representation learning, Kusupati et al. 2022 (arXiv:2205.13147): the same loss on the first d columns of
the embedding, for several d, so that a short embedding is good too."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from jobs.losses.builtin.weighted._dense import candidates


def matryoshka(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    temperature: float | Tensor,
    dims: tuple[int, ...],
    weights: tuple[Annotated[float, Field(ge=0)], ...] = (),
    loss: Literal["infonce", "dcl"] = "infonce",
) -> Tensor:
    """Sum the loss of the first d columns, made unit rows, over dims, by weights; without any, all weigh 1."""
    width = queries.shape[1]
    if not dims or min(dims) < 1 or max(dims) > width:
        raise ValueError(f"loss.options.dims = {list(dims)} are numbers of columns, of which embeddings have {width}")
    if weights and len(weights) != len(dims):
        raise ValueError(f"loss.options.weights has {len(weights)} numbers for the {len(dims)} of dims; give as many")
    if loss == "dcl" and isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("loss.temperature = 'learned' with loss = 'dcl' has no minimum; give a number, or 'infonce'")
    total = queries.new_zeros(())
    for d, weight in zip(dims, weights or (1.0,) * len(dims), strict=True):
        found = candidates(
            queries=F.normalize(queries[:, :d], dim=-1),
            keys=F.normalize(keys[:, :d], dim=-1),
            negatives=None if negatives is None else F.normalize(negatives[..., :d], dim=-1),
            ids=ids,
            key_ids=key_ids,
            negative_ids=negative_ids,
        )
        v = found.logits(temperature)[found.some].logsumexp(1)
        each = v if loss == "dcl" else torch.logaddexp(v, torch.zeros_like(v))
        total = total + weight * each.sum() / len(queries)
    return total


matryoshka.normalised = False  # type: ignore[attr-defined]
