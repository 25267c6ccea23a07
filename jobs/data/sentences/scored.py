"""Pairs of sentences with people's scores, which encoders of sentences are judged on.

A score is a number, also where it is written as text; true and false are 1 and 0.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.faults import DataError, brief, listed
from jobs.data.sentences.columns import IDS, NO_TEXTS, SCORE_NAMES, SCORED, hints, likely_texts
from jobs.data.sentences.texts import BINARY, as_text
from jobs.data.sources import Names, Rows, exactly, read

JUDGED = ("sentence1", "sentence2", "score")
PAIRS = (
    JUDGED[:2],
    *(
        (f"{word}{first}", f"{word}{second}")
        for word in ("sentence", "text", "sent", "question")
        for first, second in (("1", "2"), ("_1", "_2"), ("_a", "_b"), ("_A", "_B"), ("A", "B"))
        if word + first != JUDGED[0]
    ),
)
"""Names of the two sentences, the first of them before all others."""

WHOLE = re.compile(r"-?\d+", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
TRUTH = {"true": 1, "false": 0}
NOTHING = ("", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "inf", "-inf", "+inf", "infinity", "-infinity")


@dataclass(frozen=True)
class SentenceEvaluation:
    """Pairs of sentences with people's scores, [n] each."""

    left: list[str]
    right: list[str]
    score: NDArray[np.float64]
    rows: Rows
    """Where they are from."""


def judged_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose the columns of two sentences and their score: as wanted, else by their usual names."""
    if wanted is not None:
        return exactly(file, names, wanted)
    if set(JUDGED) <= set(names):
        return exactly(file, names, JUDGED)
    pairs, scores = _candidates(names)
    if len(pairs) > 1 or (pairs and len(scores) > 1):
        raise _ambiguous(file, pairs, scores)
    if pairs and scores:
        return exactly(file, names, (*pairs[0], scores[0]))
    missing = next((name for name in JUDGED[:2] if name not in names), JUDGED[0]) if not pairs else JUDGED[2]
    raise DataError(
        f"is missing; the columns here are {listed(names)}{_remedy(file, names, pairs)}", file=file, column=missing
    )


def doubts(rows: Rows) -> None:
    """Raise DataError where columns of scored pairs that nobody has named may be meant otherwise. Reading takes
    sentence1, sentence2 and score whatever else there is, as runs were begun so."""
    chosen = rows.table.column_names
    for file, names, _, table in rows.parts():
        pairs, scores = _candidates(names)
        scores += [name for name in names if SCORED.fullmatch(name) and name not in (*scores, *chosen)]
        if len(pairs) > 1 or len(scores) > 1:
            raise _ambiguous(file, pairs or [tuple(chosen[:2])], scores)
        values = {*pc.unique(table[2]).to_pylist()} if pa.types.is_integer(table[2].type) else set()
        if -1 in values and values <= {-1, 0, 1, 2}:
            raise rows.fault(
                "holds -1, which usually stands for a missing label; remove these rows, or set data.judged_columns = "
                f"{chosen} if it is the lowest score",
                column=chosen[2],
            )


def judged_rows(source: str, columns: tuple[str, ...] | None) -> Rows:
    """Read scored pairs: two columns of sentences, one of numbers. columns: their names, None for the usual ones."""
    return _with_numbers(read(source, judged_columns, columns), "data.judged_columns")


def train_scores(source: str, column: str) -> NDArray[np.float64]:
    """Read the scores of the pairs that are trained on. Raises DataError for what is no finite number."""
    return _finite(_with_numbers(read(source, exactly, (column,)), "data.scores"))


def sentence_evaluation(source: str, columns: tuple[str, ...] | None = None) -> SentenceEvaluation:
    """Read the scored pairs of a source. columns: left, right, score; None for the usual names."""
    return _evaluation(judged_rows(source, columns))


@functools.lru_cache(maxsize=4)
def _evaluation(rows: Rows) -> SentenceEvaluation:
    first, second, name = rows.table.column_names
    rows = as_text(rows, (first, second))
    numbers = _finite(rows)
    if len(np.unique(numbers)) < 2:
        raise rows.fault(
            f"holds one score only, {numbers[0]:g}; pairs are ranked, or told apart, by two different ones at least",
            column=name,
        )
    left, right = (rows.table[name].to_pylist() for name in (first, second))
    return SentenceEvaluation(left, right, numbers, rows)


def _finite(rows: Rows) -> NDArray[np.float64]:
    """Take the last column of the rows, which are numbers. Raises DataError for one that is not finite."""
    numbers: NDArray[np.float64] = rows.table[-1].to_numpy().astype(np.float64)
    if not np.isfinite(numbers).all():
        name = rows.table.column_names[-1]
        raise rows.fault("holds no number; remove the row", column=name, row=int(np.argmin(np.isfinite(numbers))))
    return numbers


def _remedy(file: str, names: Names, pairs: list[tuple[str, ...]]) -> str:
    if file.lower().removesuffix(".gz").endswith(".txt"):
        header = "sentence1<TAB>sentence2<TAB>score"
        return f", as a .txt file has a sentence a line; let its name end in .tsv, and its first line be {header}"
    if names.lists:
        return f"; of these {listed(names.lists)} hold lists or objects: write a row for each pair"
    hint = hints(file, names)
    left, right, *_ = [*(list(pairs[0]) if pairs else likely_texts(names)), "", ""]
    if not any(name.strip() for name in names):
        return "; give a file with rows, and with names in its first line"
    if not left:
        return hint or NO_TEXTS
    rest = [name for name in names if name.strip() and not IDS.fullmatch(name) and name not in (left, right)]
    score = next((name for name in rest if SCORED.fullmatch(name)), rest[0] if len(rest) == 1 else "")
    example = f", for example data.judged_columns = {[left, right, score]}" if right and score else ""
    return f"{hint}; {'or ' * bool(hint)}name yours in data.judged_columns = [LEFT, RIGHT, SCORE]{example}"


def _candidates(names: Names) -> tuple[list[tuple[str, ...]], list[str]]:
    """Find the known pairs of columns that are here, and the known scores."""
    return [pair for pair in PAIRS if set(pair) <= set(names)], [name for name in SCORE_NAMES if name in names]


def _ambiguous(file: str, pairs: list[tuple[str, ...]], scores: list[str]) -> DataError:
    reasons = [" and ".join(scores)] if len(scores) > 1 else []
    reasons += [" and ".join("/".join(pair) for pair in pairs)] if len(pairs) > 1 else []
    example = [*pairs[0], *scores[:1]]
    return DataError(
        f"has {' as well as '.join(reasons)}, and nothing says which are meant; set data.judged_columns, for example "
        f"data.judged_columns = {example}",
        file=file,
    )


@functools.lru_cache(maxsize=8)
def _with_numbers(rows: Rows, key: str) -> Rows:
    """Convert the last column of the rows to numbers, unless it holds some. key: of the job, that names the column.
    Raises DataError for what is no number."""
    last = rows.table.num_columns - 1
    column, name = rows.table[last], rows.table.column_names[last]
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return rows
    if pa.types.is_boolean(kind):
        numbers = column.cast(pa.int64())
    elif pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64())
    elif any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null, *BINARY)):
        numbers = pa.chunked_array([_numbers(rows, column.to_pylist())])
    else:
        raise rows.fault(
            f"is of type {kind}; scores are numbers, such as 0 to 5, or true and false: name another column in {key}",
            column=name,
        )
    return dataclasses.replace(rows, table=rows.table.set_column(last, name, numbers))


def _numbers(rows: Rows, values: Sequence[str | bytes | None]) -> pa.Array:
    """Parse numbers written as text: whole ones where all are whole. Raises DataError at the first that is none."""
    texts = [_stripped(value) for value in values]
    if all(text.lower() in TRUTH for text in texts):
        return pa.array([TRUTH[text.lower()] for text in texts], pa.int64())
    row = next((row for row, text in enumerate(texts) if not NUMBER.fullmatch(text)), None)
    if row is not None:
        raise rows.fault(_no_number(texts[row]), column=rows.table.column_names[-1], row=row)
    # Python makes no int of more digits than 4,300.
    numbers = [int(text) if WHOLE.fullmatch(text) and len(text) < 4000 else float(text) for text in texts]
    is_whole = all(isinstance(number, int) and abs(number) < 2**63 for number in numbers)
    return pa.array(numbers if is_whole else [float(text) for text in texts], pa.int64() if is_whole else pa.float64())


def _stripped(value: str | bytes | None) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value or ""
    return str(text).strip()


def _no_number(text: str) -> str:
    if text.lower() in NOTHING:
        return "holds no number; remove the row"
    comma = ", with a point and no comma" if re.fullmatch(r"[+-]?\d+,\d+", text) else ""
    return f"holds '{brief(text)}', which is no number; scores are numbers, such as 4.5{comma}, or true and false"
