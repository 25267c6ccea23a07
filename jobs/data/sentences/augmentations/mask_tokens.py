"""A sentence of which some tokens are the mask token, a rival of dropout in Gao et al. 2021 (arXiv:2104.08821)."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.data.sentences.augmentations._choosing import chosen, counts, places, share_of


def mask_tokens(
    tokens: Tensor,
    words: Tensor,
    mask_token: int | None,
    *,
    seed: int,
    step: int,
    pairs: Tensor,
    view: int,
    share: float = 0.15,
) -> Tensor:
    """Put the mask token in place of a share of the tokens, halves rounded up."""
    if mask_token is None:
        raise ValueError(
            "augment.name = 'mask_tokens' needs a mask token, which the encoder's tokenizer has none of; use "
            "'delete_words', or the encoder of a masked language model"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"augment.options.share = {share} is what a view masks: from 0 to 1, such as 0.15")
    free = places(words)
    many = share_of(counts(free), share)
    return torch.where(chosen(free, many, seed=seed, step=step, pairs=pairs, view=view), mask_token, tokens)
