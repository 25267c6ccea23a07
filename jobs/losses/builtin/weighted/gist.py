"""InfoNCE without the candidates that a frozen guide finds nearer than the positive, GISTEmbed, Solatorio 2024
(arXiv:2402.16829): most likely positives that nobody labelled. `loss.guide` names the guide."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from jobs.losses.builtin.weighted._dense import candidates, is_nearer


def gist(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    guide_queries: Tensor,
    guide_keys: Tensor,
    guide_negatives: Tensor | None,
    temperature: float | Tensor,
    rule: Literal["margin", "share"] = "margin",
    margin: float = 0.0,
    share: Annotated[float, Field(gt=0)] = 0.95,
    own_side: bool = True,
) -> Tensor:
    """Average InfoNCE over anchors, without each candidate j of which g_ij > g_ii + margin or, by the other rule,
    g_ij > share g_ii, g the guide's cosine, by more than rounding. Candidates are keys and hard negatives and, as
    published (own_side), the other anchors, and the other keys beside the anchor's own. The positive is never left out;
    an anchor without negatives counts 0."""
    texts = {"ids": ids, "key_ids": key_ids, "negative_ids": negative_ids}
    seen = candidates(queries=queries, keys=keys, negatives=negatives, **texts)
    guided = candidates(queries=guide_queries, keys=guide_keys, negatives=guide_negatives, **texts)
    bound = guided.positive[:, None]
    most = bound + margin if rule == "margin" else share * bound
    parts = [(seen.similarity, seen.negative & ~is_nearer(guided.similarity, most))]
    for rows, guide_rows in ((queries, guide_queries), (keys, guide_keys)) if own_side else ():
        of_others = seen.negative[:, : len(queries)]
        parts.append((rows @ rows.T, of_others & ~is_nearer(guide_rows @ guide_rows.T, most)))
    kept = torch.cat([allowed for _, allowed in parts], 1)
    some = kept.any(1)
    similarity = torch.cat([values for values, _ in parts], 1)[some]
    differences = (similarity - seen.positive[some, None]) / temperature
    v = differences.masked_fill(~kept[some], -torch.inf).logsumexp(1)
    return torch.logaddexp(v, torch.zeros_like(v)).sum() / len(queries)
