"""Distillation of similarities, Su 2021 (kexue 8541), where the student of RoFormer-Sim learns so: the cosines of the
batch are to be those of a frozen teacher, which `loss.guide` names."""

from __future__ import annotations

import torch
from torch import Tensor


def distillation(
    *,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    guide_queries: Tensor,
    guide_keys: Tensor,
    guide_negatives: Tensor | None,
    own_side: bool = False,
) -> Tensor:
    """Average (s_ij - g_ij)^2, s the student's cosines and g the teacher's, over every query with every key and every
    hard negative of the global batch. own_side: over every two of all these sentences, in place of that."""
    differences = _cosines(queries, keys, negatives, own_side) - _cosines(
        guide_queries, guide_keys, guide_negatives, own_side
    )
    return differences.square().mean()


def _cosines(queries: Tensor, keys: Tensor, negatives: Tensor | None, own_side: bool) -> Tensor:
    others = torch.cat([keys, *([] if negatives is None else [negatives.flatten(0, 1)])])
    if own_side:
        queries = others = torch.cat([queries, others])
    return queries @ others.T
