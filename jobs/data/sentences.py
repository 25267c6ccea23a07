"""The sentence job's data: single sentences, pairs, pairs with hard negatives; and scored pairs to be judged on.

A single sentence is paired with itself. The two views are told apart by dropout alone (SimCSE, Gao et al. 2021,
arXiv:2104.08821), so they are the same tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from jobs.config import JobConfig
from jobs.data.batches import Views, content_ids
from jobs.data.formats import DataError, is_utf8, short
from jobs.data.sources import Rows, exactly, read
from jobs.data.tokens import TokenColumn, lower_casing, padded, stacked, texts_of, trained_tokenizer
from jobs.models.reading import reading
from jobs.paths import looked_in
from jobs.pretrained import EncoderError, folder_of, tokenizer_files
from jobs.provenance import stamp

TEXT_NAMES = ("text", "sentence", "sentences", "content")
PAIR_NAMES = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "answer"),
    ("query", "passage"),
    ("question", "answer"),
    ("sent0", "sent1"),
    ("premise", "entailment"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
)
NEGATIVE_NAME = re.compile(r"(hard_?)?neg(ative)?s?_?\d*|contradiction")
SCORE_NAMES = ("score", "label", "similarity_score", "similarity")
BINARY = (pa.types.is_binary, pa.types.is_large_binary)
JUDGED = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class SentenceExamples:
    """Sentences to train on."""

    rows: Rows
    tokenizer: Any
    columns: tuple[TokenColumn, ...]
    """The anchor; then the positive, if pairs are given; then the hard negatives."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hard_negatives(self) -> int:
        """Hard negatives of each pair."""
        return max(len(self.columns) - 2, 0)

    def views(self, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64]) -> Views:  # noqa: ARG002
        """Tokens of these data rows, padded to the longest of each side. Nothing is random: dropout is the view."""
        rows, pad = np.asarray(rows, np.int64), int(self.tokenizer.pad_token_id)
        queries = padded(*self.columns[0][rows], pad)
        keys = padded(*self.columns[1][rows], pad) if len(self.columns) > 1 else queries
        negatives = stacked([column[rows] for column in self.columns[2:]], pad) if self.hard_negatives else None
        return Views(queries, keys, negatives)

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the longest sentence of each row, hard negatives included, [c]."""
        longest: NDArray[np.int64] = np.max([column[rows][1] for column in self.columns], axis=0)
        return longest

    def pair_ids(self, rows: NDArray[np.int64]) -> Tensor:
        """int64 [c]: equal for equal anchors."""
        return content_ids(text.encode() for text in texts_of(self.rows.table[0], rows))


@dataclass(frozen=True)
class SentenceEvaluation:
    """Pairs of sentences with people's scores, [n] each."""

    left: list[str]
    right: list[str]
    score: NDArray[np.float64]


def train_columns(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """[text], or [anchor, positive, hard negatives ...]: as wanted, else by their usual names."""
    if wanted is not None:
        return exactly(file, names, wanted)
    for pair in PAIR_NAMES:
        if set(pair) <= set(names):
            scores = [name for name in SCORE_NAMES if name in names]
            if scores:
                raise DataError(
                    f"scores the pairs, and pairs of low score are no positives; set data.columns = ['{pair[0]}'] "
                    f"to train on single sentences, or data.columns = {list(pair)} if all pairs are positives",
                    file=file,
                    column=scores[0],
                )
            return (*pair, *(name for name in names if NEGATIVE_NAME.fullmatch(name)))
    text = next((name for name in TEXT_NAMES if name in names), names[0] if len(names) == 1 else None)
    if text is None:
        example = f"; name yours in data.columns, for example data.columns = ['{names[0]}']" if names else ""
        raise DataError(
            f"is missing; the columns here are {', '.join(names) or 'none'}{example}", file=file, column="text"
        )
    return (text,)


def judged_columns(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """sentence1, sentence2, score."""
    del wanted
    return exactly(file, names, JUDGED)


def sentence_rows(job: JobConfig) -> Rows:
    """The text columns of data.train, each row of them checked to be text."""
    rows = read(job.data.train, train_columns, None if job.data.columns is None else tuple(job.data.columns))
    return _text(rows, tuple(rows.table.column_names))


def tokenizer_for(job: JobConfig) -> Any:
    """The tokenizer of job.model: WordPieces trained on data.train for `bert`, else the model's own."""
    if job.model.name in (None, "bert"):
        return trained_tokenizer(sentence_rows(job), job.model.vocabulary)
    name, lower = str(job.model.name), reading(job).lower
    try:
        folder = folder_of(name)
        return _pretrained(folder, tuple(tuple(stamp(path)) for path in tokenizer_files(folder)), lower)
    except Exception as error:  # its files may hold anything, and its class may raise anything
        where = f", looked for{looked_in(name)}" if looked_in(name) else ""
        reason = error.reason if isinstance(error, EncoderError) else short(error)
        raise DataError(
            f"no tokenizer can be loaded ({reason}); model.name must be a folder with one{where}, a Hub name, or "
            "'bert'",
            file=name,
        ) from error


@functools.lru_cache(maxsize=4)
def _pretrained(folder: Path, _stamps: tuple[tuple[Any, ...], ...], lower: bool) -> Any:
    """The tokenizer in a folder while its files are these, in one object, so that what is derived from it is kept."""
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
    return lower_casing(tokenizer) if lower else tokenizer


def sentence_examples(job: JobConfig, tokenizer: Any = None) -> SentenceExamples:
    """The sentences that `job` trains on."""
    read = reading(job)
    return _examples(
        sentence_rows(job), tokenizer_for(job) if tokenizer is None else tokenizer, read.max_tokens, read.prompt
    )


@functools.lru_cache(maxsize=4)
def _examples(rows: Rows, tokenizer: Any, max_tokens: int, prompt: str) -> SentenceExamples:
    columns = tuple(TokenColumn(column, tokenizer, max_tokens, prompt) for column in rows.table.columns)
    return SentenceExamples(rows, tokenizer, columns)


@functools.lru_cache(maxsize=4)
def sentence_evaluation(source: str) -> SentenceEvaluation:
    """The scored pairs of a source with columns sentence1, sentence2 and score."""
    rows = _text(read(source, judged_columns), JUDGED[:2])
    score = rows.table[2]
    if not (pa.types.is_integer(score.type) or pa.types.is_floating(score.type)):
        raise rows.fault(f"is of type {score.type}; scores are numbers, such as 0 to 5", column="score")
    numbers = score.to_numpy().astype(np.float64)
    if not np.isfinite(numbers).all():
        raise rows.fault("holds no number; remove the row", column="score", row=int(np.argmin(np.isfinite(numbers))))
    if len(np.unique(numbers)) < 2:
        raise rows.fault("holds one score only; a rank correlation needs at least two different ones", column="score")
    left, right = (rows.table[name].to_pylist() for name in JUDGED[:2])
    return SentenceEvaluation(left, right, numbers)


@functools.lru_cache(maxsize=8)
def _text(rows: Rows, names: tuple[str, ...]) -> Rows:
    """The rows with these columns as strings. Raises DataError at the first null, empty, blank or not UTF-8."""
    table = rows.table
    for name in names:
        kind = table[name].type
        if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, *BINARY)):
            raise rows.fault(f"is of type {kind}; sentences are strings", column=name)
        chunks, at = [], 0
        for chunk in table[name].chunks:
            chunks.append(_utf8(rows, name, chunk, at))
            blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunks[-1])), 0), fill_value=True)
            row = pc.index(blank, value=True).as_py()
            if row >= 0:
                found = "is empty" if chunk[row].is_valid else "is null"
                raise rows.fault(f"{found}; remove the row or write its sentence", column=name, row=at + row)
            at += len(chunk)
        table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(chunks))
    return dataclasses.replace(rows, table=table)


def _utf8(rows: Rows, name: str, chunk: pa.Array, at: int) -> pa.Array:
    """The chunk as strings, without a copy: the CSV reader, and some writers of Parquet, make bytes of them."""
    binary = any(test(chunk.type) for test in BINARY)
    try:
        text = chunk.cast(pa.string() if pa.types.is_binary(chunk.type) else pa.large_string()) if binary else chunk
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        values = chunk.cast(pa.large_binary()).to_pylist()
        row = next((i for i, value in enumerate(values) if value is not None and not is_utf8(value)), None)
        raise rows.fault(
            "is not UTF-8; convert the file, for example by iconv -f latin1 -t utf-8",
            column=name,
            row=None if row is None else at + row,
        ) from error
    return text
