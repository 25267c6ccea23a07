"""Pairs of sentences with people's scores, which encoders of sentences are judged on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.data.sources import exactly, read
from jobs.data.texts import as_text

JUDGED = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class SentenceEvaluation:
    """Pairs of sentences with people's scores, [n] each."""

    left: list[str]
    right: list[str]
    score: NDArray[np.float64]


def judged_columns(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """sentence1, sentence2, score."""
    del wanted
    return exactly(file, names, JUDGED)


@functools.lru_cache(maxsize=4)
def sentence_evaluation(source: str) -> SentenceEvaluation:
    """The scored pairs of a source with columns sentence1, sentence2 and score."""
    rows = as_text(read(source, judged_columns), JUDGED[:2])
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
