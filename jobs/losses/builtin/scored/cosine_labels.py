"""Three losses of labelled pairs on the cosine itself, Su 2021 (kexue 8541), where they do worse than a classifier."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor


def cosine_labels(
    queries: Tensor,
    keys: Tensor,
    scores: Tensor,
    *,
    form: Literal["zero", "opposite", "bands"] = "zero",
    highest: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """Average over pairs with cosine c and label t. zero: t (c - 1)^2 + (1 - t) c^2. opposite: t (c - 1)^2 +
    (1 - t) (c + 1)^2. bands: t max(0.9 - c, 0) + (1 - t) max(c - 0.1, 0). scores [B], from 0 to `highest`, are divided
    by it."""
    check_scores(scores, highest=highest)
    scores = scores / highest
    cosine = (queries * keys).sum(1)
    if form == "bands":
        alike, apart = F.relu(0.9 - cosine), F.relu(cosine - 0.1)
    else:
        alike, apart = (cosine - 1).square(), (cosine + (form == "opposite")).square()
    return (scores * alike + (1 - scores) * apart).mean()


def check_scores(scores: Tensor, *, form: str = "zero", highest: float = 1.0) -> None:  # noqa: ARG001 - of any form
    """Raise ValueError for scores [n] of which one is not from 0 to the highest."""
    if bool(((scores < 0) | (scores > highest)).any()):
        least, most = float(scores.min()), float(scores.max())
        raise ValueError(
            f"cosine_labels has labels from 0 to loss.options.highest = {highest:g}, and there are scores from "
            f"{least:g} to {most:g}; set it to the highest that there can be, or rank pairs by loss.name = 'cosent'"
        )


cosine_labels.check_scores = check_scores  # type: ignore[attr-defined]
