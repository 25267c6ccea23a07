"""Token cut-off, Shen et al. 2020 (arXiv:2009.13818), as in ConSERT, Yan et al. 2021 (arXiv:2105.11741): some tokens
are erased, and the others keep their positions."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.data.sentences.augmentations._choosing import chosen, counts, places, share_of


def cut_tokens(
    tokens: Tensor,
    mask: Tensor,
    words: Tensor,
    *,
    seed: int,
    step: int,
    pairs: Tensor,
    view: int,
    share: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """Take a share of the tokens, halves rounded up, out of attention and pooling; one stays at least. (The articles
    make their embeddings 0, so that others still attend to an empty place.)"""
    if not 0 <= share < 1:
        raise ValueError(f"augment.options.share = {share} is what a view cuts: from 0 to below 1, such as 0.15")
    free = places(words)
    many = counts(free)
    fewer = torch.minimum(share_of(many, share), (many - 1).clamp(min=0))
    return tokens, mask * ~chosen(free, fewer, seed=seed, step=step, pairs=pairs, view=view)
