"""A sentence without some of its words, drawn at random, as Gao et al. 2021 (arXiv:2104.08821) compare with dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.data.sentences.augmentations._choosing import chosen, counts, share_of, without


def delete_words(
    tokens: Tensor,
    mask: Tensor,
    words: Tensor,
    *,
    seed: int,
    step: int,
    pairs: Tensor,
    view: int,
    share: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Leave out a share of the words, halves rounded up; one stays at least."""
    if not 0 <= share < 1:
        raise ValueError(f"augment.options.share = {share} is what a view leaves out: from 0 to below 1, such as 0.1")
    many = counts(words)
    fewer = torch.minimum(share_of(many, share), (many - 1).clamp(min=0))
    return without(tokens, mask, chosen(words, fewer, seed=seed, step=step, pairs=pairs, view=view))
