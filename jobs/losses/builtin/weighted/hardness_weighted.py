"""InfoNCE with negatives weighed by how near they are, Robinson et al. 2021 (arXiv:2010.04592), and freed of a share of
them that are positives, Chuang et al. 2020 (arXiv:2007.00224)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jobs.losses.builtin.weighted._dense import candidates


def hardness_weighted(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    temperature: float | Tensor,
    beta: float = 1.0,
    class_prior: float = 0.0,
) -> Tensor:
    """Average log(1 + N / exp l_ii) over anchors, N the sum over negatives of w_j exp l_ij.

    w_j is proportional to exp(beta s_ij), s the cosine, has mean 1 over an anchor's negatives, and takes no gradient.
    class_prior, the share tau of negatives that are positives in truth, takes them out: N becomes
    (N - tau n exp l_ii) / (1 - tau), n the number of negatives, and at least n exp(-1 / temperature). An anchor without
    negatives counts 0.
    """
    if not 0 <= class_prior < 1:
        raise ValueError(f"loss.options.class_prior = {class_prior} is a share of the negatives: from 0 to below 1")
    found = candidates(
        queries=queries,
        keys=keys,
        negatives=negatives,
        ids=ids,
        key_ids=key_ids,
        negative_ids=negative_ids,
    )
    logits, some = found.logits(temperature)[found.some], found.some
    allowed = found.negative[some]
    count = allowed.sum(1).to(logits.dtype)
    hardness = (beta * found.similarity.detach()[some]).masked_fill(~allowed, -torch.inf)
    log_weights = (hardness.log_softmax(1) + count[:, None].log()).masked_fill(~allowed, 0.0)
    v = (logits + log_weights).logsumexp(1)
    if class_prior:
        # Relative to exp l_ii, as v is: log(exp v - tau n) without exp v, which is too large for cold temperatures; but
        # no less than the least that it can be.
        least = count.log() - (1 + found.positive[some]) / temperature
        taken = (count * class_prior).log() - v
        left = v + (-torch.expm1(taken.clamp(max=-torch.finfo(v.dtype).eps))).log() - math.log(1 - class_prior)
        v = torch.maximum(left.masked_fill(taken >= 0, -torch.inf), least.to(v.dtype))
    return torch.logaddexp(v, torch.zeros_like(v)).sum() / len(queries)
