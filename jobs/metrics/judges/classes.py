"""Rows with labels: does an encoder bring rows of a label together? Nearest neighbours, a linear probe, clusters.

Images learn from the labelled rows of data.train. Sentences, which seldom have labels there, from `references`, a
source like those that judge; or, without it, each half of the rows from the other half, so that no row has seen its own
label.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds, mean_of
from jobs.data.faults import counted
from jobs.data.images import ImageEvaluation, image_evaluation, image_rows
from jobs.data.images.pixels import Images
from jobs.data.sentences import cells
from jobs.data.sentences.judged import LabelledEvaluation, labelled, labelled_rows
from jobs.data.sources import Rows, row_ids
from jobs.data.tasks.judging import Encode, EncodeTexts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

TASKS = ("image", "sentence")

COLUMNS = ("TEXT", "LABEL")

LEARNT = ("knn_accuracy", "probe_accuracy")

MEASURES = (
    "knn_accuracy",
    "probe_accuracy",
    "alignment",
    "uniformity",
    "v_measure",
    "largest_eigenvalue_share",
    "random_pair_cosine",
)
"""The last three, and probe_accuracy, at the first and the last evaluation."""


class Classes:
    """Labelled rows. references: of sentences, a source of texts with labels to learn from."""

    def __init__(self, job: JobConfig, *, references: str | None = None) -> None:
        self._job, self._references = job, references

    @property
    def _is_image(self) -> bool:
        return self._job.task == "image"

    def sources(self, source: str) -> Sequence[str]:
        """Name the source, and that of the references."""
        return (source,) if self._references is None else (source, self._references)

    def tables(self, source: str) -> Sequence[Rows]:
        """Read the labelled rows."""
        if self._is_image:
            return (image_rows(self._job, source),)
        return [labelled_rows(one, self._job.data.columns_of("")) for one in self.sources(source)]

    def read(self, source: str) -> ImageEvaluation | tuple[LabelledEvaluation, LabelledEvaluation | None]:
        """Read labelled rows: those of the source, and those to learn from if they are others."""
        if self._is_image:
            return image_evaluation(self._job, source)
        rows, *references = (labelled(one, self._job.data.columns_of("")) for one in self.sources(source))
        return rows, references[0] if references else None

    def row_ids(self, rows: ImageEvaluation | tuple[LabelledEvaluation, LabelledEvaluation | None]) -> RowIds:
        """Name the rows of the source."""
        return row_ids(rows.rows if isinstance(rows, ImageEvaluation) else rows[0].rows)

    def evaluate(
        self,
        encode: Encode | EncodeTexts,
        rows: ImageEvaluation | tuple[LabelledEvaluation, LabelledEvaluation | None],
        *,
        final: bool,
    ) -> dict[str, Outcomes]:
        """Measure what is learnt of labels, how embeddings spread, and what the job asks for; probe_accuracy where
        `final` and the job say so."""
        if isinstance(rows, ImageEvaluation):
            embed = cast("Encode", encode)
            references, queries = (
                embed.lazily(len(images), functools.partial(_pixels, images))
                for images in (rows.reference_pixels, rows.query_pixels)
            )
            return self._measured(
                references, rows.reference_labels, queries, rows.query_labels, names=self._names(final=final)
            )
        embed_texts, (own, others) = cast("EncodeTexts", encode), rows
        if others is not None:
            both = embed_texts([*own.texts, *others.texts])
            queries, references = both[: len(own.texts)], both[len(own.texts) :]
            names = self._names(final=final)
            return self._measured(references, others.labels, queries, own.labels, names=names)
        return self._of_halves(embed_texts(own.texts), own.labels, self.row_ids(rows).halves, final=final)

    def _names(self, *, final: bool) -> list[str]:
        late = {"probe_accuracy": self._job.evaluate.probe and final} | dict.fromkeys(MEASURES[4:], final)
        return [name for name in MEASURES if late.get(name, True)]

    def _measured(
        self,
        references: Tensor,
        reference_labels: NDArray[np.generic],
        queries: Tensor,
        query_labels: NDArray[np.generic],
        *,
        names: Sequence[str],
    ) -> dict[str, Outcomes]:
        from jobs.metrics.evaluate import measured

        return measured(
            self._job,
            names,
            len(queries),
            references=references,
            reference_labels=reference_labels,
            queries=queries,
            query_labels=query_labels,
            embeddings=queries,
        )

    def _of_halves(
        self, embedded: Tensor, labels: NDArray[np.str_], halves: NDArray[np.int64], *, final: bool
    ) -> dict[str, Outcomes]:
        """Measure each half by what is learnt of the other, and the rest of all rows, which learn of themselves."""
        from jobs.metrics.evaluate import of_names

        names = self._names(final=final)
        metrics = self._measured(
            embedded, labels, embedded, labels, names=[name for name in names if name not in LEARNT]
        )
        learnt: dict[str, NDArray[np.float64]] = {}
        for half in (0, 1):
            asked = halves == half
            parts = of_names(
                [name for name in names if name in LEARNT],
                int(asked.sum()),
                settings=self._job.evaluate,
                references=embedded[~asked],
                reference_labels=labels[~asked],
                queries=embedded[asked],
                query_labels=labels[asked],
            )
            for name, outcome in parts.items():
                learnt.setdefault(name, np.full(len(labels), np.nan))
                if outcome.columns:
                    learnt[name][asked] = outcome.columns[""]
        return {name: mean_of(rows) for name, rows in learnt.items()} | metrics

    def check(self, source: str, stage: str) -> Iterator[str]:
        """Warn of rows that look odd, and of labels that nothing can be learnt of."""
        judged, evaluate = self.read(source), self._job.evaluate
        if isinstance(judged, ImageEvaluation):
            yield from judged.query_pixels.check()
            known: NDArray[np.generic] = judged.reference_labels
            asked: NDArray[np.generic] = judged.query_labels
            where = f"the first evaluate.references = {evaluate.references} labelled rows of data.train"
            learnt = "data.train has {} with labels in all"
        else:
            own, others = judged
            yield from cells.notes(own.rows, own.rows.table.column_names[:1])
            known_texts, asked = own if others is None else others, own.labels
            known, where = known_texts.labels, str(self._references)
            learnt = f"half of {source} has {{}}" if others is None else f"{self._references} has {{}}"
        labelled_count = len(known) if isinstance(judged, ImageEvaluation) or judged[1] is not None else len(known) // 2
        if labelled_count < evaluate.neighbours:
            yield f"evaluate.neighbours = {evaluate.neighbours}, but {learnt.format(counted(labelled_count))}"
        strange = int((~np.isin(asked, known)).sum())
        if strange:
            yield (
                f"{counted(strange)} of data.{stage} have labels that {where} lack, so they count as wrong in every arm"
            )


def _pixels(images: Images, start: int, stop: int) -> Mapping[str, Tensor]:
    return {"pixel_values": images[start:stop]}


classes = Classes
