"""Texts and their translations: is the translation the nearest text of the other language?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds, mean_of
from jobs.data.sentences import cells, judged
from jobs.data.sentences.judged import BitextEvaluation
from jobs.data.sources import Rows, row_ids
from jobs.data.tasks.judging import EncodeTexts

TASKS = ("sentence",)

COLUMNS = ("LEFT", "RIGHT")

MEASURES = (
    "accuracy",
    "accuracy_forward",
    "accuracy_backward",
    "mrr",
    "mrr_forward",
    "mrr_backward",
    "alignment",
    "uniformity",
    "largest_eigenvalue_share",
    "random_pair_cosine",
)
"""Forward is from the left column to the right one; without a direction it is the mean of both. The last two at the
first and the last evaluation."""


class Bitext:
    """Translations: the columns of `data.judged_columns`, or those of usual names."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def sources(self, source: str) -> Sequence[str]:
        """Name the source, which is one table."""
        return (source,)

    def tables(self, source: str) -> Sequence[Rows]:
        """Read the translations."""
        return (judged.bitext_rows(source, self._job.data.columns_of("")),)

    def read(self, source: str) -> BitextEvaluation:
        """Read the translations."""
        return judged.bitext(source, self._job.data.columns_of(""))

    def row_ids(self, rows: BitextEvaluation) -> RowIds:
        """Name the pairs."""
        return row_ids(rows.rows)

    def evaluate(self, encode: EncodeTexts, rows: BitextEvaluation, *, final: bool) -> dict[str, Outcomes]:
        """Measure whether a translation is found, how embeddings spread, and what the job asks for."""
        import torch
        import torch.nn.functional as F

        from jobs.metrics.evaluate import measured
        from jobs.metrics.search import each_once, places

        both = each_once(encode, [*rows.left, *rows.right])
        left, right = both[: len(rows.left)], both[len(rows.left) :]
        others = measured(
            self._job,
            MEASURES[6:] if final else MEASURES[6:-2],
            len(left),
            left=left,
            right=right,
            halves=self.row_ids(rows).halves,
            embeddings=both,
        )
        if not torch.isfinite(both).all():
            return dict.fromkeys(MEASURES[:6], Outcomes(float("nan"))) | others
        sides = [F.normalize(side.double(), dim=-1).to(encode.device) for side in (left, right)]
        ahead, back = (places(*pair, group=encode.group).cpu().numpy() for pair in (sides, sides[::-1]))
        found: dict[str, Outcomes] = {}
        for name, forward, backward in (
            ("accuracy", (ahead == 1).astype(float), (back == 1).astype(float)),
            ("mrr", 1 / ahead, 1 / back),
        ):
            found[name] = mean_of((forward + backward) / 2)
            found |= {f"{name}_forward": mean_of(forward), f"{name}_backward": mean_of(backward)}
        return found | others

    def check(self, source: str, stage: str) -> Iterator[str]:  # noqa: ARG002
        """Warn of texts that look odd, and of those that come again."""
        rows = self.read(source)
        yield from cells.notes(rows.rows, rows.rows.table.column_names)
        yield from judged.repeated(rows)


bitext = Bitext
