"""Augmentations of sentences again, apart from jobs/data/sentences/augmentations: lists of words, one by one."""

from __future__ import annotations

import math
from collections.abc import Callable

from jobs.core.randomness import AUGMENT, mix, uniform

Word = list[int]
"""Tokens of a word."""


class Draw:
    """The random numbers of one view."""

    def __init__(self, seed: int, step: int, pair: int, view: int) -> None:
        self.keys = (AUGMENT, seed, step, pair, view)

    def order(self, many: int) -> list[int]:
        """The numbers below `many` in a random order."""
        return sorted(range(many), key=lambda number: int(mix(*self.keys, number)))

    def below(self, many: int) -> int:
        """A number below `many`."""
        return math.floor(float(uniform(*self.keys)) * many)


def _half_up(x: float) -> int:
    return math.floor(x + 0.5)


def _flat(words: list[Word]) -> list[int | None]:
    return [token for word in words for token in word]


def none(words: list[Word], draw: Draw) -> list[int | None]:
    return _flat(words)


def crop_words(words: list[Word], draw: Draw, share: float = 0.1) -> list[int | None]:
    kept = max(1, len(words) - _half_up(share * len(words)))
    start = draw.below(len(words) - kept + 1)
    return _flat(words[start : start + kept])


def _leaving_out(words: list[Word], draw: Draw, many: int) -> list[int | None]:
    gone = draw.order(len(words))[:many]
    return _flat([word for number, word in enumerate(words) if number not in gone])


def delete_words(words: list[Word], draw: Draw, share: float = 0.1) -> list[int | None]:
    return _leaving_out(words, draw, min(_half_up(share * len(words)), len(words) - 1))


def delete_word(words: list[Word], draw: Draw) -> list[int | None]:
    return _leaving_out(words, draw, 1 if len(words) > 1 else 0)


MASK = 4


def mask_tokens(words: list[Word], draw: Draw, share: float = 0.15) -> list[int | None]:
    tokens = _flat(words)
    for place in draw.order(len(tokens))[: _half_up(share * len(tokens))]:
        tokens[place] = MASK
    return tokens


def shuffle_tokens(words: list[Word], draw: Draw) -> list[int | None]:
    tokens = _flat(words)
    return [tokens[place] for place in draw.order(len(tokens))]


def cut_tokens(words: list[Word], draw: Draw, share: float = 0.15) -> list[int | None]:
    """None where a token is erased."""
    tokens = _flat(words)
    for place in draw.order(len(tokens))[: min(_half_up(share * len(tokens)), len(tokens) - 1)]:
        tokens[place] = None
    return tokens


ORACLES: dict[str, Callable[..., list[int | None]]] = {
    function.__name__: function
    for function in (none, crop_words, delete_words, delete_word, mask_tokens, shuffle_tokens, cut_tokens)
}
"""By the name of the augmentation."""
