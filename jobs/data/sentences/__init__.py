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
from numpy.typing import NDArray

from jobs.config import Augment, JobConfig
from jobs.core.paths import is_built, looked_in
from jobs.core.provenance import Stamp, stamp
from jobs.data.batches import Ids, Views
from jobs.data.faults import DataError, short
from jobs.data.sentences.augmented import TokenViews
from jobs.data.sentences.columns import scored_columns, train_columns
from jobs.data.sentences.duplicates import text_ids, text_numbers
from jobs.data.sentences.scored import train_scores
from jobs.data.sentences.texts import as_text
from jobs.data.sentences.tokens import TokenColumn, lower_casing, padded, stacked, trained_tokenizer, word_numbers
from jobs.data.sources import Choose, Rows, groups_of, read, sources_of
from jobs.models.errors import ModelError
from jobs.models.pretrained.folder import EncoderError, folder_of, tokenizer_files
from jobs.models.pretrained.tokenizer import Tokenizer
from jobs.models.reading import reading

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SentenceExamples:
    """Sentences to train on."""

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    columns: tuple[TokenColumn, ...]
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
        return max(len(self.columns) - 2, 0)

    def views(self, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64]) -> Views:
        """Return tokens of these data rows, padded to the longest of each side. Without an augmentation nothing is
        random: dropout is the view."""
        rows, pad = np.asarray(rows, np.int64), self.tokenizer.pad_token_id
        if self.augmentation is not None:
            sides = (self.columns[0], self.columns[min(1, len(self.columns) - 1)])
            queries, keys = (
                self.augmentation.view(column, rows, seed=seed, step=step, pairs=pairs, view=view)
                for view, column in enumerate(sides)
            )
        else:
            queries = padded(*self.columns[0][rows], pad)
            keys = padded(*self.columns[1][rows], pad) if len(self.columns) > 1 else queries
        negatives = stacked([column[rows] for column in self.columns[2:]], pad) if self.hard_negatives else None
        return Views(queries, keys, negatives)

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

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the tokens of the longest sentence of each row, hard negatives included, [c]."""
        longest: NDArray[np.int64] = np.max([column[rows][1] for column in self.columns], axis=0)
        return longest

    def pair_ids(self, rows: NDArray[np.int64]) -> Tensor:
        """Compute ids, int64 [c]: equal for equal anchors."""
        return self.ids(rows).pair_ids

    def ids(self, rows: NDArray[np.int64]) -> Ids:
        """Compute the ids of what these rows say; the two views of a single sentence say the same."""
        return text_ids(self.rows, rows)


def sentence_rows(job: JobConfig) -> Rows:
    """Read the text columns of data.train, and check that each row of them is text."""
    wanted = None if job.data.columns is None else tuple(job.data.columns)
    rows = read(job.data.train, _choose(job.data.scores), wanted)
    return as_text(rows, tuple(rows.table.column_names))


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
    examples = _examples(
        sentence_rows(job), tokenizer_for(job) if tokenizer is None else tokenizer, read.max_tokens, read.prompt
    )
    if job.augments_tokens:
        examples = _augmented(examples, job.augment, read.max_tokens, read.prompt)
    scored = None if job.data.scores is None else train_scores(job.data.train, job.data.scores)
    return dataclasses.replace(examples, scored=scored, source=job.data.source, label=job.data.label)


def _augmented(examples: SentenceExamples, augment: Augment, max_tokens: int, prompt: str) -> SentenceExamples:
    """Let an augmentation make the views of these examples."""
    tokenizer = examples.tokenizer
    words = _words(examples.rows, cast("Tokenizer", tokenizer), max_tokens, prompt)
    made = TokenViews(augment, tokenizer.pad_token_id, tokenizer.mask_token_id, words)
    return dataclasses.replace(examples, augmentation=made)


@functools.lru_cache(maxsize=4)
def _words(rows: Rows, tokenizer: Tokenizer, max_tokens: int, prompt: str) -> tuple[TokenColumn, ...]:
    sides = rows.table.columns[:2]
    return tuple(TokenColumn(column, tokenizer, max_tokens, prompt, word_numbers) for column in sides)


@functools.lru_cache(maxsize=4)
def _examples(rows: Rows, tokenizer: Tokenizer, max_tokens: int, prompt: str) -> SentenceExamples:
    columns = tuple(TokenColumn(column, tokenizer, max_tokens, prompt) for column in rows.table.columns)
    return SentenceExamples(rows, cast("PreTrainedTokenizerBase", tokenizer), columns)
