"""Distillation of similarities, Su 2021 (kexue 8541), where the student of RoFormer-Sim learns so: the cosines of the
batch are to be those of a frozen teacher, which `loss.guide` names."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.core.ids import ABSENT


def distillation(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    negative_ids: Tensor | None,
    guide_queries: Tensor,
    guide_keys: Tensor,
    guide_negatives: Tensor | None,
    own_side: bool = False,
) -> Tensor:
    """Average (s_ij - g_ij)^2, s the student's cosines and g the teacher's, over every query with every key and every
    hard negative of the global batch that is there. own_side: over every two of all these sentences, in place of that.
    """
    student = _cosines(queries, keys, _there(negatives, negative_ids), own_side)
    teacher = _cosines(guide_queries, guide_keys, _there(guide_negatives, negative_ids), own_side)
    return (student - teacher).square().mean()


def _there(negatives: Tensor | None, negative_ids: Tensor | None) -> Tensor | None:
    """Flatten hard negatives [B, H, D] to those that are there."""
    if negatives is None or negative_ids is None:
        return None if negatives is None else negatives.flatten(0, 1)
    return negatives[negative_ids != ABSENT]


def _cosines(queries: Tensor, keys: Tensor, negatives: Tensor | None, own_side: bool) -> Tensor:
    others = torch.cat([keys, *([] if negatives is None else [negatives])])
    if own_side:
        queries = others = torch.cat([queries, others])
    return queries @ others.T
