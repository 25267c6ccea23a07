"""Images: two augmented views of each are a pair; labels judge an encoder, unless `evaluate.judge` says otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.batches import Inputs
from jobs.data.images import ImageExamples, image_examples
from jobs.data.tasks.judging import Encode, Judge, checks, judge_of

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

    @functools.cached_property
    def _judge(self) -> Judge:
        return judge_of(self._job)

    def judged(self) -> object:
        """Read what judges the stage."""
        return self._judge.read(self._job.eval_split)

    def row_ids(self, judged: object) -> RowIds:
        """Name the rows that judge the stage."""
        return self._judge.row_ids(judged)

    def inputs(self) -> Inputs:
        """Make two black images."""
        import torch

        return {"pixel_values": torch.zeros(2, *self.examples().image_shape)}

    def evaluate(self, encode: Encode, judged: object, *, final: bool) -> dict[str, Outcomes]:
        """Have the judge measure."""
        return self._judge.evaluate(encode, judged, final=final)

    def training(self, encode: Encode, rows: int) -> Tensor:
        """Encode the first images of data.train, without augmentation."""
        images = self.examples().images
        return encode.lazily(min(rows, len(images)), lambda start, stop: {"pixel_values": images[start:stop]})

    def check(self) -> Iterator[str]:
        """Warn of images that look odd, and of what the judge finds odd."""
        job = self._job
        yield from self.examples().images.check()
        yield from checks(job)


image = ImageTask
