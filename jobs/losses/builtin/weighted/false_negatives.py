"""InfoNCE that leaves out negatives which are nearer to the anchor than its own positive: most likely positives that
nobody labelled. By the embeddings that are trained, as Solatorio 2024 (arXiv:2402.16829) does by a guide's."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from jobs.losses.builtin.weighted._dense import candidates, is_nearer


def false_negatives(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    temperature: float | Tensor,
    rule: Literal["margin", "share"] = "margin",
    margin: float = 0.0,
    share: Annotated[float, Field(gt=0)] = 0.95,
) -> Tensor:
    """Average InfoNCE over anchors, without each candidate j of which s_ij > s_ii + margin or, by the other rule,
    s_ij > share s_ii, s the cosine, by more than rounding. The positive is never left out; an anchor without negatives
    counts 0."""
    found = candidates(
        queries=queries,
        keys=keys,
        negatives=negatives,
        ids=ids,
        key_ids=key_ids,
        negative_ids=negative_ids,
    )
    positive = found.positive.detach()[:, None]
    most = positive + margin if rule == "margin" else share * positive
    kept = found.negative & ~is_nearer(found.similarity.detach(), most)
    some = kept.any(1)
    differences = (found.similarity - found.positive[:, None])[some] / temperature
    v = differences.masked_fill(~kept[some], -torch.inf).logsumexp(1)
    return torch.logaddexp(v, torch.zeros_like(v)).sum() / len(queries)
