"""Pairs of sentences with people's scores: do cosines rank them as people do?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.sentences import cells, scored
from jobs.data.sentences.scored import SentenceEvaluation, sentence_evaluation
from jobs.data.sources import Rows, row_ids
from jobs.data.tasks.judging import EncodeTexts

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("sentence",)

COLUMNS = ("LEFT", "RIGHT", "SCORE")

MEASURES = ("spearman", "pearson", "alignment", "uniformity", "largest_eigenvalue_share", "random_pair_cosine")
"""The last two at the first and the last evaluation."""

JOINS = True
"""Pairs of several sets are judged together too: `all/spearman`."""


class Sts:
    """Scored pairs: the columns of `data.judged_columns`, or those of usual names."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def sources(self, source: str) -> Sequence[str]:
        """Name the source, which is one table."""
        return (source,)

    def tables(self, source: str) -> Sequence[Rows]:
        """Read the scored pairs."""
        return (scored.judged_rows(source, self._job.data.columns_of("")),)

    def read(self, source: str) -> SentenceEvaluation:
        """Read the scored pairs."""
        return sentence_evaluation(source, self._job.data.columns_of(""))

    def row_ids(self, rows: SentenceEvaluation) -> RowIds:
        """Name the pairs."""
        return row_ids(rows.rows)

    def evaluate(self, encode: EncodeTexts, rows: SentenceEvaluation, *, final: bool) -> dict[str, Outcomes]:
        """Measure how cosines go with scores, how embeddings spread, and what the job asks for."""
        return self.joined([rows], [encode([*rows.left, *rows.right])], final=final)

    def joined(
        self, every: Sequence[SentenceEvaluation], embedded: Sequence[Tensor], *, final: bool
    ) -> dict[str, Outcomes]:
        """Measure the same of the pairs of several sources as of one list. embedded: of each source what `evaluate` has
        encoded of it."""
        import torch

        from jobs.metrics.evaluate import measured

        sizes = [len(rows.left) for rows in every]
        left = torch.cat([own[:size] for own, size in zip(embedded, sizes, strict=True)])
        right = torch.cat([own[size:] for own, size in zip(embedded, sizes, strict=True)])
        return measured(
            self._job,
            MEASURES if final else MEASURES[:-2],
            len(left),
            left=left,
            right=right,
            scores=np.concatenate([np.asarray(rows.score, dtype=np.float64) for rows in every]),
            halves=np.concatenate([self.row_ids(rows).halves for rows in every]),
            embeddings=torch.cat([left, right]).to(torch.float64),
        )

    def check(self, source: str, stage: str) -> Iterator[str]:  # noqa: ARG002
        """Warn of texts that look odd."""
        columns = self._job.data.columns_of("")
        rows = scored.judged_rows(source, columns)
        if columns is None:
            scored.doubts(rows)
        sentence_evaluation(source, columns)
        if columns is None:
            cells.refuse(rows, rows.table.column_names[:2], "data.judged_columns")
        yield from cells.notes(rows, rows.table.column_names[:2])


sts = Sts
