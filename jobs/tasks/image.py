"""Images: two augmented views of each are a pair; labels judge an encoder, by its nearest neighbours and a probe."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.batches import Inputs
from jobs.data.faults import counted
from jobs.data.images import ImageEvaluation, ImageExamples, image_evaluation, image_examples, image_rows
from jobs.data.images.pixels import Images
from jobs.data.sources import row_ids
from jobs.data.tasks import Encode

if TYPE_CHECKING:
    from torch import Tensor


class ImageTask:
    """Rows with an image and, if there is one, a label."""

    tokenizer = None

    def __init__(self, job: JobConfig, tokenizer: object = None) -> None:  # noqa: ARG002
        self._job = job

    @functools.cached_property
    def _examples(self) -> ImageExamples:
        return image_examples(self._job)

    def examples(self) -> ImageExamples:
        """Read the images to train on."""
        return self._examples

    def judged(self) -> ImageEvaluation:
        """Read labelled images: those to learn from, of data.train, and those of the stage."""
        return image_evaluation(self._job, str(self._job.eval_split))

    def row_ids(self, judged: ImageEvaluation) -> RowIds:  # noqa: ARG002 - of the same source
        """Name the images of the stage."""
        return row_ids(image_rows(self._job, str(self._job.eval_split)))

    def inputs(self) -> Inputs:
        """Make two black images."""
        import torch

        return {"pixel_values": torch.zeros(2, *self.examples().image_shape)}

    def evaluate(self, encode: Encode, judged: ImageEvaluation, *, final: bool) -> dict[str, Outcomes]:
        """Measure knn_accuracy, alignment, uniformity, probe_accuracy where `final` and the job say so, and the metrics
        of the user's own."""
        from jobs.metrics.evaluate import further_metrics, image_metrics

        references, queries = (
            encode.lazily(len(images), functools.partial(_pixels, images))
            for images in (judged.reference_pixels, judged.query_pixels)
        )
        metrics = image_metrics(
            references,
            judged.reference_labels,
            queries,
            judged.query_labels,
            neighbours=self._job.evaluate.neighbours,
            probe=final and self._job.evaluate.probe,
        )
        labels = {"reference_labels": judged.reference_labels, "query_labels": judged.query_labels}
        embedded = {"references": references, "queries": queries}
        return metrics | further_metrics(self._job, metrics, **embedded, **labels)

    def check(self) -> Iterator[str]:
        """Warn of images that look odd, and of labels that nothing can be learnt of."""
        job = self._job
        yield from self.examples().images.check()
        for stage, source in (("tune", job.data.tune), ("confirm", job.data.confirm)):
            if source:
                yield from self._label_warnings(stage, image_evaluation(job, source))

    def _label_warnings(self, stage: str, judged: ImageEvaluation) -> Iterator[str]:
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


image = ImageTask
