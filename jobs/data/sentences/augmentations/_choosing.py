"""Which words or tokens of a row are chosen, by numbers that are keyed by (seed, step, pair, view)."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.core.randomness import AUGMENT, mix

NEVER = 2**40
"""Above every hash."""


def counts(words: Tensor) -> Tensor:
    """Count the words of each row, int64 [c], of the numbers of its tokens' words [c, L]."""
    return words.max(1).values + 1


def places(words: Tensor) -> Tensor:
    """Number the tokens of each row that a view may change, from 0, [c, L]; -1 for the others: each is a word of its
    own."""
    is_free = words >= 0
    return torch.where(is_free, is_free.cumsum(1) - 1, -1)


def share_of(counted: Tensor, share: float) -> Tensor:
    """Round a share of each count to a whole number, halves up, int64 [c]."""
    return (share * counted.double() + 0.5).floor().long()


def keyed(words: Tensor, *, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
    """Hash the number of every word that a row may have, [c, W]; NEVER beyond its last. No two of a row are equal."""
    numbers = torch.arange(max(int(words.max()) + 1, 1), device=words.device)
    hashes = mix(AUGMENT, seed, step, pairs[:, None], view, numbers)
    return hashes.masked_fill(numbers >= counts(words)[:, None], NEVER)


def chosen(words: Tensor, many: Tensor, *, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
    """Choose `many` [c] of each row's words at random, all tokens of each, bool [c, L]."""
    ranks = keyed(words, seed=seed, step=step, pairs=pairs, view=view).argsort(1).argsort(1)
    return (words >= 0) & (ranks < many[:, None]).gather(1, words.clamp(min=0))


def without(tokens: Tensor, mask: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out tokens, bool [c, L], and close the gaps. Returns tokens and mask of the same shape."""
    order = gone.long().argsort(dim=1, stable=True)
    return tokens.gather(1, order), (mask * ~gone).gather(1, order)
