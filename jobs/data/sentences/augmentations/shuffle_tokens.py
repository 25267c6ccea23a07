"""A sentence whose tokens stand in a random order, as in ConSERT, Yan et al. 2021 (arXiv:2105.11741): for an encoder
whose attention knows places by position embeddings alone, the same as to shuffle the positions."""

from __future__ import annotations

from torch import Tensor

from jobs.data.sentences.augmentations._choosing import keyed, places


def shuffle_tokens(tokens: Tensor, words: Tensor, *, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
    """Permute the tokens of each row; special ones, and a prompt, stay where they are."""
    free = places(words)
    order = keyed(free, seed=seed, step=step, pairs=pairs, view=view).argsort(1)
    # Where the token stands, among all of the row, that is n-th of those that move.
    stands = (free < 0).long().argsort(dim=1, stable=True)
    moved = tokens.gather(1, stands.gather(1, order).gather(1, free.clamp(min=0)))
    return moved.where(free >= 0, tokens)
