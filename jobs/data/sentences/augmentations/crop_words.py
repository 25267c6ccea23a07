"""A random span of a sentence's words, as Gao et al. 2021 (arXiv:2104.08821) compare with dropout."""

from __future__ import annotations

from torch import Tensor

from jobs.core.randomness import AUGMENT, uniform
from jobs.data.sentences.augmentations._choosing import counts, share_of, without


def crop_words(
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
    """Keep consecutive words, all but a share of them, halves rounded up, and one at least; where they begin is drawn
    evenly."""
    if not 0 <= share < 1:
        raise ValueError(f"augment.options.share = {share} is what a view leaves out: from 0 to below 1, such as 0.1")
    many = counts(words)
    kept = (many - share_of(many, share)).clamp(min=1)
    start = (uniform(AUGMENT, seed, step, pairs, view).double() * (many - kept + 1)).floor().long()
    is_outside = (words < start[:, None]) | (words >= (start + kept)[:, None])
    return without(tokens, mask, (words >= 0) & is_outside)
