"""Sentences that an encoder is judged on by other judges than rank correlation: with labels, or beside translations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.faults import DataError, brief, counted, listed
from jobs.data.sentences.columns import TEXT_NAMES
from jobs.data.sentences.scored import PAIRS, SentenceEvaluation, sentence_evaluation
from jobs.data.sentences.texts import as_text
from jobs.data.sources import GROUP, ID, Names, Rows, exactly, read

LABEL_NAMES = ("label", "labels", "label_name", "class", "category", "intent", "target")

SIDES = (("source", "target"), ("src", "tgt"), ("english", "chinese"), ("left", "right"), *PAIRS)
"""Names of the columns of a text and its translation."""


@dataclass(frozen=True)
class LabelledEvaluation:
    """Texts and what they are labelled as, [n] each."""

    texts: list[str]
    labels: NDArray[np.str_]
    rows: Rows


@dataclass(frozen=True)
class BitextEvaluation:
    """Texts and their translations, [n] each."""

    left: list[str]
    right: list[str]
    rows: Rows


def labelled_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose the columns of a text and its label: as wanted, else by their usual names."""
    if wanted is not None:
        return exactly(file, names, wanted)
    found = [next((name for name in usual if name in names), None) for usual in (TEXT_NAMES, LABEL_NAMES)]
    if None in found:
        missing = "text" if found[0] is None else "label"
        raise DataError(
            f"is missing; the columns here are {listed(names)}; name yours in data.judged_columns = [TEXT, LABEL]",
            file=file,
            column=missing,
        )
    return exactly(file, names, tuple(map(str, found)))


def bitext_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose the columns of a text and its translation: as wanted, else by usual names, else the two there are."""
    if wanted is not None:
        return exactly(file, names, wanted)
    usual = next((pair for pair in SIDES if set(pair) <= set(names)), None)
    others = tuple(name for name in names if name not in (ID, GROUP))
    if usual is None and len(others) != 2:
        raise DataError(
            f"has the columns {listed(names)}, and nothing says which are a text and its translation; set "
            "data.judged_columns = [LEFT, RIGHT]",
            file=file,
        )
    return exactly(file, names, usual or others)


def labelled_rows(source: str, columns: tuple[str, ...] | None) -> Rows:
    """Read texts with labels. columns: their names, None for the usual ones."""
    return read(source, labelled_columns, columns)


def bitext_rows(source: str, columns: tuple[str, ...] | None) -> Rows:
    """Read texts with translations. columns: their names, None for the usual ones."""
    return read(source, bitext_columns, columns)


def labelled_pairs(source: str, columns: tuple[str, ...] | None) -> SentenceEvaluation:
    """Read pairs that say the same, or do not: scores of 1 and 0. Raises DataError for other ones, and for one kind
    alone."""
    pairs = sentence_evaluation(source, columns)
    wrong = np.flatnonzero(~np.isin(pairs.score, (0.0, 1.0)))
    if len(wrong):
        raise pairs.rows.fault(
            f"holds {pairs.score[wrong[0]]:g}, and a pair says the same (1, true) or does not (0, false); scores in "
            "between are what evaluate.judge = 'sts' is for",
            column=pairs.rows.table.column_names[2],
            row=int(wrong[0]),
        )
    return pairs


def labelled(source: str, columns: tuple[str, ...] | None) -> LabelledEvaluation:
    """Read the labelled texts of a source. Raises DataError."""
    return _labelled(labelled_rows(source, columns))


@functools.lru_cache(maxsize=4)
def _labelled(rows: Rows) -> LabelledEvaluation:
    text, label = rows.table.column_names
    texts = as_text(rows, (text,)).table[text].to_pylist()
    column = rows.table[label]
    if pa.types.is_nested(column.type):
        raise rows.fault(f"is of type {column.type}; a label is a text or a number", column=label)
    if (row := pc.index(pc.is_null(column), value=True).as_py()) >= 0:
        raise rows.fault("holds no label; remove the row", column=label, row=row)
    labels = np.array([str(value) for value in column.to_pylist()])
    if len(np.unique(labels)) < 2:
        raise rows.fault(f"holds one label only, '{brief(labels[0])}'; two at least can be told apart", column=label)
    return LabelledEvaluation(texts, labels, rows)


def bitext(source: str, columns: tuple[str, ...] | None) -> BitextEvaluation:
    """Read the texts of a source, and their translations. Raises DataError."""
    return _bitext(bitext_rows(source, columns))


@functools.lru_cache(maxsize=4)
def _bitext(rows: Rows) -> BitextEvaluation:
    names = tuple(rows.table.column_names)
    left, right = (as_text(rows, names).table[name].to_pylist() for name in names)
    if len(left) < 2:
        raise rows.fault("holds one text and its translation; two at least, of which one is the nearest")
    return BitextEvaluation(left, right, rows)


def repeated(pairs: BitextEvaluation) -> Iterator[str]:
    """Warn of texts that are there several times: of their translations one can be the nearest."""
    for name, texts in zip(pairs.rows.table.column_names, (pairs.left, pairs.right), strict=True):
        if again := len(texts) - len(set(texts)):
            yield (
                f"{pairs.rows.source}, column '{name}': {counted(again)} have a text that an earlier row has; the "
                "translation of the first counts as the nearest of equal ones"
            )
