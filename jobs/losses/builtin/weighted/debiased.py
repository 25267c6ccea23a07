"""Debiased InfoNCE, Chuang et al. 2020 (arXiv:2007.00224): a share of the negatives are positives in truth, and are
taken out of the sum over them."""

from __future__ import annotations

from torch import Tensor

from jobs.losses.builtin.weighted.hardness_weighted import hardness_weighted


def debiased(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    temperature: float | Tensor,
    class_prior: float = 0.1,
) -> Tensor:
    """Compute `hardness_weighted` with equal weights."""
    return hardness_weighted(
        queries=queries,
        keys=keys,
        negatives=negatives,
        ids=ids,
        key_ids=key_ids,
        negative_ids=negative_ids,
        temperature=temperature,
        beta=0.0,
        class_prior=class_prior,
    )
