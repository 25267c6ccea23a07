"""Pairs of sentences that say the same, or do not: does their cosine tell which? A threshold is chosen on the other
half of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.sentences import cells, scored
from jobs.data.sentences.judged import labelled_pairs
from jobs.data.sentences.scored import SentenceEvaluation
from jobs.data.sources import Rows, row_ids
from jobs.data.tasks.judging import EncodeTexts

TASKS = ("sentence",)

COLUMNS = ("LEFT", "RIGHT", "LABEL")

MEASURES = (
    "average_precision",
    "pair_accuracy",
    "pair_f1",
    "alignment",
    "uniformity",
    "largest_eigenvalue_share",
    "random_pair_cosine",
)
"""The last two at the first and the last evaluation."""


class Pairs:
    """Labelled pairs: the columns of `data.judged_columns`, or those of usual names."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def sources(self, source: str) -> Sequence[str]:
        """Name the source, which is one table."""
        return (source,)

    def tables(self, source: str) -> Sequence[Rows]:
        """Read the labelled pairs."""
        return (scored.judged_rows(source, self._job.data.columns_of("")),)

    def read(self, source: str) -> SentenceEvaluation:
        """Read the labelled pairs."""
        return labelled_pairs(source, self._job.data.columns_of(""))

    def row_ids(self, rows: SentenceEvaluation) -> RowIds:
        """Name the pairs."""
        return row_ids(rows.rows)

    def evaluate(self, encode: EncodeTexts, rows: SentenceEvaluation, *, final: bool) -> dict[str, Outcomes]:
        """Measure how cosines tell pairs apart, how embeddings spread, and what the job asks for."""
        from jobs.metrics.evaluate import measured

        both = encode([*rows.left, *rows.right])
        left, right = both[: len(rows.left)], both[len(rows.left) :]
        return measured(
            self._job,
            MEASURES if final else MEASURES[:-2],
            len(left),
            left=left,
            right=right,
            scores=rows.score,
            halves=self.row_ids(rows).halves,
            embeddings=both,
        )

    def check(self, source: str, stage: str) -> Iterator[str]:  # noqa: ARG002
        """Warn of texts that look odd."""
        rows, columns = scored.judged_rows(source, self._job.data.columns_of("")), self._job.data.columns_of("")
        if columns is None:
            scored.doubts(rows)
        self.read(source)
        yield from cells.notes(rows, rows.table.column_names[:2])


pairs = Pairs
