"""Tokens: a WordPiece vocabulary trained on the data, and the token ids of a column, made once and kept compactly."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.data.batches import Inputs
from jobs.data.sentences.pools import flat_texts
from jobs.data.sources import Rows
from jobs.models.pretrained.tokenizer import Tokenizer, prompt_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece

Tokens: TypeAlias = NDArray[np.uint16 | np.uint32]
"""Ids of tokens, [c, width], 0 beyond a row's end."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_ROWS = 100_000
"""A vocabulary is trained on at most so many rows, evenly spaced: counting words is what takes the time."""

TOKENS_MB = 256
"""What is kept of texts that judge, of each tokenizer and in each process."""

_ENTRY = 300
"""Bytes of a text that is kept, beside its characters and its tokens."""

_BATCH = 1000
_WIDTH = 64
"""Tokens that there is room for at first."""


@functools.lru_cache(maxsize=4)
def trained_tokenizer(rows: Rows, size: int) -> Tokenizer:
    """Train a fast tokenizer (transformers) of lower-cased WordPieces on the text columns of `rows`.

    The same rows give the same vocabulary in every process. The trainer of `tokenizers` alone does not: it numbers the
    `##x` pieces in the order of a randomly seeded hash map, and equally frequent merges go by those numbers. Here those
    pieces are found first and handed over in order, as if they were special tokens.
    """
    from tokenizers import models, processors
    from transformers import PreTrainedTokenizerFast

    step = -(-len(rows) // VOCABULARY_ROWS)
    columns = map(flat_texts, rows.table.columns)
    texts = [text for column in columns for text in texts_of(column, range(0, len(column), step))]
    words = sorted({word for text in texts for word in text.split(" ")})
    single = _trained([" ".join(words[i : i + 50]) for i in range(0, len(words), 50)], 1, list(SPECIAL))
    inner = sorted(piece for piece in single if piece.startswith("##") and len(piece) == 3)
    pieces = _trained(texts, size, [*SPECIAL, *inner])

    inside = _empty(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token=SPECIAL[1]))
    first, last = pieces.index("[CLS]"), pieces.index("[SEP]")
    inside.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    make = cast("Callable[..., Tokenizer]", PreTrainedTokenizerFast)  # whose constructor has no types
    return make(tokenizer_object=inside, model_input_names=["input_ids", "attention_mask"], **names)


def lower_casing(tokenizer: Tokenizer) -> Tokenizer:
    """Let a fast tokenizer lower-case a text before whatever else it does to it. Raises ValueError for a slow one."""
    from tokenizers import normalizers

    inside: Backend | None = getattr(tokenizer, "backend_tokenizer", None)
    if inside is None:
        raise ValueError("its folder asks for lower case, which its slow tokenizer cannot add; save it as a fast one")
    then = [] if inside.normalizer is None else [inside.normalizer]
    inside.normalizer = normalizers.Sequence([normalizers.Lowercase(), *then])
    return tokenizer


def texts_of(column: pa.ChunkedArray, rows: Iterable[int]) -> list[str]:
    """Read the texts of some rows, one by one: Arrow's `take` may join all chunks of a column into a copy first."""
    return [column[int(row)].as_py() for row in rows]


def _trained(texts: list[str], size: int, special: list[str]) -> list[str]:
    """Train a vocabulary; return it in the order of its ids."""
    from tokenizers import models, trainers

    tokenizer = _empty(models.WordPiece(unk_token=SPECIAL[1]))
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    batches: Iterator[list[str]] = (texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH))
    tokenizer.train_from_iterator(batches, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _empty(model: WordPiece) -> Backend:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def tokenised(tokenizer: Tokenizer, texts: Iterable[str], *, max_tokens: int, prompt: str = "") -> list[list[int]]:
    """Encode each text behind the prompt as token ids, at most `max_tokens` of them, special ones included."""
    encoded = tokenizer([prompt + text for text in texts], truncation=True, max_length=max_tokens)
    return encoded["input_ids"]


class KnownTokens:
    """Token ids of texts that are asked for again and again, as those of a judged set are at every evaluation: kept up
    to a bound, beyond which a text is encoded each time. What is given is what `tokenised` gives, text by text."""

    def __init__(self, tokenizer: Tokenizer, *, bound: int) -> None:
        """Keep nothing yet. bound: bytes that all of it may take, texts included."""
        self._tokenizer, self._bound = tokenizer, bound
        self._known: dict[tuple[int, str], dict[str, NDArray[np.int32]]] = {}
        self.held = 0
        """Bytes that are kept, at most."""

    def __call__(self, texts: Sequence[str], *, max_tokens: int, prompt: str = "") -> list[NDArray[np.int32]]:
        """Return the ids of each text behind the prompt, at most `max_tokens` of them, special ones included."""
        known = self._known.setdefault((max_tokens, prompt), {})
        missing = [*dict.fromkeys(text for text in texts if text not in known)]
        beyond: dict[str, NDArray[np.int32]] = {}
        for start in range(0, len(missing), _BATCH):
            some = missing[start : start + _BATCH]
            for text, ids in zip(
                some, tokenised(self._tokenizer, some, max_tokens=max_tokens, prompt=prompt), strict=True
            ):
                size = _ENTRY + 4 * len(text) + 4 * len(ids)
                has_room = self.held + size <= self._bound
                self.held += size if has_room else 0
                (known if has_room else beyond)[text] = np.array(ids, np.int32)
        return [known[text] if text in known else beyond[text] for text in texts]


@functools.lru_cache(maxsize=2)
def known_tokens(tokenizer: Tokenizer) -> KnownTokens:
    """Return what this process keeps of the texts that it has encoded by a tokenizer: whoever judges next, a further
    setting of the same encoder in a sweep, finds it there."""
    return KnownTokens(tokenizer, bound=TOKENS_MB * 2**20)


def word_numbers(tokenizer: Tokenizer, texts: Iterable[str], *, max_tokens: int, prompt: str = "") -> list[list[int]]:
    """Number the words that tokens are of, token by token as `tokenised` gives them: from 1 in each text, and 0 for
    special tokens and those of the prompt. Of a slow tokenizer, which knows no words, each token is one."""
    encoded = tokenizer([prompt + text for text in texts], truncation=True, max_length=max_tokens)
    skipped = prompt_tokens(tokenizer, prompt, max_tokens=max_tokens)
    ends = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    numbered = []
    for row, ids in enumerate(encoded["input_ids"]):
        words: list[int | None] = encoded.word_ids(row) if tokenizer.is_fast else [*range(len(ids))]
        free = [at >= skipped and word is not None and ids[at] not in ends for at, word in enumerate(words)]
        order = {word: number for number, word in enumerate(dict.fromkeys(itertools.compress(words, free)), start=1)}
        numbered.append([order[word] if is_free else 0 for word, is_free in zip(words, free, strict=True)])
    return numbered


class TokenColumn:
    """Token ids of a text column. A row is tokenised when first asked for, by the rank that needs it, and kept.

    encode: what a row is made into, `tokenised` or `word_numbers`.
    """

    def __init__(
        self,
        column: pa.ChunkedArray,
        tokenizer: Tokenizer,
        max_tokens: int,
        prompt: str = "",
        encode: Callable[..., list[list[int]]] = tokenised,
    ) -> None:
        self._column, self._tokenizer, self._max_tokens, self._prompt = column, tokenizer, max_tokens, prompt
        self._encode = encode
        # An added token may have an id far above their number.
        highest = max(tokenizer.get_vocab().values(), default=0)
        kind = np.uint16 if max(highest, len(tokenizer) - 1) < 2**16 else np.uint32
        # Memory that nobody writes to is not taken, so a rank pays for the rows it visits.
        self._ids: Tokens = np.zeros((len(column), min(max_tokens, _WIDTH)), kind)
        self._lengths = np.zeros(len(column), np.uint32)

    def __getitem__(self, rows: NDArray[np.int64]) -> tuple[Tokens, NDArray[np.int64]]:
        """Return ids [c, at least the longest], 0 beyond a row's end, and lengths [c]."""
        missing = np.unique(rows[self._lengths[rows] == 0])
        if len(missing):
            texts = texts_of(self._column, missing)
            encoded = self._encode(self._tokenizer, texts, max_tokens=self._max_tokens, prompt=self._prompt)
            self._widen(max(map(len, encoded)))
            for row, ids in zip(missing, encoded, strict=True):
                self._ids[row, : len(ids)] = ids
                self._lengths[row] = len(ids)
        return self._ids[rows], self._lengths[rows].astype(np.int64)

    def _widen(self, width: int) -> None:
        """Have room for rows of `width`: few texts are as long as an encoder may take, which can be many thousands."""
        if width <= self._ids.shape[1]:
            return
        rows, held = np.flatnonzero(self._lengths), self._ids
        self._ids = np.zeros((len(held), min(self._max_tokens, max(width, 2 * held.shape[1]))), held.dtype)
        self._ids[rows, : held.shape[1]] = held[rows]


def padded(ids: Tokens, lengths: NDArray[np.int64], pad: int) -> Inputs:
    """Build input_ids and attention_mask, int64 [c, longest]."""
    import torch

    longest = int(lengths.max(initial=1))
    mask = np.arange(longest) < lengths[:, None]
    filled = np.where(mask, ids[:, :longest].astype(np.int64), pad)
    return {"input_ids": torch.from_numpy(filled), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def stacked(parts: list[tuple[Tokens, NDArray[np.int64]]], pad: int) -> Inputs:
    """Stack columns of tokens side by side, [c * len(parts), longest]: all of row 0 first."""
    width = max(ids.shape[1] for ids, _ in parts)
    ids = np.stack([np.pad(ids, ((0, 0), (0, width - ids.shape[1]))) for ids, _ in parts], axis=1)
    return padded(ids.reshape(-1, ids.shape[-1]), np.stack([n for _, n in parts], axis=1).reshape(-1), pad)
