"""A sentence without one of its words, drawn at random, as Gao et al. 2021 (arXiv:2104.08821) compare with dropout."""

from __future__ import annotations

from torch import Tensor

from jobs.data.sentences.augmentations._choosing import chosen, counts, without


def delete_word(
    tokens: Tensor, mask: Tensor, words: Tensor, *, seed: int, step: int, pairs: Tensor, view: int
) -> tuple[Tensor, Tensor]:
    """Leave out one word of each sentence that has two or more."""
    one = (counts(words) > 1).long()
    return without(tokens, mask, chosen(words, one, seed=seed, step=step, pairs=pairs, view=view))
