"""What is used of a tokenizer of transformers, whose own classes have no types for most of it. No torch."""

from __future__ import annotations

from typing import Protocol


class Encoded(Protocol):
    """Tokens of texts."""

    def __getitem__(self, name: str) -> list[list[int]]:
        """Return the ids of the tokens of each text, as `input_ids`."""

    def word_ids(self, row: int) -> list[int | None]:
        """Return the number of the word of each token of a text; None for special tokens. Of a fast tokenizer alone."""


class Tokenizer(Protocol):
    """A tokenizer, fast or slow, with a token to pad with."""

    @property
    def is_fast(self) -> bool:
        """Whether it knows words."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of special tokens, that of the unknown among them."""

    @property
    def unk_token_id(self) -> int | None:
        """Id of the token for what is unknown."""

    @property
    def pad_token_id(self) -> int:
        """Id of what a sentence is padded with."""

    def __call__(self, text: list[str], *, truncation: bool, max_length: int) -> Encoded:
        """Return the ids of the tokens of each text, as `input_ids`."""

    def get_vocab(self) -> dict[str, int]:
        """Return the vocabulary, token -> id."""

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...


def prompt_tokens(tokenizer: Tokenizer, prompt: str, *, max_tokens: int) -> int:
    """Count the tokens of a prompt, with special ones before it, as sentence-transformers does."""
    if not prompt:
        return 0
    ids = tokenizer([prompt], truncation=True, max_length=max_tokens)["input_ids"][0]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)
