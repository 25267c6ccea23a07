"""The sentence job's training data: single sentences, pairs, pairs with hard negatives.

A single sentence is paired with itself. The two views are told apart by dropout alone (SimCSE, Gao et al. 2021,
arXiv:2104.08821), so they are the same tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config import Augment, JobConfig
from jobs.core.ids import ABSENT
from jobs.core.paths import is_built, looked_in
from jobs.core.provenance import Stamp, stamp
from jobs.data.batches import FIRST, Draw, Ids, Views
from jobs.data.faults import DataError, short
from jobs.data.sentences.augmented import TokenViews
from jobs.data.sentences.columns import scored_columns, train_columns
from jobs.data.sentences.duplicates import ids_of_texts, text_numbers
from jobs.data.sentences.pools import EMPTY, Pool, corpus_of, pool_of
from jobs.data.sentences.scored import train_scores
from jobs.data.sentences.texts import as_text, is_list_of_texts
from jobs.data.sentences.tokens import (
    TokenColumn,
    Tokens,
    lower_casing,
    padded,
    stacked,
    trained_tokenizer,
    word_numbers,
)
from jobs.data.sources import Choose, Rows, groups_of, read, sources_of
from jobs.models.errors import ModelError
from jobs.models.pretrained.folder import EncoderError, folder_of, tokenizer_files
from jobs.models.pretrained.tokenizer import Tokenizer
from jobs.models.reading import reading

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Column:
    """Texts of one side of the pairs: a text a row, or some to draw from."""

    texts: pa.ChunkedArray
    tokens: TokenColumn
    pool: Pool | None = None
    """What each row chooses from; None: its own text."""

    drawn: int = 1
    """Texts that are drawn for each pair."""


@dataclass(frozen=True)
class SentenceExamples:
    """Sentences to train on."""

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    columns: tuple[Column, ...]
    """The anchor; then the positive, if pairs are given; then the hard negatives."""

    scored: NDArray[np.float64] | None = None
    """People's scores of the pairs, [n]; None of data without."""

    augmentation: TokenViews | None = None
    """Makes both views; None where they are the same tokens."""

    source: str | None = None
    """Column that says where a row is from; None: its file."""

    label: str | None = None
    """Column of labels."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hard_negatives(self) -> int:
        """Hard negatives of each pair."""
        return sum(column.drawn for column in self.columns[2:])

    @property
    def lacks_some(self) -> bool:
        """Whether a pair may have fewer hard negatives than others."""
        return any(column.pool is not None and column.drawn for column in self.columns[2:])

    def views(self, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64]) -> Views:
        """Return tokens of these data rows, padded to the longest of each side. Without an augmentation nothing but
        what is drawn of lists is random: dropout is the view. The place of a hard negative that is not there has the
        anchor's tokens."""
        import torch

        rows, pad = np.asarray(rows, np.int64), self.tokenizer.pad_token_id
        (anchor, own), *others = self.places(rows, Draw(seed, step, pairs))
        key, at = others[0] if others else (anchor, own)
        if self.augmentation is not None:
            queries, keys = (
                self.augmentation.view(column.tokens, places, seed=seed, step=step, pairs=pairs, view=view)
                for view, (column, places) in enumerate(((anchor, own), (key, at)))
            )
        else:
            queries = padded(*anchor.tokens[own], pad)
            keys = padded(*key.tokens[at], pad) if others else queries
        negatives = [_in_place_of_none(column.tokens, places, anchor.tokens, own) for column, places in others[1:]]
        if not negatives:
            return Views(queries, keys)
        absent = np.stack([places == EMPTY for _, places in others[1:]], axis=1).reshape(-1)
        return Views(queries, keys, stacked(negatives, pad), torch.from_numpy(absent) if absent.any() else None)

    def with_mined(self, pool: Pool) -> SentenceExamples:
        """Return these examples, whose last column is of mined hard negatives, with other ones."""
        *others, mined = self.columns
        return dataclasses.replace(self, columns=(*others, dataclasses.replace(mined, pool=pool)))

    def scores(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Take the scores of these rows, [c]; None of data without."""
        return None if self.scored is None else self.scored[rows]

    def facts(self, name: str) -> NDArray[np.int64]:
        """Give what a sampler may know of all rows; see `Examples.facts`."""
        if name == "ids":
            return text_numbers(self.rows)
        if name == "sources":
            return sources_of(self.rows, self.source)
        if self.label is None:
            raise self.rows.fault("has no labels, which data.sampler asks for; name their column in data.label")
        return groups_of(self.rows, self.label)

    def lengths(self, rows: NDArray[np.int64], draw: Draw = FIRST) -> NDArray[np.int64]:
        """Count the tokens of the longest sentence of each row, hard negatives included, [c]."""
        (anchor, own), *others = self.places(rows, draw)
        sides = [(anchor.tokens[own]), *(_in_place_of_none(c.tokens, at, anchor.tokens, own) for c, at in others)]
        longest: NDArray[np.int64] = np.max([lengths for _, lengths in sides], axis=0)
        return longest

    def pair_ids(self, rows: NDArray[np.int64]) -> Tensor:
        """Compute ids, int64 [c]: equal for equal anchors."""
        return self.ids(rows).pair_ids

    def ids(self, rows: NDArray[np.int64], draw: Draw = FIRST) -> Ids:
        """Compute the ids of what these rows say; the two views of a single sentence say the same. ABSENT where a hard
        negative is not there."""
        import torch

        sides = [_said(column.texts, places) for column, places in self.places(rows, draw)]
        return Ids(sides[0], sides[1] if len(sides) > 1 else None, torch.stack(sides[2:], 1) if sides[2:] else None)

    def places(self, rows: NDArray[np.int64], draw: Draw) -> list[tuple[Column, NDArray[np.int64]]]:
        """Return for each side the column and where each pair's text is in it, [c]; EMPTY where there is none."""
        rows = np.asarray(rows, np.int64)
        places: list[tuple[Column, NDArray[np.int64]]] = []
        for side, column in enumerate(self.columns):
            if column.pool is None:
                places.append((column, rows))
                continue
            pairs = np.arange(len(rows)) if draw.pairs is None else draw.pairs
            drawn = column.pool.draw(rows, column.drawn, seed=draw.seed, step=draw.step, pairs=pairs, side=side)
            places += [(column, drawn[:, number]) for number in range(column.drawn)]
        return places


def _in_place_of_none(
    column: TokenColumn, places: NDArray[np.int64], anchors: TokenColumn, rows: NDArray[np.int64]
) -> tuple[Tokens, NDArray[np.int64]]:
    """Return tokens and lengths of texts, and the anchor's where there is none."""
    none = places == EMPTY
    if not none.any():
        return column[places]
    if none.all():
        return anchors[rows]
    (ids, lengths), (own, ends) = column[np.where(none, places[~none][0], places)], anchors[rows]
    width = max(ids.shape[1], own.shape[1])
    ids, own = (np.pad(tokens, ((0, 0), (0, width - tokens.shape[1]))) for tokens in (ids, own))
    return np.where(none[:, None], own, ids), np.where(none, ends, lengths)


def _said(texts: pa.ChunkedArray, places: NDArray[np.int64]) -> Tensor:
    """Compute the ids of texts, int64 [c]; ABSENT where there is none."""
    import torch

    there = np.flatnonzero(places != EMPTY)
    ids = torch.full((len(places),), ABSENT)
    ids[torch.from_numpy(there)] = ids_of_texts(texts, places[there])
    return ids


def sentence_rows(job: JobConfig) -> Rows:
    """Read the text columns of data.train, and check that each row of them is text."""
    wanted = None if job.data.columns is None else tuple(job.data.columns)
    rows = read(job.data.train, _choose(job.data.scores), wanted)
    names = tuple(rows.table.column_names)
    if job.data.hard_negatives and len(names) < 3:
        raise rows.fault(
            f"has no hard negatives that data.hard_negatives = {job.data.hard_negatives} could be drawn of: it is read "
            f"for {list(names)}; name anchor, positives and hard negatives in data.columns"
        )
    return as_text(rows, names, drawn=job.data.hard_negatives is not None)


@functools.cache
def _choose(scores: str | None) -> Choose:
    """Choose columns of training data of which one may be known to score the pairs; the same object for the same."""
    return train_columns if scores is None else functools.partial(scored_columns, scores)


def tokenizer_for(job: JobConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of job.model: WordPieces trained on data.train for `bert`, else the model's own."""
    if is_built(job.model.name):
        return cast("PreTrainedTokenizerBase", trained_tokenizer(sentence_rows(job), job.model.vocabulary))
    name = str(job.model.name)
    try:
        lower, folder = reading(job).lower, folder_of(name)
        return _pretrained(folder, tuple(stamp(path) for path in tokenizer_files(folder)), lower)
    except ModelError:  # it says what to write
        raise
    except Exception as error:  # its files may hold anything, and its class may raise anything
        where = f", looked for{looked_in(name)}" if looked_in(name) else ""
        reason = error.reason if isinstance(error, EncoderError) else short(error)
        raise DataError(
            f"no tokenizer can be loaded ({reason}); model.name must be a folder with one{where}, a Hub name, or "
            "'bert'",
            file=name,
        ) from error


@functools.lru_cache(maxsize=4)
def _pretrained(folder: Path, _stamps: tuple[Stamp, ...], lower: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder: one object while its files are these, so that what is derived from it is kept."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        # Attention masks what is padded, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise ValueError("it has no token to pad with, nor one for the end or the unknown; set its pad_token")
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        # transformers makes one without words where the files of one are missing.
        raise ValueError("it has no word beside its special tokens, as its files are missing or empty")
    return cast("PreTrainedTokenizerBase", lower_casing(tokenizer) if lower else tokenizer)


def sentence_examples(job: JobConfig, tokenizer: Tokenizer | None = None) -> SentenceExamples:
    """Read the sentences that `job` trains on."""
    read = reading(job)
    tokenizer = tokenizer_for(job) if tokenizer is None else tokenizer
    examples = _examples(
        sentence_rows(job), tokenizer, read.max_tokens, read.prompt,
        hard_negatives=job.data.hard_negatives, mined=job.mine.negatives,
    )  # fmt: skip
    if job.augments_tokens:
        examples = _augmented(examples, job.augment, read.max_tokens, read.prompt)
    scored = None if job.data.scores is None else train_scores(job.data.train, job.data.scores)
    return dataclasses.replace(examples, scored=scored, source=job.data.source, label=job.data.label)


def _augmented(examples: SentenceExamples, augment: Augment, max_tokens: int, prompt: str) -> SentenceExamples:
    """Let an augmentation make the views of these examples."""
    tokenizer = examples.tokenizer
    words = _words(examples.columns[:2], cast("Tokenizer", tokenizer), max_tokens, prompt)
    made = TokenViews(augment, tokenizer.pad_token_id, tokenizer.mask_token_id, words)
    return dataclasses.replace(examples, augmentation=made)


@functools.lru_cache(maxsize=4)
def _words(sides: tuple[Column, ...], tokenizer: Tokenizer, max_tokens: int, prompt: str) -> tuple[TokenColumn, ...]:
    return tuple(TokenColumn(side.texts, tokenizer, max_tokens, prompt, word_numbers) for side in sides)


@functools.lru_cache(maxsize=4)
def _examples(
    rows: Rows, tokenizer: Tokenizer, max_tokens: int, prompt: str, *, hard_negatives: int | None, mined: int
) -> SentenceExamples:
    """Make the columns of all sides. hard_negatives: how many are drawn of the third and further columns; None: they
    are a side each. mined: how many are drawn of what is mined, in a column that is the last and begins with none."""
    names, table = tuple(rows.table.column_names), rows.table

    def drawn_of(chosen: tuple[str, ...], count: int) -> Column:
        pool = pool_of(rows, chosen)
        return Column(pool.texts, TokenColumn(pool.texts, tokenizer, max_tokens, prompt), pool, count)

    def own(name: str) -> Column:
        return Column(table[name], TokenColumn(table[name], tokenizer, max_tokens, prompt))

    columns = [drawn_of((name,), 1) if is_list_of_texts(table[name].type) else own(name) for name in names[:2]]
    if hard_negatives is None:
        columns += [own(name) for name in names[2:]]
    elif hard_negatives and names[2:]:
        columns.append(drawn_of(names[2:], hard_negatives))
    if mined:
        corpus = corpus_of(rows)
        none = Pool(corpus.texts, np.empty(0, np.int64), np.zeros(len(rows) + 1, np.int64))
        texts = Column(corpus.texts, TokenColumn(corpus.texts, tokenizer, max_tokens, prompt), none, mined)
        columns += [*columns[:1] * (len(columns) == 1), texts]  # a single sentence is its own positive
    return SentenceExamples(rows, cast("PreTrainedTokenizerBase", tokenizer), tuple(columns))
