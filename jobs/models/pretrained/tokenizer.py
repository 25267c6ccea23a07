"""What is used of a tokenizer of transformers, whose own classes have no types for most of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tokenizer(Protocol):
    """A tokenizer, fast or slow, with a token to pad with."""

    @property
    def pad_token_id(self) -> int:
        """Id of what a sentence is padded with."""

    def __call__(self, text: list[str], *, truncation: bool, max_length: int) -> Mapping[str, list[list[int]]]:
        """Return the ids of the tokens of each text, as `input_ids`."""

    def get_vocab(self) -> dict[str, int]:
        """Return the vocabulary, token -> id."""

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...
