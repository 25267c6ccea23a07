"""Rows with labels: does an encoder bring rows of a label together? Those of data.train with labels are learnt from."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.faults import counted
from jobs.data.images import ImageEvaluation, image_evaluation, image_rows
from jobs.data.images.pixels import Images
from jobs.data.sources import Rows, row_ids
from jobs.data.tasks.judging import Encode

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("image",)

MEASURES = ("knn_accuracy", "probe_accuracy", "alignment", "uniformity")


class Classes:
    """Labelled rows."""

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def sources(self, source: str) -> Sequence[str]:
        """Name the source, which is one table."""
        return (source,)

    def tables(self, source: str) -> Sequence[Rows]:
        """Read the labelled images."""
        return (image_rows(self._job, source),)

    def read(self, source: str) -> ImageEvaluation:
        """Read labelled images: those to learn from, of data.train, and those of the source."""
        return image_evaluation(self._job, source)

    def row_ids(self, rows: ImageEvaluation) -> RowIds:
        """Name the images of the source."""
        return row_ids(rows.rows)

    def evaluate(self, encode: Encode, rows: ImageEvaluation, *, final: bool) -> dict[str, Outcomes]:
        """Measure knn_accuracy, alignment, uniformity, probe_accuracy where `final` and the job say so, and the metrics
        of the user's own."""
        from jobs.metrics.evaluate import further_metrics, image_metrics

        references, queries = (
            encode.lazily(len(images), functools.partial(_pixels, images))
            for images in (rows.reference_pixels, rows.query_pixels)
        )
        metrics = image_metrics(
            references,
            rows.reference_labels,
            queries,
            rows.query_labels,
            neighbours=self._job.evaluate.neighbours,
            probe=final and self._job.evaluate.probe,
        )
        labels = {"reference_labels": rows.reference_labels, "query_labels": rows.query_labels}
        embedded = {"references": references, "queries": queries}
        return metrics | further_metrics(self._job, metrics, **embedded, **labels)

    def check(self, source: str, stage: str) -> Iterator[str]:
        """Warn of images that look odd, and of labels that nothing can be learnt of."""
        judged = self.read(source)
        yield from judged.query_pixels.check()
        evaluate, labelled = self._job.evaluate, len(judged.reference_labels)
        if labelled < evaluate.neighbours:
            has = counted(labelled)
            yield f"evaluate.neighbours = {evaluate.neighbours}, but data.train has {has} with labels in all"
        strange = int((~np.isin(judged.query_labels, judged.reference_labels)).sum())
        if strange:
            yield (
                f"{counted(strange)} of data.{stage} have labels that the first evaluate.references = "
                f"{evaluate.references} labelled rows of data.train lack, so they count as wrong in every arm"
            )


def _pixels(images: Images, start: int, stop: int) -> Mapping[str, Tensor]:
    return {"pixel_values": images[start:stop]}


classes = Classes
