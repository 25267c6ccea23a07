"""AnglE, Li and Li 2023 (arXiv:2309.12871): pairs are ranked by the angle between their embeddings as complex numbers,
which does not saturate where a cosine does, beside the ranking by cosines of CoSENT."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from jobs.losses.builtin.scored._ranked import check_scores, ranking


def angle(
    queries: Tensor,
    keys: Tensor,
    scores: Tensor,
    temperature: float | Tensor,
    *,
    angles: Annotated[float, Field(ge=0)] = 1.0,
    cosines: Annotated[float, Field(ge=0)] = 1.0,
) -> Tensor:
    """Weigh the two rankings. queries, keys [B, D], scores [B]. The similarity of angles is |re + im| of the complex
    product of a query with the conjugate of its key, whose first half of columns is real; an odd D has a column of 0
    more."""
    similar = (queries * keys).sum(1)
    padded = [F.pad(side, (0, side.shape[1] % 2)).chunk(2, dim=1) for side in (queries, keys)]
    (real, imaginary), (key_real, key_imaginary) = padded
    turned = (imaginary * key_real - real * key_imaginary).sum(1)
    total = angles * ranking((similar + turned).abs(), scores, temperature)
    return total + cosines * ranking(similar, scores, temperature) if cosines else total


angle.check_scores = check_scores  # type: ignore[attr-defined]
